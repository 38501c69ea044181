"""Tells data, whatever was computed from the batch, from constants."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils.weak import WeakTensorKeyDictionary

from privimage.dp.rules.derived import BY_FORM, tensors_in
from privimage.dp.rules.examples import Examples

_LEAVING = {getattr(torch.Tensor, name) for name in ("numpy", "tolist", "__array__", "__dlpack__")}
"""By which data leaves PyTorch."""

_RETURNING = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.frombuffer}
"""By which it may come back."""

FROM_CONSTANTS = (
    "Tensors made from numbers (x.item()) or by torch.jit count as constants: what is data has to "
    "come with the batch"
)

_RANDOM = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_"),
}
"""Whose results have rows without any input that has: a loss draws for each row by itself."""


class Provenance:
    """Where the tensors of a pass come from, as far as PyTorch's calls show it.

    What is unknown is a constant: used with a parameter, that is right whatever it is. Only where
    data has left PyTorch it is data, if it has a row for each of the batch's.
    """

    def __init__(
        self, examples: Examples, batch: Iterable[torch.Tensor], constants: Iterable[torch.Tensor]
    ) -> None:
        """`constants` are those that were there before: what the model keeps."""
        self._examples = examples
        self._data, self._constants = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for tensors, known in ((batch, self._data), (constants, self._constants)):
            for tensor in tensors:
                known[tensor] = True
        self._has_left = False

    def follow(self, func: Callable[..., Any], arguments: Any, output: Any) -> None:
        """Notes which results were computed from data."""
        results = [result for result in tensors_in(output) if not result.requires_grad]
        if func in _LEAVING and self.is_data(arguments[0][0]):
            self._has_left = True
        if func is torch.Tensor.__setitem__:
            results = [next(tensors_in(arguments))]
        if not results:
            return
        given = arguments[0][:1] if func in BY_FORM else arguments
        is_data = getattr(func, "__name__", "") in _RANDOM
        is_data = is_data or any(map(self.is_data, tensors_in(given)))
        if is_data or func not in _RETURNING:
            kind = self._data if is_data else self._constants
            for result in results:
                kind[result] = True

    def is_data(self, tensor: torch.Tensor) -> bool:
        """Whether its values may differ from example to example."""
        if self._examples.owns(tensor):
            return False
        if tensor.requires_grad or tensor in self._data:
            return True
        if is_functorch_wrapped_tensor(tensor):
            self._has_left = True  # What comes out of torch.vmap is not seen.
            return True
        if not self._has_left or tensor in self._constants:
            return False
        return self._examples.has_rows(tensor)
