"""Holds the operators that are installed against the formulas that they stand for, in seconds."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from privimage.ops import reference

# Sums of a few thousand float32 products in another order.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One operator: whether it agrees with its reference, how far off it is, and how much faster.

    `error` is the largest difference over the largest value; integers must agree exactly.
    """

    name: str
    agrees: bool
    error: float
    speedup: float


def self_test(device: torch.device) -> Iterator[Check]:
    """Runs every operator once on numbers that no data went into.

    Args:
        device: where the numbers lie; operators without a kernel for it run on the reference.
    """
    for name, make in _CALLS.items():
        native, plain = getattr(torch.ops.privimage, name), getattr(reference, name)
        found, seconds = _timed(native, make(device))
        # Else a GPU rounds the factors of the reference's products to 11 bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            expected, plain_seconds = _timed(plain, make(device))
        error = max(_error(*pair) for pair in zip(found, expected, strict=True))
        is_exact = not any(tensor.is_floating_point() for tensor in expected)
        agrees = error <= (0.0 if is_exact else _TOLERANCE)
        yield Check(name, agrees, error, plain_seconds / max(seconds, 1e-9))


def _timed(operator: Callable[..., Any], arguments: list[Any]) -> tuple[list[torch.Tensor], float]:
    """What a call returns and writes, and the seconds of its second run."""
    operator(*arguments)
    began = time.perf_counter()
    result = operator(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    returned = [] if result is None else [result] if torch.is_tensor(result) else list(result)
    return [*returned, *(value for value in arguments if torch.is_tensor(value))], seconds


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    one, other = found.double(), expected.double()
    if not one.isfinite().all():
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def _random(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _key(device: torch.device) -> torch.Tensor:
    # No key of anybody: nothing is drawn from it that is used.
    return torch.arange(32, dtype=torch.uint8, device=device)


def _weight_grad(device: torch.device) -> list[Any]:
    x, grad = _random(device, 32, 16, 16, 16), _random(device, 32, 24, 16, 16)
    weight, bias = _random(device, 8, 24, 16, 3, 3), _random(device, 8, 24)
    return [x, grad, weight, bias, [1, 1], [1, 1], [1, 1], 1, False]


def _norm(device: torch.device) -> list[Any]:
    affine = [_random(device, 32), _random(device, 32)]
    return [_random(device, 16, 32, 16, 16), *affine, 8, 1e-6, True]


_CALLS: dict[str, Callable[[torch.device], list[Any]]] = {
    "random_words": lambda device: [_key(device), 1, 2, 100_000],
    "gaussian_integers": lambda device: [_key(device), 1, 2, 100_000, 1e9],
    "clipped_sum": lambda device: [_random(device, 32, 50_000), 1.0],
    "example_weight_grad": _weight_grad,
    "group_norm_silu": _norm,
}
