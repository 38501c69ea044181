"""The operators: arguments are checked once, here, before the native code or the reference runs."""

import torch

from privimage.ops import _library, rules
from privimage.ops.reference import GRID_BITS

__all__ = ["GRID_BITS", "clipped_sum", "describe_build"]

describe_build = _library.describe_build
rules.register()


def clipped_sum(parts: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    """The sum of the rows of `parts`, each scaled to a norm of at most C, on the integer grid.

    Each coordinate is rounded towards zero onto a grid of C / 2^`GRID_BITS`, so that no row of the
    sum has a norm above 2^`GRID_BITS` steps; a row that is not finite, or whose squares overflow
    float64, adds exactly 0. Nothing else rounds: order, shards and threads can't change the sum.

    Args:
        parts: float32 or float64 [examples, parameters], one example's gradient a row.
        max_grad_norm: the clipping norm C, finite and above 0.

    Returns:
        int64 [parameters] in grid steps, on the device of `parts`; not differentiable.

    Raises:
        TypeError: `parts` is no tensor of these types, or `max_grad_norm` no number.
        ValueError: `parts` is not two-dimensional, or `max_grad_norm` out of range.
    """
    if not isinstance(parts, torch.Tensor) or parts.dtype not in (torch.float32, torch.float64):
        found = parts.dtype if isinstance(parts, torch.Tensor) else type(parts).__name__
        raise TypeError(f"parts: expected a float32 or float64 tensor, got {found}")
    if parts.dim() != 2:
        raise ValueError(f"parts: expected [examples, parameters], got shape {list(parts.shape)}")
    if isinstance(max_grad_norm, bool) or not isinstance(max_grad_norm, int | float):
        raise TypeError(f"max_grad_norm: expected a number, got {type(max_grad_norm).__name__}")
    if not 1e-30 <= max_grad_norm <= 1e30:
        raise ValueError(f"max_grad_norm: expected a number in [1e-30, 1e30], got {max_grad_norm}")
    result: torch.Tensor = torch.ops.privimage.clipped_sum(
        parts.detach().contiguous(), max_grad_norm
    )
    return result
