"""From losses to the clipped sum as a plan says: gradients are kept, or computed again for the sum.

Of a layer that is computed again only the input and the gradient of the output are held until all
norms are known. Its norm is that of the very values that the second computation adds, bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch

from privimage import ops
from privimage.dp.engine import ExampleGradients, Losses, count_examples
from privimage.dp.plan import StepPlan
from privimage.dp.slots import Slot
from privimage.errors import UserError
from privimage.ops.reference import grid_scales


def planned_clipped_sum(
    gradients: ExampleGradients,
    losses: Losses,
    *batch: torch.Tensor,
    plan: StepPlan,
    max_grad_norm: float,
) -> torch.Tensor:
    """`clipped_sum(gradients(losses, *batch), max_grad_norm)`, in the memory that `plan` allows.

    Formal guarantee: as `clipped_sum`, since norms, scales and rounding see the same values
    (tests/dp/test_recompute.py::test_one_example_moves_the_sum_by_at_most_the_clip); examples are
    scaled one by one, so micro-batches change it only as far as they change a forward pass.

    Args:
        gradients: of the model that was planned for.
        losses: as for `ExampleGradients`.
        batch: as there, with `plan.draws` rows an example.
        plan: from `privimage.dp.plan`.
        max_grad_norm: the clipping norm C, in [1e-30, 1e30].

    Returns:
        int64 [parameters], in units of C / `GRID_UNITS`.

    Raises:
        UserError: as `ExampleGradients`; a number out of range; a layer that the plan computes
            again is used otherwise than when it was planned.
    """
    if not 1e-30 <= max_grad_norm <= 1e30:
        raise UserError(f"max_grad_norm must be in [1e-30, 1e30], got {max_grad_norm}")
    count = count_examples(batch, plan.draws)
    total = torch.zeros(gradients.size, dtype=torch.int64, device=batch[0].device)
    for first in range(0, count, plan.examples):
        rows = slice(first * plan.draws, (first + plan.examples) * plan.draws)
        _add(gradients, losses, [tensor[rows] for tensor in batch], plan, max_grad_norm, total)
    return total


def _add(
    gradients: ExampleGradients,
    losses: Losses,
    batch: list[torch.Tensor],
    plan: StepPlan,
    max_grad_norm: float,
    total: torch.Tensor,
) -> None:
    """Adds the clipped sum of one micro-batch to `total`."""
    count = count_examples(batch, plan.draws)
    kept = [name for name in gradients.names if name not in plan.recomputed]
    arena = gradients.arena(count, kept)
    shapes = gradients.shapes
    later = {name: _Later(name, count, shapes[name], arena.dtype) for name in plan.recomputed}
    slots = gradients.slots_in(arena, kept) | later
    gradients.write_into(slots, losses, *batch, draws=plan.draws)
    uses = {name: slot.use for name, slot in later.items() if slot.use is not None}
    squares = ops.squared_norms(arena)
    for use in uses.values():
        squares += use.squares
    scales = clip_scales(squares, max_grad_norm)
    sums = dict(_views(gradients, gradients.names, total))
    for name, part in _views(gradients, kept, ops.scaled_sum(arena, scales)):
        sums[name] += part
    for name, use in uses.items():
        use.add(scales, sums[name], sums.get(use.bias))


def _views(
    gradients: ExampleGradients, names: Sequence[str], flat: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """The named parameters' parts of a flat tensor that holds no others, in their shapes."""
    shapes = [gradients.shapes[name] for name in names]
    parts = flat.split([shape.numel() for shape in shapes])
    for name, shape, part in zip(names, shapes, parts, strict=True):
        yield name, part.view(shape)


def clip_scales(squares: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    """What an example's values are multiplied with to be clipped and in grid steps.

    Formal guarantee: an example's scaled norm stays below `GRID_UNITS`, by the proof in
    csrc/shared/grid.h (tests/dp/test_recompute.py::test_scales_are_those_of_the_grid).

    Args:
        squares: float64 [examples], the squared norms.
        max_grad_norm: the clipping norm C.

    Returns:
        float64 [examples]; 0 for an example that is not finite.
    """
    return grid_scales(squares.sqrt(), max_grad_norm)


@dataclass(frozen=True)
class _Use:
    """A layer's tensors, measured."""

    x: torch.Tensor
    grad: torch.Tensor
    bias: str
    geometry: ops.ConvGeometry
    squares: torch.Tensor

    def add(
        self, scales: torch.Tensor, weight_sum: torch.Tensor, bias_sum: torch.Tensor | None
    ) -> None:
        """Adds the layer's clipped gradients to the sums."""
        if weight_sum.dim() == 2:
            weight_sum = weight_sum[..., None, None]
        ops.recomputed_sum(self.x, self.grad, scales, weight_sum, bias_sum, self.geometry)


class _Later(Slot):
    """Instead of rows: the one layer that uses a weight; for its bias nothing at all."""

    def __init__(self, name: str, count: int, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__(torch.empty(0))
        self.name = name
        self.use: _Use | None = None
        self._count = count
        self._taps = (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
        self._dtype = dtype

    @property
    def rows(self) -> torch.Tensor:
        """None; raises UserError."""
        return self._refuse()

    def take(
        self, x: torch.Tensor, grad: torch.Tensor, bias: Slot | None, geometry: ops.ConvGeometry
    ) -> bool:
        """Measures the layer's gradients and holds on to its tensors."""
        if self.used or (bias is not None and (bias.used or not isinstance(bias, _Later))):
            self._refuse()
        x, grad = ops.as_taken(self._dtype, x.detach(), grad.detach())
        squares = ops.example_weight_norms(
            x, grad, self._count, self._taps, bias is not None, geometry
        )
        name = bias.name if isinstance(bias, _Later) else ""
        self.use = _Use(x, grad, name, geometry, squares)
        for slot in (self, bias):
            if slot is not None:
                slot.used = True
        return True

    def finish(self) -> None:
        """Nothing: what was not used adds nothing."""

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"parameter '{self.name}' is not used as when it was planned for; "
            f"keep it: plan.choosing('{self.name}', 'keep')"
        )
