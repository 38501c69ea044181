"""Fake implementations, for torch.compile and meta tensors: the shapes of what operators return.

None of them takes part in autograd: whoever calls them knows the gradients.
"""

from collections.abc import Callable

import torch


def _nothing(*arguments: object) -> None:
    """Of an operator that writes into tensors that its caller has."""


def _words(key: torch.Tensor, step: int, first: int, count: int, *std: float) -> torch.Tensor:
    """uint8 [32] → int64 [count]."""
    return key.new_empty(_size("count", count), dtype=torch.int64)


def _measured_weight_grads(
    x: list[torch.Tensor], grad: list[torch.Tensor], weight: list[torch.Tensor], *others: object
) -> torch.Tensor:
    """Writes into rows that the caller has; float64 [examples]."""
    if not x or not weight:
        raise ValueError("x, weight: expected a layer or more")
    return x[0].new_empty(weight[0].shape[0], dtype=torch.float64)


def _squared_norms(parts: torch.Tensor, columns: list[int]) -> torch.Tensor:
    """[examples, parameters] → float64 [examples]."""
    return parts.new_empty(parts.shape[0], dtype=torch.float64)


def _example_embedding_norms(
    indices: torch.Tensor, grad: torch.Tensor, *others: object
) -> torch.Tensor:
    """[examples, positions, width] → float64 [examples]."""
    return grad.new_empty(grad.shape[0], dtype=torch.float64)


def _example_weight_norms(
    x: torch.Tensor, grad: torch.Tensor, examples: int, *others: object
) -> torch.Tensor:
    """Float64 [examples]."""
    return x.new_empty(_size("examples", examples), dtype=torch.float64)


def _gram_sums(x: torch.Tensor, grad: torch.Tensor, examples: int, *others: object) -> torch.Tensor:
    """Float64 [4, examples]."""
    return x.new_empty(4, _size("examples", examples), dtype=torch.float64)


def _group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    *others: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As x, and its moments [2, rows, groups]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), x.new_empty(2, len(x), _size("groups", groups), dtype=wide)


def _group_norm_silu_backward(grad: torch.Tensor, x: torch.Tensor, *others: object) -> torch.Tensor:
    """As x."""
    return torch.empty_like(x)


def _size(name: str, size: int) -> int:
    if size < 0:
        raise ValueError(f"{name}: expected no negative number, got {size}")
    return size


FAKES: dict[str, Callable[..., object]] = {
    "random_words": _words,
    "gaussian_integers": _words,
    "private_update": _nothing,
    "example_weight_grad": _nothing,
    "example_embedding_grad": _nothing,
    "example_embedding_norms": _example_embedding_norms,
    "recomputed_embedding_sum": _nothing,
    "measured_weight_grads": _measured_weight_grads,
    "squared_norms": _squared_norms,
    "scaled_sum": _nothing,
    "example_weight_norms": _example_weight_norms,
    "recomputed_sum": _nothing,
    "gram_sums": _gram_sums,
    "group_norm_silu": _group_norm_silu,
    "group_norm_silu_backward": _group_norm_silu_backward,
}
"""Operator → the fake one."""


def register() -> None:
    """Registers all of them."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"privimage::{name}", fake)
