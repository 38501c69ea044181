"""The operator behind an embedding: one gradient of the table an example.

Arguments are checked once, here, before the native code or the reference runs.
"""

import torch

from privimage.ops.layers import wide_type


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
    wide = wide_type(grad, "grad")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices: expected torch.int64, got {indices.dtype}")
    if weight.dtype != wide or weight.device != grad.device or indices.device != grad.device:
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
        -1 if padding_idx is None else padding_idx,
        accumulate,
    )
