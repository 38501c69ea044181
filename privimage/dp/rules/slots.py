"""Where the gradients of a micro-batch's examples go: rows of one tensor, written in place."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.graph import Node, get_gradient_edge

from privimage import ops
from privimage.errors import UserError


class Slot:
    """The gradients of one parameter, [examples, *shape]; a second use of it adds to the first.

    Attributes:
        used: whether a gradient was written.
        is_open: False while losses are computed. Whoever differentiates in there, as adversarial
            training does, wants other gradients than those of the losses.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self.used = False
        self.is_open = False

    @property
    def rows(self) -> torch.Tensor:
        """A view of the tensor that all slots share; holds anything until `used`."""
        return self._rows

    def add(self, parts: torch.Tensor) -> None:
        """Adds [examples, *shape] to what is there, nothing at first."""
        if self.used:
            self.rows.add_(parts)
        else:
            self.rows.copy_(parts)
        self.used = True

    def take(
        self, x: torch.Tensor, grad: torch.Tensor, bias: "Slot | None", geometry: ops.ConvGeometry
    ) -> bool:
        """Whether this slot takes a layer's tensors, instead of its gradients written in rows."""
        return False

    def take_read(self, indices: torch.Tensor, grad: torch.Tensor, padding_idx: int | None) -> bool:
        """As `take`, of an embedding: what was read, and the gradient of that."""
        return False

    def finish(self) -> None:
        """Zero, if nothing was written."""
        if not self.used:
            self.rows.zero_()
            self.used = True


class DerivedSlot(Slot):
    """The gradients of what was computed from parameters; takes memory once it is used.

    Attributes:
        edge: where they go on to in PyTorch's graph. That stays when the tensor is changed in place
            later: then the tensor holds something else, which has a slot of its own.
        dtype: of the tensor.
    """

    def __init__(self, value: torch.Tensor, count: int) -> None:
        super().__init__(torch.empty(0))
        self.edge = get_gradient_edge(value)
        self.dtype = value.dtype
        self._shape, self._device = (count, *value.shape), value.device
        self._has_rows = False

    @property
    def rows(self) -> torch.Tensor:
        """[examples, *shape], in float32 or better."""
        if not self._has_rows:
            dtype = torch.promote_types(self.dtype, torch.float32)
            self._rows = torch.empty(self._shape, dtype=dtype, device=self._device)
            self._has_rows = True
        return self._rows


Content = tuple[Node, int, int]
"""What tells apart what a tensor holds at one time and at another."""


def content(value: torch.Tensor) -> Content:
    """What a tensor that has a gradient holds now; another one after each change in place."""
    edge = get_gradient_edge(value)
    return edge.node, edge.output_nr, value._version


Slots = tuple[Slot | None, Slot | None]
"""Those of a layer's weight and bias; None for what is no trainable parameter."""


def opened(*slots: Slot | None) -> tuple[Slot | None, ...]:
    """The slots that are open, None for the others."""
    return tuple(slot if slot is not None and slot.is_open else None for slot in slots)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator for the backward pass of a function that has no second derivative.

    PyTorch's own would let it be lost without a word where nothing but the anchor needs it.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise UserError(
                "the losses differentiate a layer and then what comes out (create_graph=True), "
                "but per-example gradients have no second derivative; take such a penalty by "
                "finite differences, or leave it out"
            )
        return backward(ctx, *gradients)

    return checked


def claim(*slots: Slot | None) -> bool:
    """Makes the slots ready to be written together; True if the writer must add to them."""
    present = [slot for slot in slots if slot is not None]
    accumulate = any(slot.used for slot in present)
    for slot in present:
        if accumulate:
            slot.finish()
        slot.used = True
    return accumulate


def as_convolution(rows: torch.Tensor) -> torch.Tensor:
    """[examples, outputs, inputs], a linear layer's rows, as those of the 1x1 convolution it is."""
    return rows if rows.dim() == 5 else rows[..., None, None]


def write_weight_grad(
    x: torch.Tensor,
    grad: torch.Tensor,
    weight: Slot,
    bias: Slot | None,
    geometry: ops.ConvGeometry,
) -> None:
    """`ops.example_weight_grad` into the slots of weight and bias.

    A linear layer's weight [outputs, inputs] is taken for the 1x1 convolution that it is.
    """
    if weight.take(x, grad, bias, geometry):
        return
    accumulate = claim(weight, bias)
    rows = as_convolution(weight.rows)
    x, grad = ops.as_multiplied(torch.promote_types(rows.dtype, torch.float32), x, grad)
    bias_rows = None if bias is None else bias.rows
    # Straight to the operator, whose shapes are those of a layer that ran.
    torch.ops.privimage.example_weight_grad.default(x, grad, rows, bias_rows, *geometry, accumulate)
