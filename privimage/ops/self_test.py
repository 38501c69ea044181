"""Holds the operators that are installed against the formulas that they stand for, in seconds."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from privimage.ops import reference

# Sums of a few thousand float32 products in another order.
_TOLERANCE = 1e-4
_TRIES = 5
_EXAMPLES, _ENTRIES, _WIDTH, _WIDE = 16, 64, 48, 50_000
_CONV: list[Any] = [[1, 1], [1, 1], [1, 1], 1]
# No key of anybody: nothing is drawn from it that is used.
_KEY = torch.arange(32, dtype=torch.uint8, device="cpu")


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
    """Runs every operator that there is on `device`, on numbers that no data went into."""
    key = device.type.upper()
    for name, make in _CALLS.items():
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"privimage::{name}", key):
            continue
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
    """What a call returns and writes, and the seconds of the fastest of some calls.

    One call alone may be the one in which other programs had the processor.
    """
    operator(*arguments)
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        result = operator(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    leaves = [leaf for leaf in tree_leaves([result, arguments]) if torch.is_tensor(leaf)]
    return leaves, min(seconds)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    one, other = found.double(), expected.double()
    if not one.isfinite().all():
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def _random(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _scales(device: torch.device) -> torch.Tensor:
    return _random(device, _EXAMPLES).abs().double() * 1e5


def _integers(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=device)


def _activations(device: torch.device) -> list[Any]:
    """A layer's input, and the gradient of what came out."""
    return [_random(device, _EXAMPLES, 16, 16, 16), _random(device, _EXAMPLES, 24, 16, 16)]


def _rows(device: torch.device) -> list[Any]:
    """Room for each example's gradients of weight and bias."""
    return [_random(device, _EXAMPLES, 24, 16, 3, 3), _random(device, _EXAMPLES, 24)]


def _sums(device: torch.device) -> list[Any]:
    return [_integers(device, 24, 16, 3, 3), _integers(device, 24)]


def _reads(device: torch.device) -> list[Any]:
    """The entries of a table that examples read, and the gradients of what they read."""
    indices = torch.arange(32 * _EXAMPLES, device=device).view(_EXAMPLES, 32) * 7 % _ENTRIES
    return [indices, _random(device, _EXAMPLES, 32, _WIDTH)]


def _table(device: torch.device) -> list[Any]:
    return [_random(device, _EXAMPLES, _ENTRIES, _WIDTH), 2, False]


def _norm(device: torch.device) -> list[Any]:
    """Values, scale and shift; there are eight groups."""
    return [_random(device, 16, 32, 16, 16), *(_random(device, 32) for _ in range(2))]


def _norm_backward(device: torch.device) -> list[Any]:
    x, *affine = _norm(device)
    moments = _random(device, 2, 16, 8).abs()
    rows = [_random(device, 16, 32) for _ in range(2)]
    return [x.clone(), x, moments, *affine, *rows, True, False]


def _update(device: torch.device) -> list[Any]:
    vectors = [_random(device, _WIDE).abs() for _ in range(4)]
    step = torch.ones(1, dtype=torch.int64, device=device)
    numbers = torch.full((8,), 0.5, dtype=torch.float64, device=device)
    return [_integers(device, _WIDE), _KEY, step, 2, *vectors, numbers, 1e9, 1e-9]


_CALLS: dict[str, Callable[[torch.device], list[Any]]] = {
    "random_words": lambda device: [_KEY, 1, 2, _WIDE],
    "gaussian_integers": lambda device: [_KEY, 1, 2, _WIDE, 1e9],
    "private_update": _update,
    "squared_norms": lambda device: [_random(device, _EXAMPLES, _WIDE), [0, 5, 7, _WIDE]],
    "scaled_sum": lambda device: [
        *(_random(device, _EXAMPLES, _WIDE), _scales(device), _integers(device, _WIDE)),
        False,
    ],
    "example_weight_grad": lambda device: [*_activations(device), *_rows(device), *_CONV, False],
    "measured_weight_grads": lambda device: [
        *([tensor] for tensor in (*_activations(device), *_rows(device))),
        *_CONV,
    ],
    "example_weight_norms": lambda device: [*_activations(device), _EXAMPLES, [3, 3], True, *_CONV],
    "recomputed_sum": lambda device: [
        *_activations(device),
        _scales(device),
        *_sums(device),
        *_CONV,
        False,
    ],
    "gram_sums": lambda device: [*_activations(device), _EXAMPLES, [3, 3], True, *_CONV],
    "example_embedding_grad": lambda device: [*_reads(device), *_table(device)],
    "example_embedding_norms": lambda device: [*_reads(device), _ENTRIES, 2],
    "recomputed_embedding_sum": lambda device: [
        *_reads(device),
        _scales(device),
        _integers(device, _ENTRIES, _WIDTH),
        2,
    ],
    "group_norm_silu": lambda device: [*_norm(device), 8, 1e-6, True],
    "group_norm_silu_backward": _norm_backward,
}
