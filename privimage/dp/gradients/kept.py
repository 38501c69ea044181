"""Gradients that are kept until all norms are known, in tensors that come into being late."""

from dataclasses import dataclass

import torch

from privimage import ops
from privimage.dp.gradients.unchanged import Unchanged
from privimage.dp.rules.slots import Slot, as_convolution

_TOGETHER = 4
"""Layers whose gradients are computed in one call: q, k, v and o of an attention block."""


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
    unchanged: Unchanged

    @property
    def is_small(self) -> bool:
        """Whether it has a pixel alone: such may wait for others until the end."""
        return self.x.shape[2:].numel() == 1

    def fits(self, other: "_Layer") -> bool:
        """Whether one call can do both."""
        return self.geometry == other.geometry and len(self.names) == len(other.names)


class Arena:
    """The kept gradients of parameters that follow each other in the flat sum.

    Small layers wait for each other, so that one call does several, those of a pixel whatever comes
    in between; whoever wants to see what was written finds it written.

    Attributes:
        module: the row of the squared norms that they count in.
        size: scalars in the parameters.
    """

    def __init__(
        self, first: int, count: int, dtype: torch.dtype, device: torch.device, module: int
    ) -> None:
        self.module, self.size = module, 0
        self._first, self._count, self._dtype, self._device = first, count, dtype, device
        self._shapes: dict[str, torch.Size] = {}
        self._parts: torch.Tensor | None = None
        self._rows: dict[str, torch.Tensor] = {}
        self._measured: dict[tuple[str, ...], torch.Tensor] = {}
        self._waiting: tuple[list[_Layer], list[_Layer]] = [], []  # Images, and vectors.

    def hold(self, name: str, shape: torch.Size) -> None:
        """Plans room for another parameter, which comes next in the flat sum."""
        self._shapes[name] = shape
        self.size += shape.numel()

    def rows(self, name: str) -> torch.Tensor:
        """[examples, *shape] of a parameter, to be written into: what was measured is no more."""
        self._written()
        for waiting in self._waiting:
            if any(name in layer.names for layer in waiting):
                self._compute(waiting)
        if self._measured:
            self._measured = {k: v for k, v in self._measured.items() if name not in k}
        return self._rows[name]

    def add(self, layer: _Layer) -> None:
        """Has a layer's gradients written and measured, the first ones of its parameters."""
        waiting = self._waiting[layer.is_small]
        if waiting and not layer.fits(waiting[-1]):
            self._compute(waiting)
        waiting.append(layer)
        if len(waiting) == _TOGETHER or self._shapes[layer.names[0]][2:].numel() > 1:
            self._compute(waiting)

    def squares(self) -> torch.Tensor:
        """The squared norm of each example's values, float64 [examples]."""
        parts = self._whole()
        found = list(self._measured.values())
        if columns := self._unmeasured():
            found.append(ops.squared_norms(parts, columns))
        return _added(found)

    def add_to(self, total: torch.Tensor, scales: torch.Tensor, *, accumulate: bool) -> None:
        """Writes the scaled values into the flat sum, or adds them."""
        place = slice(self._first, self._first + self.size)
        ops.scaled_sum(self._whole(), scales, total[place], accumulate)

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

    def _compute(self, waiting: list[_Layer]) -> None:
        """What these layers wait for, who do no longer."""
        if not waiting:
            return
        layers = waiting[:]
        waiting.clear()
        for layer in layers:
            layer.unchanged.check()
        dtype = torch.promote_types(self._written().dtype, torch.float32)
        names = tuple(name for layer in layers for name in layer.names)
        rows = [as_convolution(self._rows[layer.names[0]]) for layer in layers]
        bias = [self._rows[name] for layer in layers for name in layer.names[1:]]
        taken = ops.as_multiplied(dtype, *(t for layer in layers for t in (layer.x, layer.grad)))
        self._measured[names] = torch.ops.privimage.measured_weight_grads.default(
            taken[::2], taken[1::2], rows, bias, *layers[0].geometry
        )

    def _whole(self) -> torch.Tensor:
        """All rows, with what layers wait for."""
        for waiting in self._waiting:
            self._compute(waiting)
        return self._written()

    def _written(self) -> torch.Tensor:
        """All rows; the first call makes the room for them."""
        if self._parts is None:
            size = (self._count, self.size)
            self._parts = torch.empty(size, dtype=self._dtype, device=self._device)
            parts = self._parts.split([shape.numel() for shape in self._shapes.values()], dim=1)
            for (each, shape), part in zip(self._shapes.items(), parts, strict=True):
                self._rows[each] = part.view(self._count, *shape)
        return self._parts


def _added(found: list[torch.Tensor]) -> torch.Tensor:
    """Their sum, by pairs: torch.compile makes one kernel of it, and of a stack a copy of each."""
    while len(found) > 1:
        pairs = [one + other for one, other in zip(found[::2], found[1::2], strict=False)]
        found = pairs + found[2 * len(pairs) :]
    return found[0]


class Kept(Slot):
    """A parameter's columns of an arena, kept until all that a step needs of them is known.

    It knows the arena and the arena not it: no cycle has its memory wait for Python's collector.
    """

    def __init__(self, name: str, arena: Arena) -> None:
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
        if isinstance(bias, Kept) and bias.arena is self.arena and not bias.used:
            names += (bias._name,)
        elif bias is not None:
            return False
        if self.used:
            return False
        self.used = True
        if bias is not None:
            bias.used = True
        x, grad = x.detach(), grad.detach()
        self.arena.add(_Layer(x, grad, names, geometry, Unchanged(self._name, x, grad)))
        return True
