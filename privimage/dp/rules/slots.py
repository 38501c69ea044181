"""Where the gradients of a micro-batch's examples go: rows of one tensor, written in place."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, overload

import torch
from torch.autograd import Function
from torch.autograd.graph import Node, get_gradient_edge

from privimage import ops
from privimage.dp.rules.packing import Packing
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


@dataclass(frozen=True)
class Examples:
    """The micro-batch that a rule works on.

    Attributes:
        count: number of examples.
        rows: examples x draws.
        anchor: an input that makes autograd visit whoever writes into a slot; has no gradient.
        slots: by the `id` of the trainable parameter.
        memory_format: that of images between convolutions.
        derived: by `id`, the tensors that were computed from parameters alone.
        derived_slots: by what such a tensor held when it was used with data.
        repeated: by what a tensor holds that repeats a parameter along its first dimension, the
            same with a first dimension of 1.
        merged: how long a first dimension is that holds rows and then windows, tokens or heads of
            each, after a view.
        packing: what was packed.
    """

    count: int
    rows: int
    anchor: torch.Tensor
    slots: MutableMapping[int, Slot]
    memory_format: torch.memory_format = torch.preserve_format
    derived: MutableMapping[int, torch.Tensor] = field(default_factory=dict)
    derived_slots: MutableMapping[Content, DerivedSlot] = field(default_factory=dict)
    repeated: MutableMapping[Content, torch.Tensor] = field(default_factory=dict)
    merged: set[int] = field(default_factory=set)
    packing: Packing = field(default_factory=Packing)

    def open(self) -> None:
        """The losses are computed: from now on gradients are written."""
        for slot in (*self.slots.values(), *self.derived_slots.values()):
            slot.is_open = True

    def in_format(self, images: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width] in the wanted memory format."""
        if self.memory_format is torch.preserve_format:
            return images
        return images.contiguous(memory_format=self.memory_format)

    def slots_of(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Slots:
        """The slots of a layer's parameters."""
        return self.slot_of(weight), self.slot_of(bias)

    def slot_of(self, tensor: torch.Tensor | None) -> Slot | None:
        """That of a trainable parameter, or of what a derived tensor holds now; else None."""
        if tensor is None or id(tensor) not in self.derived:
            return self.slots.get(id(tensor))
        held = content(tensor)
        if held not in self.derived_slots:
            self.derived_slots[held] = DerivedSlot(tensor, self.count)
        return self.derived_slots[held]

    def derive(self, value: torch.Tensor) -> torch.Tensor:
        """The tensor, computed from parameters alone, ready to be used as a parameter is."""
        self.derived[id(value)] = value
        return value

    def owns(self, value: Any) -> bool:
        """Whether it is a trainable parameter, or was computed from such alone."""
        return id(value) in self.slots or id(value) in self.derived

    def own(self, value: Any) -> tuple[Any, int | None]:
        """A trainable parameter as `expand` gives it, and 0; anything else as it is, and None."""
        return (self.expand(value), 0) if self.owns(value) else (value, None)

    @overload
    def hide(self, tensor: torch.Tensor) -> torch.Tensor: ...

    @overload
    def hide(self, tensor: torch.Tensor | None) -> torch.Tensor | None: ...

    def hide(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """A trainable parameter without its own gradient; any other tensor as it is."""
        return tensor.detach() if tensor is not None and self.owns(tensor) else tensor

    def note_view(self, x: torch.Tensor, view: torch.Tensor) -> None:
        """A view of data: what stood behind its rows may have been merged with them."""
        if x.dim() and view.dim() and self.has_rows(x) and len(view) % len(x) == 0:
            self.merged.add(len(view))

    def has_rows(self, x: torch.Tensor, dimension: int = 0) -> bool:
        """Whether this dimension is as long as that of the rows, examples or merged rows is."""
        found = x.shape[dimension] if x.dim() > dimension else None
        return found in (self.rows, self.count) or found in self.merged

    def check_rows(self, x: torch.Tensor, dimension: int = 0) -> None:
        """Raises UserError unless it `has_rows`."""
        if not self.has_rows(x, dimension):
            which = ("first", "second")[dimension]
            way_out = "; pad what is packed first (pad_packed_sequence)"
            raise UserError(
                f"the {which} dimension of its input {list(x.shape)} must be that of the "
                f"{self.rows} rows (or {self.count} examples) of the batch"
                f"{way_out if self.packing.is_used else ''}"
            )

    def expand(self, tensor: torch.Tensor) -> torch.Tensor:
        """[*shape] -> [count, *shape] without a copy; a parameter's gradient goes into its slot."""
        slot = self.slot_of(tensor)
        if slot is None:
            return tensor.expand(self.count, *tensor.shape)
        expanded: torch.Tensor = _Expand.apply(  # type: ignore[no-untyped-call]
            self.anchor, tensor.detach(), slot
        )
        return expanded

    def by_row(self, tensor: torch.Tensor, rows: int, dimensions: int) -> torch.Tensor:
        """A parameter for each of `rows` rows, with so many dimensions as PyTorch broadcasts it.

        Of one that has a first dimension for the rows already, each row gets its own part.
        """
        if tensor.dim() == dimensions and id(tensor) in self.derived:
            tensor = self.repeated.get(content(tensor), tensor)
        part: torch.Tensor = self.expand(tensor)
        draws = rows // self.count
        if tensor.dim() == dimensions and len(tensor) == 1:
            part = part.squeeze(1)
        elif tensor.dim() == dimensions:
            own = part.unflatten(1, (self.count, draws)).diagonal(0, 0, 1)
            by_example: torch.Tensor = own.movedim(-1, 0)
            return by_example.flatten(0, 1)
        shape = part.shape[1:]
        by_draw = part[:, None].expand(-1, draws, *shape)
        return by_draw.reshape(rows, *[1] * (dimensions - 1 - len(shape)), *shape)


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


class _Expand(Function):
    """weight [*shape] -> [examples, *shape] without a copy; its gradient goes into `slot`."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, weight: torch.Tensor, slot: Slot) -> torch.Tensor:
        ctx.slot = slot
        return weight.expand_as(slot.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        if ctx.slot.is_open:
            ctx.slot.add(gradient)
        return None, None, None
