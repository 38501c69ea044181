"""Tensors of a backward pass that wait for their use must stay as they were."""

import torch

from privimage.errors import UserError


class Unchanged:
    """Some tensors as they are now.

    A hook or a custom backward that changes what it is given in place would change them, too: the
    values that are added up would not be those that were measured. PyTorch counts such changes,
    but for those by way of `.data`, which copies show.
    """

    def __init__(self, parameter: str, *tensors: torch.Tensor, with_copies: bool = False) -> None:
        """Notes them; `parameter` is the one whose gradient they make."""
        self._parameter = parameter
        self._tensors = tensors
        self._versions = self._now()
        self._copies = [tensor.clone() for tensor in tensors] if with_copies else []

    def check(self) -> None:
        """Raises UserError if one has been changed since."""
        same = all(map(torch.equal, self._copies, self._tensors))
        if self._now() != self._versions or not same:
            raise UserError(
                f"what the layer of parameter '{self._parameter}' takes in, or its gradient, is "
                "changed in place in the backward pass; return a new tensor from hooks and custom "
                "Functions (grad * -1, not grad.mul_(-1))"
            )

    def _now(self) -> list[int]:
        return [tensor._version for tensor in self._tensors]
