"""What one example's forward and backward pass does and holds, watched on made-up data."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from privimage import ops
from privimage.dp.gradients.chance import seeded
from privimage.dp.gradients.engine import ExampleGradients, Losses
from privimage.dp.rules.slots import Slot


@dataclass(frozen=True)
class Use:
    """One use of a weight by a convolution, a linear layer or an embedding.

    Attributes:
        weight: the parameter's name.
        bias: that of the bias that is used with it, if it is.
        shape: of the weight.
        positions: pixels (or tokens) x draws that an example's gradient sums over.
        held: values of the layer's input and of its output's gradient, an example; an index of an
            embedding stands for two.
        pixel_pairs: of the input, over which products are summed for an example's Gram matrix.
        groups: of the convolution.
        is_table: whether an embedding reads it.
    """

    weight: str
    bias: str | None
    shape: tuple[int, ...]
    positions: int
    held: int
    pixel_pairs: int = 0
    groups: int = 1
    is_table: bool = False


@dataclass(frozen=True)
class Pass:
    """An example's forward and backward pass.

    Attributes:
        uses: in the order of the backward pass.
        writes: for each parameter, in the order in which gradients are written, its name and the
            most bytes that were in memory since the write before it, gradients of parameters apart.
        rest: the most bytes after the last write.
        others: parameters with another use than those, by name.
        shared: the most bytes of what is computed from parameters alone, such as a weight in
            another memory format; in none of the other numbers, for all examples have it together.
    """

    uses: tuple[Use, ...]
    writes: tuple[tuple[str, int], ...]
    rest: int
    others: frozenset[str] = frozenset()
    shared: int = 0

    def peak(self, kept: Mapping[str, float]) -> float:
        """The most bytes at any time, if writing a parameter's gradient leaves so many behind."""
        behind, most = 0.0, 0.0
        for name, live in self.writes:
            most = max(most, live + behind)
            behind += kept.get(name, 0.0)
        return max(most, self.rest + behind)

    def written_first(self) -> "Pass":
        """The same, if the memory of all gradients were taken before the pass begins."""
        names = ((name, 0) for name, _ in self.writes)
        return replace(self, writes=(*names, *(("", live) for _, live in self.writes)))


def observe(
    gradients: ExampleGradients,
    losses: Losses,
    example: Sequence[torch.Tensor],
    draws: int,
) -> Pass:
    """Runs one example through `losses` and back; leaves PyTorch's random state as it was.

    Args:
        gradients: of the model.
        losses: as for `ExampleGradients`.
        example: made-up tensors [draws, ...].
        draws: rows of the example.
    """
    arena, example = gradients.arena(1), [tensor.clone() for tensor in example]
    model, live = gradients.model, _LiveBytes()
    live.ignore([*example, arena])
    live.ignore([*model.parameters(), *model.buffers()], shared=True)
    notes = _Notes([], [], set(), live)
    slots = {
        name: _Noting(name, slot.rows, notes) for name, slot in gradients.slots_in(arena).items()
    }
    with seeded(0, gradients.device), live:
        gradients.write_into(slots, losses, *example, draws=draws)
    others = frozenset(notes.others)
    return Pass(tuple(notes.uses), tuple(notes.writes), live.most(), others, live.most_shared)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators return, until they are freed.

    What follows from `shared` tensors alone is counted apart.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, weakref.ref[torch.UntypedStorage] | None] = {}
        self._shared: set[int] = set()
        self._now = self._most = 0
        self._now_shared = self.most_shared = 0

    def ignore(self, tensors: Iterable[torch.Tensor], *, shared: bool = False) -> None:
        """Tensors that were there before."""
        for tensor in tensors:
            place = tensor.untyped_storage()._cdata
            self._storages[place] = None
            if shared:
                self._shared.add(place)

    def most(self) -> int:
        """The most bytes at any time since the call before."""
        found, self._most = self._most, self._now
        return found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._count(storage, shared=bool(given) and given <= self._shared)
        return result

    def _count(self, storage: torch.UntypedStorage, *, shared: bool) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._storages:
            return

        def forget(_: object) -> None:
            del self._storages[place]
            self._grow(-size, shared=shared)
            self._shared.discard(place)

        self._storages[place] = weakref.ref(storage, forget)
        self._grow(size, shared=shared)
        if shared:
            self._shared.add(place)

    def _grow(self, size: int, *, shared: bool) -> None:
        if shared:
            self._now_shared += size
            self.most_shared = max(self.most_shared, self._now_shared)
        else:
            self._now += size
            self._most = max(self._most, self._now)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """Of all tensors among nested values."""
    tensors = [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta]


@dataclass(frozen=True)
class _Notes:
    """What the slots of one pass write down."""

    uses: list[Use]
    writes: list[tuple[str, int]]
    others: set[str]
    live: _LiveBytes


class _Noting(Slot):
    """A slot that notes who writes into it and when; a layer's tensors are noted, not taken."""

    def __init__(self, name: str, rows: torch.Tensor, notes: _Notes) -> None:
        super().__init__(rows)
        self.name = name
        self._notes = notes
        self._noted = False

    @property
    def rows(self) -> torch.Tensor:
        """As of any slot; whoever writes here by himself has another use."""
        self._note()
        self._notes.others.add(self.name)
        return super().rows

    def take(
        self, x: torch.Tensor, grad: torch.Tensor, bias: Slot | None, geometry: ops.ConvGeometry
    ) -> bool:
        """Notes the use, if the bias is none or a parameter; one that is derived needs rows."""
        if not (bias is None or isinstance(bias, _Noting)):
            return False
        self._note()
        positions = grad.numel() // max(grad.shape[1], 1)
        shape = tuple(super().rows.shape[1:])
        name = None
        if isinstance(bias, _Noting):
            bias._note()
            bias.used, name = True, bias.name
        self.used = True
        held = x.numel() + grad.numel()
        pairs, groups = _pixel_pairs(x, shape[2:] or (1, 1), geometry), geometry[3]
        self._notes.uses.append(Use(self.name, name, shape, positions, held, pairs, groups))
        return True

    def take_read(self, indices: torch.Tensor, grad: torch.Tensor, padding_idx: int | None) -> bool:
        """Notes the use."""
        self._note()
        self.used = True
        held = grad.numel() + 2 * indices.numel()
        shape = tuple(super().rows.shape[1:])
        use = Use(self.name, None, shape, indices.numel(), held, is_table=True)
        self._notes.uses.append(use)
        return True

    def _note(self) -> None:
        if not self._noted:
            self._notes.writes.append((self.name, self._notes.live.most()))
            self._noted = True


def _pixel_pairs(x: torch.Tensor, taps: Sequence[int], geometry: ops.ConvGeometry) -> int:
    """Pairs of pixels of [draws, channels, height, width] that taps read at two positions at once.

    Their distance is a multiple of the stride, and of each stride some pixels may not be read.
    """
    pairs = len(x) ** 2
    axes = zip(x.shape[2:], taps, *geometry[:3], strict=True)
    for size, count, stride, padding, dilation in axes:
        offsets = {(tap * dilation - padding) % stride for tap in range(count)}
        pairs *= sum(len(range(offset, size, stride)) ** 2 for offset in offsets)
    return pairs
