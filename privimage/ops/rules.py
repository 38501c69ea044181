"""What PyTorch must know of the operators besides their code: the shapes of their results."""

import torch


def clipped_sum(
    parts: torch.Tensor, max_grad_norm: float, share: float = 1.0, stability: float | None = None
) -> torch.Tensor:
    """[examples, parameters] → int64 [parameters], without data. Integers have no gradient."""
    return parts.new_empty(_columns(parts), dtype=torch.int64)


def random_words(key: torch.Tensor, step: int, first: int, count: int) -> torch.Tensor:
    """uint8 [32] → int64 [count], without data."""
    return key.new_empty(_size("count", count), dtype=torch.int64)


def gaussian_integers(
    key: torch.Tensor, step: int, first: int, count: int, std: float
) -> torch.Tensor:
    """uint8 [32] → int64 [count], without data."""
    return key.new_empty(_size("count", count), dtype=torch.int64)


def private_update(*arguments: object) -> None:
    """Changes its arguments and returns nothing."""


def example_weight_grad(*arguments: object) -> None:
    """Writes into rows that the caller has; takes no part in autograd."""


def example_embedding_grad(*arguments: object) -> None:
    """Writes into rows that the caller has; takes no part in autograd."""


def example_embedding_norms(
    indices: torch.Tensor, grad: torch.Tensor, *others: object
) -> torch.Tensor:
    """[examples, positions, width] → float64 [examples], without data."""
    return grad.new_empty(grad.shape[0], dtype=torch.float64)


def recomputed_embedding_sum(*arguments: object) -> None:
    """Changes its arguments and returns nothing."""


def measured_weight_grads(
    x: list[torch.Tensor], grad: list[torch.Tensor], weight: list[torch.Tensor], *others: object
) -> torch.Tensor:
    """Writes into rows that the caller has; float64 [examples], without data."""
    if not x or not weight:
        raise ValueError("x, weight: expected a layer or more")
    return x[0].new_empty(weight[0].shape[0], dtype=torch.float64)


def squared_norms(parts: torch.Tensor, columns: list[int]) -> torch.Tensor:
    """[examples, parameters] → float64 [examples], without data."""
    return parts.new_empty(parts.shape[0], dtype=torch.float64)


def scaled_sum(*arguments: object) -> None:
    """Changes its arguments and returns nothing."""


def example_weight_norms(
    x: torch.Tensor, grad: torch.Tensor, examples: int, *others: object
) -> torch.Tensor:
    """Float64 [examples], without data."""
    return x.new_empty(_size("examples", examples), dtype=torch.float64)


def recomputed_sum(*arguments: object) -> None:
    """Changes its arguments and returns nothing."""


def gram_sums(x: torch.Tensor, grad: torch.Tensor, examples: int, *others: object) -> torch.Tensor:
    """Float64 [4, examples], without data."""
    return x.new_empty(4, _size("examples", examples), dtype=torch.float64)


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As x, and its moments [2, rows, groups]; autograd is left to the caller."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), x.new_empty(2, len(x), _size("groups", groups), dtype=wide)


def group_norm_silu_backward(grad: torch.Tensor, x: torch.Tensor, *others: object) -> torch.Tensor:
    """As x."""
    return torch.empty_like(x)


def _columns(parts: torch.Tensor) -> int:
    if parts.dim() != 2:
        raise ValueError(f"parts: expected [examples, parameters], got shape {list(parts.shape)}")
    return parts.shape[1]


def _size(name: str, size: int) -> int:
    if size < 0:
        raise ValueError(f"{name}: expected no negative number, got {size}")
    return size


def register() -> None:
    """Gives torch.compile and the meta device the shape of every operator's result."""
    torch.library.register_fake("privimage::clipped_sum", clipped_sum)
    torch.library.register_fake("privimage::random_words", random_words)
    torch.library.register_fake("privimage::gaussian_integers", gaussian_integers)
    torch.library.register_fake("privimage::private_update", private_update)
    torch.library.register_fake("privimage::example_weight_grad", example_weight_grad)
    torch.library.register_fake("privimage::example_embedding_grad", example_embedding_grad)
    torch.library.register_fake("privimage::example_embedding_norms", example_embedding_norms)
    torch.library.register_fake("privimage::recomputed_embedding_sum", recomputed_embedding_sum)
    torch.library.register_fake("privimage::measured_weight_grads", measured_weight_grads)
    torch.library.register_fake("privimage::squared_norms", squared_norms)
    torch.library.register_fake("privimage::scaled_sum", scaled_sum)
    torch.library.register_fake("privimage::example_weight_norms", example_weight_norms)
    torch.library.register_fake("privimage::recomputed_sum", recomputed_sum)
    torch.library.register_fake("privimage::gram_sums", gram_sums)
    torch.library.register_fake("privimage::group_norm_silu", group_norm_silu)
    torch.library.register_fake("privimage::group_norm_silu_backward", group_norm_silu_backward)
