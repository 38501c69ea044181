"""Packed sequences: which row of the batch each of them is, which what is packed no longer says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import _VF
from torch.utils.weak import WeakTensorKeyDictionary

from privimage.errors import UserError

_PACK = _VF._pack_padded_sequence
_PAD = _VF._pad_packed_sequence

FOLLOWED = {torch.sort, torch.Tensor.sort, _PACK, _PAD}
"""The calls that say how a batch is packed."""


@dataclass(frozen=True)
class Packed:
    """How a batch was packed.

    Attributes:
        order: the row that is packed first, the second, and so on.
        steps: to which all rows had been padded.
    """

    order: torch.Tensor
    steps: int

    def pad(
        self, values: torch.Tensor, batch_sizes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is packed as [rows, steps, ...], in the batch's own order, and the rows' lengths."""
        padded, lengths = _PAD(values, batch_sizes, True, 0.0, self.steps)
        return self.unsorted(padded), self.unsorted(lengths)

    def pack(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The inverse of `pad`: the values."""
        values: torch.Tensor = _PACK(self.sorted(x), self.sorted(lengths), True)[0]
        return values

    def sorted(self, x: torch.Tensor, dimension: int = 0) -> torch.Tensor:
        """The rows, which this dimension is, in the order in which they are packed."""
        return x.index_select(dimension, self.order.to(x.device))

    def unsorted(self, x: torch.Tensor, dimension: int = 0) -> torch.Tensor:
        """The inverse of `sorted`."""
        return x.index_select(dimension, self.order.argsort().to(x.device))


class Packing:
    """What a pass has packed, known again by its batch sizes, whatever becomes of its values.

    `pack_padded_sequence` sorts the lengths, puts the rows in that order, and packs them by the
    sorted lengths. So does whoever sorts before.
    """

    def __init__(self) -> None:
        self._orders, self._packed = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], output: Any) -> None:
        """Notes what one of `FOLLOWED` has done.

        Raises:
            UserError: it pads to the longest sequence, which depends on who else is there.
        """
        if func == _PACK:
            x, lengths, batch_first = args
            if (order := self._orders.get(lengths)) is not None:
                self._packed[output[1]] = Packed(order, x.shape[int(batch_first)])
        elif func == _PAD:
            packed, steps = self._packed.get(args[1]), args[4]
            if packed is not None and steps < packed.steps:
                raise UserError(
                    "pad_packed_sequence pads to the longest sequence of the batch, which ties an "
                    "example to the others; give it total_length, as in total_length=x.shape[1]"
                )
        elif args and args[0].dim() == 1:
            values, order = output
            before = self._orders.get(args[0])
            self._orders[values] = order if before is None else before[order]

    @property
    def is_used(self) -> bool:
        """Whether something is packed."""
        return len(self._packed) > 0

    def of(self, batch_sizes: torch.Tensor) -> Packed:
        """How it was packed; raises UserError if nobody saw how it was sorted."""
        found: Packed | None = self._packed.get(batch_sizes)
        if found is None:
            raise UserError(
                "batches come in no order: pack in the losses, by pack_padded_sequence(..., "
                "enforce_sorted=False)"
            )
        return found
