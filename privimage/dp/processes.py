"""Several processes that take a step together: all compute clipped sums, one does the rest."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import distributed

from privimage.errors import UserError

_FAILED = -1


class Processes:
    """The processes of a group of `torch.distributed`, or this one alone.

    The first has the secret key, the ledger and the optimiser's state. It samples, adds the noise
    and updates. The others get indices and parameters from it, and give it clipped sums; nothing
    that they draw is noise. Between processes go indices and sums without noise, in the clear.

    Args:
        group: None for all processes, if `torch.distributed` is initialised.
        device: of all tensors that are exchanged.

    Raises:
        UserError: this process is not in the group.

    Attributes:
        rank: of this process in the group.
        count: how many there are.
    """

    def __init__(self, group: "distributed.ProcessGroup | None", device: torch.device) -> None:
        self.rank, self.count = 0, 1
        self._group, self._device = group, device
        if group is not None or _is_initialized():
            self.rank = distributed.get_rank(group)
            self.count = distributed.get_world_size(group)
        if self.rank < 0:
            raise UserError("this process is not in the process_group; make the engine in those")

    @property
    def is_first(self) -> bool:
        """Whether this process samples, adds noise and updates."""
        return self.rank == 0

    def check_first(self, what: str) -> None:
        """Raises UserError in all processes but the first, to which `what` belongs."""
        if not self.is_first:
            raise UserError(
                f"{what} belongs to the first process; this is rank {self.rank} of {self.count}"
            )

    @contextmanager
    def agreed(self, terms: Callable[[], str] = str) -> Iterator[None]:
        """A block that all processes leave together: where one fails in it, all fail.

        Args:
            terms: says what must be alike in all processes.

        Raises:
            UserError: another process failed, or has other terms, or there are others that this
                one did not know of when it was made.
        """
        if self.count == 1:
            self._check_alone()
            yield
            return
        try:
            yield
            digest = hashlib.sha256(terms().encode()).digest()
        # Ctrl+C too, so that whoever catches it, and lives on, leaves nobody waiting.
        except (Exception, KeyboardInterrupt, SystemExit):
            self._extremes(_FAILED)
            raise
        least, most = self._extremes(int.from_bytes(digest[:7], "big"))
        if least == _FAILED:
            raise UserError("another process could not take the step; its own error says why")
        if least != most:
            raise UserError(
                "the processes differ in privacy, draws, model (parameters, buffers, train() or "
                "eval()), number of examples or steps taken; make model, data and engine alike in "
                "all, and load one state in all"
            )

    def all_say(self, yes: bool) -> bool:
        """Whether all processes say yes."""
        return yes if self.count == 1 else self._extremes(int(yes))[0] == 1

    def name_of_first(self, name: str) -> str:
        """The first one's name, in hexadecimal digits, of which all have as many."""
        if self.count == 1:
            return name
        digits = torch.tensor(list(bytes.fromhex(name)), dtype=torch.uint8, device=self._device)
        distributed.broadcast(digits, group=self._group, group_src=0)
        return bytes(digits.tolist()).hex()

    def in_turn(self, act: Callable[[], None]) -> None:
        """Calls `act` in the first process, and in the others unless that failed: then all fail."""
        with self.agreed():
            if self.is_first:
                act()
        if not self.is_first:
            act()

    def own_share(self, chosen: torch.Tensor) -> torch.Tensor:
        """What is this process's to do of the first one's choice; the others' choice is dropped.

        Args:
            chosen: int64 [sampled].
        """
        if self.count == 1:
            return chosen
        size = torch.tensor([len(chosen)], device=self._device)
        distributed.broadcast(size, group=self._group, group_src=0)
        if not self.is_first:
            chosen = chosen.new_empty(int(size))
        chosen = chosen.to(self._device)
        distributed.broadcast(chosen, group=self._group, group_src=0)
        return chosen[self.rank :: self.count].cpu()

    def add_up(self, part: torch.Tensor) -> torch.Tensor:
        """The int64 sum of all processes' parts, in the first; elsewhere it means nothing."""
        if self.count > 1:
            distributed.reduce(part, group=self._group, group_dst=0)
        return part

    def hand_out(
        self, tensors: Iterable[torch.Tensor], after: Callable[[], None] = lambda: None
    ) -> None:
        """Gives the first process's values to the same tensors of all others.

        Args:
            tensors: of any types; as `layout` says it, alike in all processes.
            after: called before that, in the first process; if it fails there, all fail.
        """
        with self.agreed():
            if self.is_first:
                after()
            if self.count == 1:
                return
            parts = [_without_repeats(tensor.detach()) for tensor in tensors]
            groups = [list(some) for _, some in groupby(parts, lambda part: part.dtype)]
            # As bytes, since no backend sends every type.
            sent = [torch.cat([_bytes(part) for part in members]) for members in groups]
        for members, values in zip(groups, sent, strict=True):
            distributed.broadcast(values, group=self._group, group_src=0)
            if not self.is_first:
                sizes = [part.numel() for part in members]
                received = values.view(members[0].dtype).split(sizes)
                for part, given in zip(members, received, strict=True):
                    part.copy_(given.view(part.shape))

    def _check_alone(self) -> None:
        if self._group is None and _is_initialized() and distributed.get_world_size() > 1:
            raise UserError(
                "the engine was made before torch.distributed was initialised, so every process "
                "would train a model of its own, and ε hold for one of them; make the engine after "
                "init_process_group, or give each a process_group of its own if that is meant"
            )

    def _extremes(self, number: int) -> tuple[int, int]:
        """The least and the greatest of all processes' numbers."""
        found = torch.tensor([number, -number], device=self._device)
        distributed.all_reduce(found, distributed.ReduceOp.MIN, group=self._group)
        least, negative = found.tolist()
        return least, -negative


def _is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def layout(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """What must be alike for `hand_out`: names, shapes and types."""
    return repr([(name, _without_repeats(t).shape, t.shape, t.dtype) for name, t in tensors])


def _without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """What of an expanded tensor is in memory, each value once; any other tensor as it is."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)
