"""What can become of one layer's gradients, and what each choice is predicted to take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from privimage.dp.gradients.costs import Costs
from privimage.dp.gradients.observation import Use
from privimage.errors import UserError

Choice = Literal["keep", "recompute", "ghost"]
"""Gradients are kept until the norms are known; or computed twice, for the norm and for the sum (an
embedding's without its table); or only for the sum, with a norm by Gram matrices."""

_MOST_PAIRS = 1024**2
"""Of positions or of pixels in a Gram matrix, of which a thread holds two: 16 MB."""


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer's gradients.

    Attributes:
        weight: the parameter's name.
        bias: that of the bias that is used with it, if it is.
        shape: of the weight.
        positions: pixels (or tokens) x draws that an example's gradient sums over.
        seconds: predicted, an example, of each possible choice.
        bytes: that an example leaves behind until the sum, of each possible choice.
        obstacles: why the other choices are none.
        choice: what happens.
        reason: why.
    """

    weight: str
    bias: str | None
    shape: tuple[int, ...]
    positions: int
    seconds: Mapping[Choice, float]
    bytes: Mapping[Choice, float]
    obstacles: Mapping[Choice, str]
    choice: Choice
    reason: str

    @property
    def without_rows(self) -> Choice | None:
        """The fastest choice that keeps no gradients; None if they must be kept."""
        others = (choice for choice in self.seconds if choice != "keep")
        return min(others, key=self.seconds.__getitem__, default=None)

    @property
    def price(self) -> float:
        """Seconds for each byte saved by not keeping gradients; infinite if none is."""
        other = self.without_rows
        saved = self._saved(other) if other else 0.0
        if other is None or saved <= 0:
            return float("inf")
        return self._more(other) / saved

    def keeping_nothing(self) -> "LayerPlan":
        """With the fastest choice that keeps no gradients."""
        other = self.without_rows
        if other is None:
            return self
        saved, more = self._saved(other) / 1e3, 1e6 * self._more(other)
        price = f"for {more:.1f} us" if more > 0 else f"and {-more:.1f} us"
        return replace(self, choice=other, reason=f"saves {saved:.0f} KB an example {price}")

    def choosing(self, choice: Choice) -> "LayerPlan":
        """With another choice; raises UserError where it is none."""
        if choice not in self.seconds:
            why = self.obstacles.get(choice, "choices are keep, recompute and ghost")
            raise UserError(f"'{choice}' is no choice for '{self.weight}': {why}")
        return replace(self, choice=choice, reason="asked for")

    def _saved(self, other: Choice) -> float:
        return self.bytes["keep"] - self.bytes[other]

    def _more(self, other: Choice) -> float:
        return self.seconds[other] - self.seconds["keep"]


def kept_layer(
    use: Use, costs: Costs, examples: int, obstacle: str, no_bound: str, width: int
) -> LayerPlan:
    """A layer whose gradients are kept, with its other choices.

    Args:
        use: of the layer's weight.
        costs: the constants.
        examples: of a micro-batch.
        obstacle: why gradients must be kept; empty if they need not.
        no_bound: why a norm can't be a bound; empty if it can.
        width: bytes of a value that is kept.
    """
    obstacles: dict[Choice, str] = {}
    if obstacle:
        obstacles = {"recompute": obstacle, "ghost": obstacle}
    elif use.is_table:
        obstacles = {"ghost": "an embedding's norm is exact already where it is computed again"}
    elif no_bound:
        obstacles = {"ghost": no_bound}
    elif use.groups != 1:
        obstacles = {"ghost": "Gram matrices are for convolutions of one group"}
    elif max(use.positions**2, use.pixel_pairs) > _MOST_PAIRS:
        obstacles = {"ghost": "Gram matrices of so many positions take too much memory"}
    predicted = _table_seconds if use.is_table else _layer_seconds
    seconds = {
        choice: value
        for choice, value in predicted(use, costs, examples).items()
        if choice not in obstacles
    }
    kept, held = 1.0 * width * torch.Size(use.shape).numel(), 4.0 * use.held
    return LayerPlan(
        *(use.weight, use.bias, use.shape, use.positions),
        seconds=seconds,
        bytes={choice: kept if choice == "keep" else held for choice in seconds},
        obstacles=obstacles,
        choice="keep",
        reason=obstacle or "there is room",
    )


def _layer_seconds(use: Use, costs: Costs, examples: int) -> dict[Choice, float]:
    values = torch.Size(use.shape).numel()
    once, call = values * use.positions * costs.multiply_add, costs.layer / examples
    outputs, inputs, *taps = use.shape
    is_outer = use.positions == use.pixel_pairs == math.prod(taps) == 1
    total = call + (values * costs.outer if is_outer else once + values * costs.sum)
    products = use.pixel_pairs * inputs + use.positions**2 * (outputs + math.prod(taps))
    return {
        "keep": once + values * costs.keep,
        "recompute": total + once + values * costs.norm,
        "ghost": total + products * costs.gram,
    }


def _table_seconds(use: Use, costs: Costs, examples: int) -> dict[Choice, float]:
    values, read = torch.Size(use.shape).numel(), use.positions * use.shape[1]
    again = read * (costs.norm + costs.sum) + costs.layer / examples
    return {"keep": values * costs.keep, "recompute": again}
