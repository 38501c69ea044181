"""Where the gradients of a micro-batch's examples go: rows of one tensor, written in place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from privimage import ops


class Slot:
    """The gradients of one parameter, [examples, *shape]; a second use of it adds to the first.

    Attributes:
        used: whether a gradient was written.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self.used = False

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

    def finish(self) -> None:
        """Zero, if nothing was written."""
        if not self.used:
            self.rows.zero_()
            self.used = True


Slots = tuple[Slot | None, Slot | None]
"""Those of a layer's weight and bias; None for what is no trainable parameter."""


def claim(*slots: Slot | None) -> bool:
    """Makes the slots ready to be written together; True if the writer must add to them."""
    present = [slot for slot in slots if slot is not None]
    accumulate = any(slot.used for slot in present)
    for slot in present:
        if accumulate:
            slot.finish()
        slot.used = True
    return accumulate


@dataclass(frozen=True)
class Examples:
    """The micro-batch that a rule works on.

    Attributes:
        count: number of examples.
        anchor: an input that makes autograd visit whoever writes into a slot; has no gradient.
        slots: by the `id` of the trainable parameter.
        memory_format: that of images between convolutions.
    """

    count: int
    anchor: torch.Tensor
    slots: Mapping[int, Slot]
    memory_format: torch.memory_format = torch.preserve_format

    def in_format(self, images: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width] in the wanted memory format."""
        if self.memory_format is torch.preserve_format:
            return images
        return images.contiguous(memory_format=self.memory_format)

    def slots_of(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Slots:
        """The slots of a layer's parameters."""
        return self.slots.get(id(weight)), self.slots.get(id(bias))

    def own(self, value: Any) -> tuple[Any, int | None]:
        """A trainable parameter as `expand` gives it, and 0; anything else as it is, and None."""
        if isinstance(value, torch.Tensor) and id(value) in self.slots:
            return self.expand(value), 0
        return value, None

    def hide(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """A trainable parameter without its own gradient; any other tensor as it is."""
        return tensor.detach() if tensor is not None and id(tensor) in self.slots else tensor

    def expand(self, tensor: torch.Tensor) -> torch.Tensor:
        """[*shape] -> [count, *shape] without a copy; a parameter's gradient goes into its slot."""
        slot = self.slots.get(id(tensor))
        if slot is None:
            return tensor.expand(self.count, *tensor.shape)
        expanded: torch.Tensor = _Expand.apply(  # type: ignore[no-untyped-call]
            self.anchor, tensor.detach(), slot
        )
        return expanded


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
    rows = weight.rows if weight.rows.dim() == 5 else weight.rows[..., None, None]
    x, grad = ops.as_taken(rows.dtype, x, grad)
    bias_rows = None if bias is None else bias.rows
    # Straight to the operator, whose shapes are those of a layer that ran.
    torch.ops.privimage.example_weight_grad.default(x, grad, rows, bias_rows, *geometry, accumulate)


class _Expand(Function):
    """weight [*shape] -> [examples, *shape] without a copy; its gradient goes into `slot`."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, weight: torch.Tensor, slot: Slot) -> torch.Tensor:
        ctx.slot = slot
        return weight.expand_as(slot.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        ctx.slot.add(gradient)
        return None, None, None
