"""Sums of clipped per-example gradients on an integer grid, in three ways of clipping."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from privimage import ops
from privimage.errors import check_between, check_choice
from privimage.ops.reference import grid_scales

GRID_UNITS = 2**ops.GRID_BITS
"""Grid steps in `max_grad_norm`: the largest norm that one example can add to a sum."""


def clipped_sum(parts: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    """Sums the rows of `parts`, each first scaled to a norm of at most `max_grad_norm`.

    Formal guarantee: adding or removing one row changes the result by a vector of L2 norm at most
    `GRID_UNITS`, whatever the row holds; a row that is not finite adds exactly 0
    (tests/dp/test_clipping.py::test_one_row_moves_the_sum_by_at_most_the_clip).
    Norm, scale and rounding see the very values that are added, with a margin that pays for every
    rounding on the way (proof in csrc/shared/grid.h). Integer sums are exact, so neither
    order nor micro-batches nor threads can change the result
    (tests/dp/test_clipping.py::test_order_micro_batches_and_shards_change_no_bit).

    Args:
        parts: [examples, parameters] float, one example's gradient a row.
        max_grad_norm: the clipping norm C, above 0.

    Returns:
        int64 [parameters], in units of C / `GRID_UNITS`.
    """
    return ops.clipped_sum(parts, max_grad_norm)


@dataclass(frozen=True)
class ClipRule:
    """A way of clipping, for gradients of which only the norms are known yet, or all values.

    Attributes:
        max_grad_norm: the clipping norm C, in [1e-30, 1e30].
        clipping: "flat"; "per_layer", each of L modules to a norm of at most C / √L, whose squares
            add up to C²; or "automatic" (AUTO-S; Bu, Wang, Zha, Karypis, arXiv 2206.07136, section
            3), every gradient times C / (its norm + `stability`), where C only scales the result.
        stability: γ of automatic clipping, in [1e-30, 1e30], in units of the gradient: what is much
            shorter stays short.

    Raises:
        UserError: a value is not as above.
    """

    max_grad_norm: float
    clipping: str = "flat"
    stability: float = 0.01

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "stability"):
            check_between(name, getattr(self, name), 1e-30, 1e30)
        check_choice("clipping", self.clipping, ("flat", "per_layer", "automatic"))

    def sum(self, parts: torch.Tensor, module_sizes: Sequence[int]) -> torch.Tensor:
        """The sum of the rows of `parts` [examples, parameters], clipped.

        Formal guarantee: as `clipped_sum`, for every way of clipping
        (tests/dp/test_clipping.py::test_one_row_moves_the_sum_by_at_most_the_clip); by layer, where
        one module of a row is not finite, that module alone adds 0.

        Args:
            parts: float, one example's gradient a row.
            module_sizes: parameters of each module, in the order of the columns.

        Returns:
            int64 [parameters], in units of C / `GRID_UNITS`.
        """
        if self.clipping == "flat":
            return clipped_sum(parts, self.max_grad_norm)
        if self.clipping == "automatic":
            return ops.clipped_sum(parts, self.max_grad_norm, stability=self.stability)
        share = 1.0 / math.sqrt(max(len(module_sizes), 1))
        modules = parts.split(list(module_sizes), dim=1)
        return torch.cat([ops.clipped_sum(part, self.max_grad_norm, share) for part in modules])

    def scales(self, squares: torch.Tensor) -> torch.Tensor:
        """What an example's values are multiplied with to be clipped and in grid steps.

        Norms are rounded up to 24 bits first, so that values whose squares were added up in another
        order get the same scale.

        Formal guarantee: an example's scaled norm, over all modules, stays below `GRID_UNITS`, by
        the proof in csrc/shared/grid.h
        (tests/dp/test_clipping.py::test_scales_are_those_of_the_grid).

        Args:
            squares: float64 [modules, examples], the squared norms of what is clipped as one: of
                each module where it is by layer, of everything (one module) else.

        Returns:
            float64 [modules, examples]; 0 where a norm is not finite.
        """
        share = 1.0 / math.sqrt(max(len(squares), 1))
        stability = self.stability if self.clipping == "automatic" else None
        return grid_scales(_rounded_up(squares.sqrt()), self.max_grad_norm, share, stability)


def _rounded_up(norms: torch.Tensor) -> torch.Tensor:
    """float64 -> the next that has 24 significant bits; what is not finite stays so."""
    tail = 2**29 - 1
    up = ((norms.view(torch.int64) + tail) & ~tail).view(torch.float64)
    return torch.where(norms.isfinite(), up, norms)
