"""The micro-batch that a rule works on: whose rows those are, and how each uses a parameter."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch.autograd import Function

from privimage.dp.rules.packing import Packing
from privimage.dp.rules.slots import (
    Content,
    DerivedSlot,
    Slot,
    Slots,
    content,
    once_differentiable,
)
from privimage.errors import UserError


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
            way_out = "call it on all rows and mask what comes out, where some are chosen first"
            if self.packing.is_used:
                way_out = "pad what is packed first (pad_packed_sequence)"
            raise UserError(
                f"the {which} dimension of its input {list(x.shape)} must be that of the "
                f"{self.rows} rows (or {self.count} examples) of the batch; {way_out}"
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
