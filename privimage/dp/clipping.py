"""The sum of clipped per-example gradients on an integer grid, and the way back to real numbers."""

import torch

from privimage import ops

GRID_UNITS = 2**ops.GRID_BITS
"""Grid steps in `max_grad_norm`: the largest norm that one example can add to a sum."""


def clipped_sum(parts: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    """Sums the rows of `parts`, each first scaled to a norm of at most `max_grad_norm`.

    Formal guarantee: adding or removing one row changes the result by a vector of L2 norm at most
    `GRID_UNITS`, whatever the row holds; a row that is not finite adds exactly 0
    (tests/dp/test_clipping.py::test_one_row_moves_the_sum_by_at_most_the_clip).
    Norm, scale and rounding see the very values that are added, in float64, with a margin that pays
    for every rounding on the way (proof in csrc/shared/grid.h). Integer sums are exact, so neither
    order nor micro-batches nor threads can change the result
    (tests/dp/test_clipping.py::test_order_micro_batches_and_shards_change_no_bit).

    Args:
        parts: [examples, parameters] float, one example's gradient a row.
        max_grad_norm: the clipping norm C, above 0.

    Returns:
        int64 [parameters], in units of C / `GRID_UNITS`.
    """
    return ops.clipped_sum(parts, max_grad_norm)
