"""Gradients that are computed for the sum once all norms are known: layers hold on to tensors."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NoReturn

import torch

from privimage import ops
from privimage.dp.gradients.ghost import ghost_squares
from privimage.dp.gradients.unchanged import Unchanged
from privimage.dp.rules.slots import Slot
from privimage.errors import UserError


@dataclass(frozen=True)
class HeldUse(ABC):
    """The one use of a weight: what of it is held, and the norms that were found.

    Attributes:
        norms: the squared norm of each example's values, or a bound, float64 [examples].
        module: the row of the squared norms that it counts in.
    """

    norms: torch.Tensor
    module: int

    def squares(self) -> torch.Tensor:
        """As of an `Arena`."""
        return self.norms

    @abstractmethod
    def add_to(self, total: torch.Tensor, scales: torch.Tensor, *, accumulate: bool) -> None:
        """Writes the scaled values into the flat sum, or adds them."""


@dataclass(frozen=True)
class LayerUse(HeldUse):
    """Of a convolution or linear layer."""

    x: torch.Tensor
    grad: torch.Tensor
    shape: torch.Size
    geometry: ops.ConvGeometry
    weight: slice
    bias: slice | None

    def add_to(self, total: torch.Tensor, scales: torch.Tensor, *, accumulate: bool) -> None:
        """As of any use."""
        bias = None if self.bias is None else total[self.bias]
        shape = self.shape if len(self.shape) == 4 else (*self.shape, 1, 1)
        weight = total[self.weight].view(shape)
        ops.recomputed_sum(self.x, self.grad, scales, weight, bias, self.geometry, accumulate)


@dataclass(frozen=True)
class TableUse(HeldUse):
    """Of an embedding: an example's gradient has rows only for what it read."""

    indices: torch.Tensor
    grad: torch.Tensor
    padding_idx: int | None
    shape: torch.Size
    weight: slice

    def add_to(self, total: torch.Tensor, scales: torch.Tensor, *, accumulate: bool) -> None:
        """As of any use."""
        table = total[self.weight].view(self.shape)
        if not accumulate:
            table.zero_()
        ops.recomputed_embedding_sum(self.indices, self.grad, scales, table, self.padding_idx)


class Later(Slot):
    """Instead of rows: the one use of a weight; for the bias beside it nothing at all.

    Formal guarantee: what the use adds is what its norms were measured of
    (tests/dp/test_recompute.py::test_what_changes_before_it_is_added_is_refused).

    Args:
        name: of the parameter.
        shape: of it.
        place: of it in the flat sum.
        count: number of examples.
        dtype: of gradients.
        module: the row of the squared norms that it counts in.
        by_gram: whether the norm is a bound by Gram matrices.

    Attributes:
        keeps_copies: whether changes by way of `.data` are found, too.
    """

    keeps_copies = False

    def __init__(
        self,
        name: str,
        shape: torch.Size,
        place: slice,
        *,
        count: int,
        dtype: torch.dtype,
        module: int,
        by_gram: bool,
    ) -> None:
        super().__init__(torch.empty(0))
        self._use: HeldUse | None = None
        self._unchanged: Unchanged | None = None
        self._name, self._shape, self._place = name, shape, place
        self._count, self._dtype, self._module = count, dtype, module
        self._by_gram = by_gram

    def taken(self) -> HeldUse | None:
        """The use; None if there was none. Raises UserError if what is held has changed since."""
        if self._unchanged is not None:
            self._unchanged.check()
        return self._use

    @property
    def rows(self) -> torch.Tensor:
        """None; raises UserError."""
        return self._refuse()

    def take(
        self, x: torch.Tensor, grad: torch.Tensor, bias: Slot | None, geometry: ops.ConvGeometry
    ) -> bool:
        """Measures the layer's gradients and holds on to its tensors."""
        if self.used or (bias is not None and (bias.used or not isinstance(bias, Later))):
            self._refuse()
        x, grad = ops.as_multiplied(self._dtype, x.detach(), grad.detach())
        with_bias, count = bias is not None, self._count
        taps = (self._shape[2], self._shape[3]) if len(self._shape) == 4 else (1, 1)
        if self._by_gram:
            norms = ghost_squares(x, grad, count, taps, geometry, with_bias=with_bias)
        else:
            norms = ops.example_weight_norms(x, grad, count, taps, with_bias, geometry)
        place = bias._place if isinstance(bias, Later) else None
        self._unchanged = self._watched(x, grad)
        self._use = LayerUse(
            *(norms, self._module, x, grad, self._shape, geometry, self._place, place)
        )
        for slot in (self, bias):
            if slot is not None:
                slot.used = True
        return True

    def take_read(self, indices: torch.Tensor, grad: torch.Tensor, padding_idx: int | None) -> bool:
        """Measures an embedding's gradients and holds on to its tensors."""
        if self.used:
            self._refuse()
        (grad,) = ops.as_taken(self._dtype, grad.detach())
        read = indices.reshape(self._count, -1)
        grad = grad.reshape(*read.shape, self._shape[1])
        norms = ops.example_embedding_norms(read, grad, self._shape[0], padding_idx)
        self._unchanged = self._watched(read, grad)
        self._use = TableUse(
            *(norms, self._module, read, grad, padding_idx, self._shape, self._place)
        )
        self.used = True
        return True

    def finish(self) -> None:
        """Nothing: what was not used adds nothing."""

    def _watched(self, *tensors: torch.Tensor) -> Unchanged:
        return Unchanged(self._name, *tensors, with_copies=self.keeps_copies)

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"parameter '{self._name}' is not used as when it was planned for; "
            f"keep it: plan.choosing('{self._name}', 'keep')"
        )
