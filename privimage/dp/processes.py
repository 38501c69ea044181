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
    def agreed(self, terms: str = "") -> Iterator[None]:
        """A block that all processes leave together: where one fails in it, all fail.

        Args:
            terms: what must be alike in all processes.

        Raises:
            UserError: another process failed, or has other terms.
        """
        if self.count == 1:
            yield
            return
        try:
            yield
        except Exception:
            self._extremes(_FAILED)
            raise
        digest = hashlib.sha256(terms.encode()).digest()
        least, most = self._extremes(int.from_bytes(digest[:7], "big"))
        if least == _FAILED:
            raise UserError("another process could not take the step; its own error says why")
        if least != most:
            raise UserError(
                "the processes differ in privacy, draws, model, number of examples or steps taken; "
                "make model, data and engine alike in all, and load one state in all"
            )

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

    @torch.no_grad()
    def hand_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives the first process's values to the same tensors of all others."""
        if self.count == 1:
            return
        for _, some in groupby(tensors, lambda tensor: tensor.dtype):
            members = list(some)
            values = torch.cat([tensor.detach().flatten() for tensor in members])
            distributed.broadcast(values, group=self._group, group_src=0)
            if not self.is_first:
                parts = values.split([tensor.numel() for tensor in members])
                for tensor, part in zip(members, parts, strict=True):
                    tensor.detach().copy_(part.view(tensor.shape))

    def _extremes(self, number: int) -> tuple[int, int]:
        """The least and the greatest of all processes' numbers."""
        found = torch.tensor([number, -number], device=self._device)
        distributed.all_reduce(found, distributed.ReduceOp.MIN, group=self._group)
        least, negative = found.tolist()
        return least, -negative


def _is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()
