"""From losses to the clipped sum as a plan says: gradients are kept, or computed again for the sum.

What is kept lies in a few tensors, each of which comes into being in the backward pass, when it is
first written to and the activations that lay there are gone. Of a layer that is computed again only
the input and the gradient of the output are held until all norms are known. Its norm is that of the
very values that the second computation adds, bit for bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch

from privimage import ops
from privimage.dp.clipping import ClipRule
from privimage.dp.engine import ExampleGradients, Losses, count_examples
from privimage.dp.plan import StepPlan
from privimage.dp.slots import Slot, as_convolution
from privimage.errors import UserError

_ARENAS = 16
"""Tensors for all that is kept: each takes some calls, and stands for all of it from the first."""

_TOGETHER = 4
"""Layers whose gradients are computed in one call: q, k, v and o of an attention block."""


def planned_clipped_sum(
    gradients: ExampleGradients,
    losses: Losses,
    *batch: torch.Tensor,
    plan: StepPlan,
    rule: ClipRule,
    examples: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """`rule.sum` of the gradients of a batch, in the memory that `plan` allows.

    Formal guarantee: as `clipped_sum`, since norms, scales and rounding see the same values
    (tests/dp/test_recompute.py::test_one_example_moves_the_sum_by_at_most_the_clip), kept or
    computed again (tests/dp/test_recompute.py::test_the_choice_changes_no_bit); examples are scaled
    one by one, so micro-batches change it only as far as they change a forward pass.

    Args:
        gradients: of the model that was planned for.
        losses: as for `ExampleGradients`.
        batch: as there, with `plan.draws` rows an example.
        plan: from `privimage.dp.plan`.
        rule: how gradients are clipped.
        examples: the first so many are added up, the others only fill the batch; default all. A
            tensor leaves the number open for `record`, and every example is computed.

    Returns:
        int64 [parameters], in units of C / `GRID_UNITS`.

    Raises:
        UserError: as `ExampleGradients`; more `examples` than the batch has; a layer that the plan
            computes again is used otherwise than when it was planned.
    """
    count = count_examples(batch, plan.draws)
    wanted = count if examples is None else examples
    computed = count if isinstance(wanted, torch.Tensor) else wanted
    if not 0 <= computed <= count:
        raise UserError(f"examples: expected at most the {count} of the batch, got {computed}")
    # The first micro-batch writes all of it.
    allocate = torch.empty if computed else torch.zeros
    total = allocate(gradients.size, dtype=torch.int64, device=gradients.arena(0).device)
    for first in range(0, computed, plan.examples):
        rows = slice(first * plan.draws, (first + plan.examples) * plan.draws)
        piece = [tensor[rows] for tensor in batch]
        _add(gradients, losses, piece, plan, rule, wanted - first, total, accumulate=first > 0)
    return total


def _add(
    gradients: ExampleGradients,
    losses: Losses,
    batch: list[torch.Tensor],
    plan: StepPlan,
    rule: ClipRule,
    added: int | torch.Tensor,
    total: torch.Tensor,
    *,
    accumulate: bool,
) -> None:
    """Writes the clipped sum of the first `added` examples of one micro-batch, or adds it."""
    count, by_module = count_examples(batch, plan.draws), rule.way == "per_layer"
    kept, later = _divided(gradients, count, plan.recomputed, by_module=by_module)
    gradients.write_into({**kept, **later}, losses, *batch, draws=plan.draws)
    arenas = dict.fromkeys(slot.arena for slot in kept.values())
    uses = [slot.use for slot in later.values() if slot.use is not None]
    modules = len(gradients.module_sizes) if by_module else 1
    squares = total.new_zeros(modules, count, dtype=torch.float64)
    for part in (*arenas, *uses):
        squares[part.module] += part.squares()
    scales = rule.scales(squares) * (torch.arange(count, device=squares.device) < added)
    if not accumulate:  # Of the others an arena writes each.
        for name in later:
            total[gradients.places[name]] = 0
    for arena in arenas:
        arena.add_to(total, scales[arena.module], accumulate)
    for use in uses:
        use.add_to(total, scales[use.module])


def _divided(
    gradients: ExampleGradients, count: int, recomputed: frozenset[str], *, by_module: bool
) -> tuple[dict[str, "_Kept"], dict[str, "_Later"]]:
    """Where the gradients of a micro-batch go, by the parameter's name: those kept, and the others.

    An arena holds neighbours in the model's order, whole modules, only one if that is asked for.
    """
    arena: _Arena | None = None
    kept: dict[str, _Kept] = {}
    later: dict[str, _Later] = {}
    like = gradients.arena(0)
    # On a GPU one sum over all layers is one launch, and blocks that are free are taken again.
    limit, end, path, module = gradients.size // (1 if like.is_cuda else _ARENAS), -1, None, -1
    places = gradients.places
    for name, shape in gradients.shapes.items():
        owner = name.rpartition(".")[0]
        begins, path = owner != path, owner
        module = module + begins if by_module else 0
        if name in recomputed:
            later[name] = _Later(name, places, count, shape, like.dtype, module)
            continue
        first = places[name].start
        is_full = arena is not None and begins and arena.size >= limit
        if arena is None or first != end or arena.module != module or is_full:
            arena = _Arena(first, count, like, module)
        arena.hold(name, shape)
        kept[name], end = _Kept(name, arena), places[name].stop
    return kept, later


@dataclass(frozen=True)
class _Layer:
    """A layer's tensors, from which its gradients are still to be computed.

    Attributes:
        names: of its weight, and of its bias if it has one.
    """

    x: torch.Tensor
    grad: torch.Tensor
    names: tuple[str, ...]
    geometry: ops.ConvGeometry

    def fits(self, other: "_Layer") -> bool:
        """Whether one call can do both."""
        return self.geometry == other.geometry and len(self.names) == len(other.names)


class _Arena:
    """The kept gradients of parameters that follow each other in the flat sum.

    Small layers wait for each other, so that one call does several; whoever wants to see what was
    written gets all of it.

    Attributes:
        module: the row of the squared norms that they count in.
        size: scalars in the parameters.
    """

    def __init__(self, first: int, count: int, like: torch.Tensor, module: int) -> None:
        self.module, self.size = module, 0
        self._first, self._count, self._like = first, count, like
        self._shapes: dict[str, torch.Size] = {}
        self._parts: torch.Tensor | None = None
        self._rows: dict[str, torch.Tensor] = {}
        self._measured: dict[tuple[str, ...], torch.Tensor] = {}
        self._waiting: list[_Layer] = []

    def hold(self, name: str, shape: torch.Size) -> None:
        """Plans room for another parameter, which comes next in the flat sum."""
        self._shapes[name] = shape
        self.size += shape.numel()

    def rows(self, name: str) -> torch.Tensor:
        """[examples, *shape] of a parameter, to be written into: what was measured is no more."""
        self._written()
        self._compute()
        if self._measured:
            self._measured = {k: v for k, v in self._measured.items() if name not in k}
        return self._rows[name]

    def add(self, layer: _Layer) -> None:
        """Has a layer's gradients written and measured, the first ones of its parameters."""
        if self._waiting and not layer.fits(self._waiting[-1]):
            self._compute()
        self._waiting.append(layer)
        if len(self._waiting) == _TOGETHER or self._shapes[layer.names[0]][2:].numel() > 1:
            self._compute()

    def squares(self) -> torch.Tensor:
        """The squared norm of each example's values, float64 [examples]."""
        self._compute()
        found = list(self._measured.values())
        if unmeasured := [self._written()[:, columns] for columns in self._unmeasured()]:
            found.append(ops.squared_norms(torch.cat(unmeasured, dim=1)))
        return torch.stack(found).sum(0)

    def add_to(self, total: torch.Tensor, scales: torch.Tensor, accumulate: bool) -> None:
        """Writes the scaled values into the flat sum, or adds them."""
        place = slice(self._first, self._first + self.size)
        ops.scaled_sum(self._written(), scales, total[place], accumulate)

    def _unmeasured(self) -> list[slice]:
        """The columns of what was not measured when it was written, neighbours in one slice."""
        known = {name for names in self._measured for name in names}
        found: list[slice] = []
        stop = 0
        for name, shape in self._shapes.items():
            start, stop = stop, stop + shape.numel()
            if name in known:
                continue
            if found and found[-1].stop == start:
                start = found.pop().start
            found.append(slice(start, stop))
        return found

    def _compute(self) -> None:
        """What layers wait for."""
        if not self._waiting:
            return
        layers, self._waiting = self._waiting, []
        dtype, names = self._written().dtype, tuple(n for layer in layers for n in layer.names)
        rows = [as_convolution(self._rows[layer.names[0]]) for layer in layers]
        bias = [self._rows[name] for layer in layers for name in layer.names[1:]]
        taken = ops.as_taken(dtype, *(t for layer in layers for t in (layer.x, layer.grad)))
        self._measured[names] = torch.ops.privimage.measured_weight_grads.default(
            taken[::2], taken[1::2], rows, bias, *layers[0].geometry
        )

    def _written(self) -> torch.Tensor:
        """All rows; the first call makes the room for them."""
        if self._parts is None:
            self._parts = self._like.new_empty(self._count, self.size)
            parts = self._parts.split([shape.numel() for shape in self._shapes.values()], dim=1)
            for (each, shape), part in zip(self._shapes.items(), parts, strict=True):
                self._rows[each] = part.view(self._count, *shape)
        return self._parts


class _Kept(Slot):
    """Columns of an arena, which knows nothing of it, so that nothing waits for a collector."""

    def __init__(self, name: str, arena: _Arena) -> None:
        super().__init__(torch.empty(0))
        self._name, self.arena = name, arena

    @property
    def rows(self) -> torch.Tensor:
        """As of any slot."""
        return self.arena.rows(self._name)

    def take(
        self, x: torch.Tensor, grad: torch.Tensor, bias: Slot | None, geometry: ops.ConvGeometry
    ) -> bool:
        """Has the gradients written and measured at once, if they are the first ones here."""
        names: tuple[str, ...] = (self._name,)
        if isinstance(bias, _Kept) and bias.arena is self.arena and not bias.used:
            names += (bias._name,)
        elif bias is not None:
            return False
        if self.used:
            return False
        self.used = True
        if bias is not None:
            bias.used = True
        self.arena.add(_Layer(x.detach(), grad.detach(), names, geometry))
        return True


@dataclass(frozen=True)
class _Use:
    """A layer's tensors, measured; their gradients are computed again."""

    x: torch.Tensor
    grad: torch.Tensor
    shape: torch.Size
    geometry: ops.ConvGeometry
    norms: torch.Tensor
    weight: slice
    bias: slice | None
    module: int

    def squares(self) -> torch.Tensor:
        """The squared norm of each example's values, float64 [examples]."""
        return self.norms

    def add_to(self, total: torch.Tensor, scales: torch.Tensor) -> None:
        """Adds the scaled values to the flat sum."""
        bias = None if self.bias is None else total[self.bias]
        shape = self.shape if len(self.shape) == 4 else (*self.shape, 1, 1)
        weight = total[self.weight].view(shape)
        ops.recomputed_sum(self.x, self.grad, scales, weight, bias, self.geometry)


class _Later(Slot):
    """Instead of rows: the one layer that uses a weight; for its bias nothing at all."""

    def __init__(
        self,
        name: str,
        places: Mapping[str, slice],
        count: int,
        shape: torch.Size,
        dtype: torch.dtype,
        module: int,
    ) -> None:
        super().__init__(torch.empty(0))
        self.name = name
        self.use: _Use | None = None
        self._places, self._count, self._shape = places, count, shape
        self._dtype, self._module = dtype, module

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
        taps = (self._shape[2], self._shape[3]) if len(self._shape) == 4 else (1, 1)
        norms = ops.example_weight_norms(x, grad, self._count, taps, bias is not None, geometry)
        weight = self._places[self.name]
        place = self._places[bias.name] if isinstance(bias, _Later) else None
        self.use = _Use(x, grad, self._shape, geometry, norms, weight, place, self._module)
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
