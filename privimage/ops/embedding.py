"""The operators behind an embedding: a table an example, or norms and sums without tables.

Arguments are checked once, here, before the native code or the reference runs.
"""

import torch

from privimage.ops.layers import wide_type
from privimage.ops.scaled import check_scales


def example_embedding_grad(
    indices: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    accumulate: bool = False,
) -> None:
    """Writes the gradient of each example's table; what is read several times adds up.

    A sum's order is that of the positions, on every device: no atomics, the same bits every time.

    Args:
        indices: int64 [examples, positions] of what was read, all draws of an example in a row.
        grad: float32 or float64 [examples, positions, width], of what was read there. On a GPU
            bfloat16 as well, with float32 for `weight`.
        weight: [examples, entries, width], written; each example's values in one piece.
        padding_idx: the entry without a gradient; None for none.
        accumulate: add to what `weight` holds.

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes that don't fit, or rows of `weight` in pieces.
    """
    wide = _wide_type(indices, grad)
    if weight.dtype != wide or weight.device != grad.device:
        there = f"{weight.dtype} on {weight.device}"
        raise TypeError(f"weight: expected {wide} on {grad.device} as grad, got {there}")
    fits = weight.dim() == 3 and indices.shape == grad.shape[:-1] and grad.dim() == 3
    if not fits or (len(weight), weight.shape[2]) != (len(grad), grad.shape[2]):
        raise ValueError(
            "expected indices [examples, positions], grad [examples, positions, width] and weight "
            f"[examples, entries, width], got {list(indices.shape)}, {list(grad.shape)} and "
            f"{list(weight.shape)}"
        )
    if len(weight) and not weight[0].is_contiguous():
        raise ValueError("weight: expected each example's values in one piece")
    torch.ops.privimage.example_embedding_grad(
        indices.contiguous(),
        grad.contiguous(),
        weight,
        _number(padding_idx),
        accumulate,
    )


def example_embedding_norms(
    indices: torch.Tensor, grad: torch.Tensor, entries: int, padding_idx: int | None = None
) -> torch.Tensor:
    """The squared norm of what `example_embedding_grad` would write for each example.

    Args:
        indices: as there.
        grad: as there.
        entries: of a table.
        padding_idx: as there.

    Returns:
        float64 [examples].

    Raises:
        TypeError, ValueError: as there.
    """
    _check_read(indices, grad)
    result: torch.Tensor = torch.ops.privimage.example_embedding_norms(
        indices.contiguous(), grad.contiguous(), entries, _number(padding_idx)
    )
    return result


def recomputed_embedding_sum(
    indices: torch.Tensor,
    grad: torch.Tensor,
    scales: torch.Tensor,
    weight_sum: torch.Tensor,
    padding_idx: int | None = None,
) -> None:
    """Adds `scaled_sum` of what `example_embedding_grad` would write, of which it keeps nothing.

    The values are bitwise those that `example_embedding_norms` saw; rows that an example did not
    read are never touched.

    Args:
        indices: as there.
        grad: as there.
        scales: as for `scaled_sum`.
        weight_sum: int64 [entries, width], added to.
        padding_idx: as there.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check_read(indices, grad)
    check_scales(scales, len(grad), grad.device)
    if weight_sum.dtype != torch.int64 or not weight_sum.is_contiguous():
        raise TypeError(f"weight_sum: expected a contiguous int64 tensor, got {weight_sum.dtype}")
    if weight_sum.dim() != 2 or weight_sum.shape[1] != grad.shape[2]:
        there = list(weight_sum.shape)
        raise ValueError(f"weight_sum: expected [entries, {grad.shape[2]}], got {there}")
    torch.ops.privimage.recomputed_embedding_sum(
        indices.contiguous(), grad.contiguous(), scales, weight_sum, _number(padding_idx)
    )


def _check_read(indices: torch.Tensor, grad: torch.Tensor) -> None:
    _wide_type(indices, grad)
    if grad.dim() != 3 or indices.shape != grad.shape[:-1]:
        raise ValueError(
            "expected indices [examples, positions] and grad [examples, positions, width], got "
            f"{list(indices.shape)} and {list(grad.shape)}"
        )


def _wide_type(indices: torch.Tensor, grad: torch.Tensor) -> torch.dtype:
    if indices.dtype != torch.int64:
        raise TypeError(f"indices: expected torch.int64, got {indices.dtype}")
    if indices.device != grad.device:
        raise TypeError(f"indices: expected them on {grad.device} as grad, got {indices.device}")
    return wide_type(grad, "grad")


def _number(padding_idx: int | None) -> int:
    """As the operators take it."""
    return -1 if padding_idx is None else padding_idx
