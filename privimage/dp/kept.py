"""Gradients that are kept until all norms are known, in tensors that come into being late."""

import torch

from privimage import ops
from privimage.dp.slots import Slot, as_convolution


class Arena:
    """The kept gradients of parameters that follow each other in the flat sum.

    Attributes:
        module: the row of the squared norms that they count in.
        size: scalars in the parameters.
    """

    def __init__(self, first: int, count: int, dtype: torch.dtype, module: int) -> None:
        self.module, self.size = module, 0
        self._first, self._count, self._dtype = first, count, dtype
        self._shapes: dict[str, torch.Size] = {}
        self._parts: torch.Tensor | None = None
        self._rows: dict[str, torch.Tensor] = {}
        self._measured: dict[tuple[str, ...], torch.Tensor] = {}

    def hold(self, name: str, shape: torch.Size) -> None:
        """Plans room for another parameter, which comes next in the flat sum."""
        self._shapes[name] = shape
        self.size += shape.numel()

    def rows(self, name: str) -> torch.Tensor:
        """[examples, *shape] of a parameter, to be written into: what was measured is no more."""
        self._written()
        if self._measured:
            self._measured = {k: v for k, v in self._measured.items() if name not in k}
        return self._rows[name]

    def measured(self, names: tuple[str, ...], squares: torch.Tensor) -> None:
        """Takes note of the squared norm of what was just written into the rows of `names`."""
        self._measured[names] = squares

    def squares(self) -> torch.Tensor:
        """The squared norm of each example's values, float64 [examples]."""
        total = torch.zeros(self._count, dtype=torch.float64)
        for squares in self._measured.values():
            total += squares
        for columns in self._unmeasured():
            total += ops.squared_norms(self._written()[:, columns])
        return total

    def add_to(self, total: torch.Tensor, scales: torch.Tensor) -> None:
        """Adds the scaled values to the flat sum."""
        parts = total[self._first : self._first + self.size]
        parts += ops.scaled_sum(self._written(), scales)

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

    def _written(self) -> torch.Tensor:
        """All rows; the first call makes the room for them."""
        if self._parts is None:
            self._parts = torch.empty(self._count, self.size, dtype=self._dtype)
            parts = self._parts.split([shape.numel() for shape in self._shapes.values()], dim=1)
            for (each, shape), part in zip(self._shapes.items(), parts, strict=True):
                self._rows[each] = part.view(self._count, *shape)
        return self._parts


class Kept(Slot):
    """Columns of an arena, which knows nothing of it, so that nothing waits for a collector."""

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
        rows = as_convolution(self.rows)
        x, grad = ops.as_taken(rows.dtype, x, grad)
        bias_rows = None if bias is None else bias.rows
        squares = torch.ops.privimage.measured_weight_grad.default(
            x, grad, rows, bias_rows, *geometry
        )
        self.used = True
        if bias is not None:
            bias.used = True
        self.arena.measured(names, squares)
        return True
