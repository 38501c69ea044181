"""Results that wait for the operation that follows, because together they cost less."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F

from privimage.errors import UserError


class Pending:
    """A result of known shape, computed when it is needed: with SiLU on top, or without.

    Attributes:
        shape: of the result.

    Args:
        inputs: what it is computed from.
        compute: `compute(silu)`.
    """

    def __init__(
        self,
        shape: torch.Size,
        inputs: Iterable[torch.Tensor | None],
        compute: Callable[[bool], torch.Tensor],
    ) -> None:
        self.shape = shape
        self._inputs = [(x, x._version) for x in inputs if x is not None]
        self._compute = compute
        self._plain: torch.Tensor | None = None

    @property
    def is_computed(self) -> bool:
        """Whether somebody has the plain result."""
        return self._plain is not None

    def plain(self) -> torch.Tensor:
        """Without SiLU, always the same tensor."""
        if self._plain is None:
            self._plain = self.compute(False)
        return self._plain

    def compute(self, silu: bool) -> torch.Tensor:
        """Raises UserError if the inputs are no longer what they were."""
        if any(x._version != version for x, version in self._inputs):
            raise UserError(
                "what a normalisation takes in is changed in place before its result is used; "
                "write to a new tensor (inplace=False)"
            )
        return self._compute(silu)


class StandIns:
    """Tensors that stand for pending results until a PyTorch call takes them.

    A stand-in has the shape of its result, no memory, and reads as NaN. It is a leaf that needs a
    gradient, so whoever computes with it unseen shows in its gradient.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._nan = like.new_full((), float("nan"))
        self._pending: dict[int, tuple[torch.Tensor, Pending]] = {}

    def __contains__(self, identity: int) -> bool:
        """Whether a stand-in has this `id`."""
        return identity in self._pending

    @property
    def leaves(self) -> list[torch.Tensor]:
        """All stand-ins."""
        return [stand_in for stand_in, _ in self._pending.values()]

    def put(self, pending: Pending, dtype: torch.dtype) -> torch.Tensor:
        """A stand-in for `pending`."""
        stand_in = self._nan.to(dtype).expand(pending.shape).requires_grad_()
        self._pending[id(stand_in)] = stand_in, pending
        return stand_in

    def fused(self, func: Callable[..., Any], args: Any, kwargs: Any) -> torch.Tensor | None:
        """The result of `func` if it is SiLU of a stand-in."""
        if func is not F.silu or not args or kwargs.get("inplace") or len(args) > 1:
            return None
        _, pending = self._pending.get(id(args[0]), (None, None))
        # A plain result may have been changed in place since.
        return None if pending is None or pending.is_computed else pending.compute(True)

    def resolve(self, value: Any) -> Any:
        """A structure of arguments with results in the place of their stand-ins."""
        if isinstance(value, torch.Tensor):
            _, pending = self._pending.get(id(value), (None, None))
            return value if pending is None else pending.plain()
        if type(value) in (tuple, list):
            return type(value)(map(self.resolve, value))
        if type(value) is dict:
            return {key: self.resolve(item) for key, item in value.items()}
        return value
