"""The operators behind a clipped sum whose norms come first: of kept parts or of recomputed ones.

Arguments are checked once, here, before the native code or the reference runs.
"""

from collections.abc import Sequence

import torch

from privimage.ops.layers import ConvGeometry, wide_type


def squared_norms(parts: torch.Tensor, columns: Sequence[slice] | None = None) -> torch.Tensor:
    """The squared L2 norm of each row, in float64.

    Args:
        parts: float32 or float64 [examples, parameters]; on a GPU bfloat16 as well.
        columns: those that count, each range with both its ends; None for all.

    Returns:
        float64 [examples]; infinite or NaN where a row is not finite.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    parts = _checked_parts(parts)
    size = parts.shape[1]
    ranges = [slice(0, size)] if columns is None else columns
    for each in ranges:
        if not 0 <= each.start <= each.stop <= size:
            raise ValueError(f"columns: expected some of {size}, got {each}")
    ends = [end for each in ranges for end in (each.start, each.stop)]
    result: torch.Tensor = torch.ops.privimage.squared_norms(parts, ends)
    return result


def scaled_sum(
    parts: torch.Tensor,
    scales: torch.Tensor,
    total: torch.Tensor | None = None,
    accumulate: bool = False,
) -> torch.Tensor:
    """The sum of the rows, each value first scaled and rounded towards zero to an integer.

    Args:
        parts: as for `squared_norms`.
        scales: float64 [examples], rounded to float32 where the parts are; no product is above
            2^30. A row of scale 0 is passed over, whatever it holds.
        total: int64 [parameters], written; None for a new one.
        accumulate: add to what `total` holds.

    Returns:
        `total`.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    parts = _checked_parts(parts)
    check_scales(scales, len(parts), parts.device)
    if total is None:
        total, accumulate = parts.new_empty(parts.shape[1], dtype=torch.int64), False
    _check_total("total", total)
    torch.ops.privimage.scaled_sum(parts, scales, total, accumulate)
    return total


def example_weight_norms(
    x: torch.Tensor,
    grad: torch.Tensor,
    examples: int,
    taps: tuple[int, int],
    with_bias: bool,
    geometry: ConvGeometry,
) -> torch.Tensor:
    """The squared norm of what `example_weight_grad` would write for each example.

    Args:
        x: as there.
        grad: as there.
        examples: divides the rows.
        taps: of the convolution, height and width.
        with_bias: whether the gradient of a bias counts.
        geometry: as there.

    Returns:
        float64 [examples].

    Raises:
        TypeError, ValueError: as there.
    """
    _check_convolution(x, grad)
    stride, padding, dilation, groups = geometry
    result: torch.Tensor = torch.ops.privimage.example_weight_norms(
        x, grad, examples, taps, with_bias, stride, padding, dilation, groups
    )
    return result


def recomputed_sum(
    x: torch.Tensor,
    grad: torch.Tensor,
    scales: torch.Tensor,
    weight_sum: torch.Tensor,
    bias_sum: torch.Tensor | None,
    geometry: ConvGeometry,
    accumulate: bool = True,
) -> None:
    """Adds `scaled_sum` of what `example_weight_grad` would write, of which it keeps nothing.

    The values are bitwise those that `example_weight_norms` saw.

    Args:
        x: as there.
        grad: as there.
        scales: as for `scaled_sum`.
        weight_sum: int64 [outputs, inputs / groups, *taps], added to.
        bias_sum: int64 [outputs], added to; None where there is no bias.
        geometry: as there.
        accumulate: if not, the sums are written, whatever they held.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check_convolution(x, grad)
    check_scales(scales, len(scales), x.device)
    _check_total("weight_sum", weight_sum)
    if bias_sum is not None:
        _check_total("bias_sum", bias_sum)
    stride, padding, dilation, groups = geometry
    torch.ops.privimage.recomputed_sum(
        x, grad, scales, weight_sum, bias_sum, stride, padding, dilation, groups, accumulate
    )


def gram_sums(
    x: torch.Tensor,
    grad: torch.Tensor,
    examples: int,
    taps: tuple[int, int],
    with_bias: bool,
    geometry: ConvGeometry,
) -> torch.Tensor:
    """Four sums for each example, of which the norm of what `example_weight_grad` writes follows.

    With u_t for the patch of x that position t of the output reads, zeros where it reaches beyond
    the image, and g_t for the gradient there, over all draws, they are: over all pairs of positions
    <u_t, u_s> <g_t, g_s>, which is the squared norm of Σ g_t u_t'; over all positions |u_t| |g_t|,
    |u_t| and |g_t|. In float64, each in an order that the shapes of one example decide. The native
    code holds float64 matrices of positions by positions and of pixels by pixels, of every stride.

    Args:
        x: as there.
        grad: as there.
        examples: divides the rows.
        taps: of the convolution, height and width.
        with_bias: whether a bias counts, as an input that is always 1.
        geometry: as there, of one group.

    Returns:
        float64 [4, examples]; infinite or NaN where an example is not finite, or its squares.

    Raises:
        TypeError, ValueError: as there, or there are groups.
        RuntimeError: more than 4096 positions or pixels, of the native code.
    """
    _check_convolution(x, grad)
    stride, padding, dilation, groups = geometry
    if groups != 1:
        raise ValueError(f"geometry: expected one group, got {groups}")
    result: torch.Tensor = torch.ops.privimage.gram_sums(
        x, grad, examples, taps, with_bias, stride, padding, dilation, groups
    )
    return result


def _checked_parts(parts: torch.Tensor) -> torch.Tensor:
    wide_type(parts, "parts")
    if parts.dim() != 2:
        raise ValueError(f"parts: expected [examples, parameters], got shape {list(parts.shape)}")
    parts = parts.detach()
    return parts if parts.shape[1] < 2 or parts.stride(1) == 1 else parts.contiguous()


def check_scales(scales: torch.Tensor, examples: int, device: torch.device) -> None:
    """Raises TypeError or ValueError unless they are float64 [examples] on that device."""
    if scales.dtype != torch.float64 or scales.device != device:
        there = f"{scales.dtype} on {scales.device}"
        raise TypeError(f"scales: expected torch.float64 on {device}, got {there}")
    if scales.shape != (examples,) or not scales.is_contiguous():
        raise ValueError(f"scales: expected a vector of {examples}, got {list(scales.shape)}")


def _check_total(name: str, total: torch.Tensor) -> None:
    if total.dtype != torch.int64 or not total.is_contiguous():
        raise TypeError(f"{name}: expected a contiguous int64 tensor, got {total.dtype}")


def _check_convolution(x: torch.Tensor, grad: torch.Tensor) -> None:
    wide_type(x)
    if grad.dtype != x.dtype:
        raise TypeError(f"x, grad: expected the same float type, got {x.dtype} and {grad.dtype}")
    if x.dim() != 4 or grad.dim() != 4:
        raise ValueError(
            "x, grad: expected [rows, channels, height, width], got "
            f"{list(x.shape)} and {list(grad.shape)}"
        )
