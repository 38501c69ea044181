"""The operators of a release: clipped sum, secret noise, the update with both in one pass.

Arguments are checked once, here, before the native code or the reference runs.
"""

from dataclasses import dataclass, fields

import torch

from privimage.ops.reference import grid_scales
from privimage.ops.scaled import scaled_sum, squared_norms

LARGEST_STD = 2.0**58
"""Of Gaussian integers: 9.5 times as much, and a sum of as many clipped gradients, fit int64."""

_SCALES = (1e-30, 1e30)
"""The clipping norms for which the margin of csrc/shared/grid.h is proven."""


@dataclass(frozen=True)
class UpdateState:
    """The tensors that `private_update` changes: float32 [parameters], on one device.

    Attributes:
        parameters: what is trained.
        momentum: running mean of gradients (Adam) or momentum buffer (SGD); zeros at first.
        second_moment: running mean of squared gradients; None for SGD.
        average: exponential moving average of the parameters; None for no average.
    """

    parameters: torch.Tensor
    momentum: torch.Tensor
    second_moment: torch.Tensor | None = None
    average: torch.Tensor | None = None


@dataclass(frozen=True)
class UpdateRule:
    """The numbers of one step of `private_update`, all public.

    With g = scale · (sum + noise):

        momentum  ← momentum_decay · momentum + gradient_weight · g
        second    ← second_decay · second + (1 - second_decay) · g²
        direction = momentum / (second_correction · √second + epsilon), without second: momentum
        parameter ← keep · parameter - step_size · direction
        average   ← average + average_weight · (parameter - average)

    Attributes:
        noise_std: standard deviation of the noise in grid steps, in [0, 2^58].
        scale: gradient of one grid step.
    """

    noise_std: float
    scale: float
    keep: float = 1.0
    momentum_decay: float = 0.0
    gradient_weight: float = 1.0
    second_decay: float = 0.0
    second_correction: float = 1.0
    epsilon: float = 0.0
    step_size: float = 0.0
    average_weight: float = 0.0

    def on(self, device: torch.device) -> "DeviceRule":
        """The same with its numbers in the memory of a device."""
        numbers = [getattr(self, field.name) for field in fields(self)[2:]]
        there = torch.tensor(numbers, dtype=torch.float64, device=device)
        return DeviceRule(self.noise_std, self.scale, there)


@dataclass(frozen=True)
class DeviceRule:
    """An `UpdateRule` whose other numbers are read when the operator runs.

    A captured CUDA graph keeps numbers and reads tensors anew in every replay: so it has this
    step's learning rate and bias correction, and never another noise than the one it was made for.

    Attributes:
        noise_std: as there.
        scale: as there.
        numbers: float64 [8] on the device of the parameters: the others, in their order there.
    """

    noise_std: float
    scale: float
    numbers: torch.Tensor


def clipped_sum(
    parts: torch.Tensor, max_grad_norm: float, share: float = 1.0, stability: float | None = None
) -> torch.Tensor:
    """The sum of the rows of `parts`, each scaled to a norm of at most C, on the integer grid.

    Each coordinate is rounded towards zero onto a grid of C / 2^`GRID_BITS`, so that no row of the
    sum has a norm above `share` · 2^`GRID_BITS` steps; a row that is not finite, or longer than any
    float32 values are (2^156), adds exactly 0. Before that a row is scaled in its own type, by a
    float32 number. Nothing else rounds: order, shards and threads can't change the sum.

    Args:
        parts: float32 or float64 [examples, parameters], one example's gradient a row.
        max_grad_norm: the clipping norm C, in [1e-30, 1e30].
        share: of C that a row's norm may reach, in (0, 1].
        stability: γ in [1e-30, 1e30]: every row is scaled by `share` · C / (norm + γ), however
            short it is (Bu et al., arXiv 2206.07136); None scales those above `share` · C alone.

    Returns:
        int64 [parameters] in grid steps, on the device of `parts`; not differentiable.

    Raises:
        TypeError: `parts` is no tensor of these types, or another argument no number.
        ValueError: `parts` is not two-dimensional, or a number out of range.
    """
    if not isinstance(parts, torch.Tensor) or parts.dtype not in (torch.float32, torch.float64):
        found = parts.dtype if isinstance(parts, torch.Tensor) else type(parts).__name__
        raise TypeError(f"parts: expected a float32 or float64 tensor, got {found}")
    if parts.dim() != 2:
        raise ValueError(f"parts: expected [examples, parameters], got shape {list(parts.shape)}")
    _check_number("max_grad_norm", max_grad_norm, *_SCALES)
    _check_number("share", share, 1e-30, 1.0)
    if stability is not None:
        _check_number("stability", stability, *_SCALES)
    scales = grid_scales(squared_norms(parts).sqrt(), max_grad_norm, share, stability)
    return scaled_sum(parts, scales)


def random_words(key: torch.Tensor, step: int, first: int, count: int) -> torch.Tensor:
    """Words of 64 random bits from ChaCha20 (RFC 8439): a pure function of key, step and index.

    csrc/shared/chacha20.h says which block and which of its bits an index is.

    Args:
        key: uint8 [32], on the CPU.
        step: row of the table of words, at least 0.
        first: index of the first word, at least 0.
        count: number of words.

    Returns:
        int64 [count] on the CPU, every bit pattern equally likely.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check_draw(key, step, first, count)
    result: torch.Tensor = torch.ops.privimage.random_words(key, step, first, count)
    return result


def gaussian_integers(
    key: torch.Tensor, step: int, first: int, count: int, std: float
) -> torch.Tensor:
    """N(0, std²), each value rounded to the nearest integer: a function of key, step and index.

    64-bit uniforms and Box-Muller in float64, with polynomials of our own (csrc/shared/gaussian.h):
    every machine, thread count, instruction set and shard gives the same integers. No value is
    farther from 0 than 9.5 std.

    Args:
        key: uint8 [32], on the CPU.
        step: at least 0; no step of a key may serve two purposes.
        first: index of the first integer, at least 0.
        count: number of integers.
        std: standard deviation, in [0, 2^58].

    Returns:
        int64 [count] on the CPU.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check_draw(key, step, first, count)
    _check_std("std", std)
    result: torch.Tensor = torch.ops.privimage.gaussian_integers(key, step, first, count, std)
    return result


def private_update(
    clipped_sum: torch.Tensor,
    key: torch.Tensor,
    step: torch.Tensor,
    state: UpdateState,
    rule: UpdateRule | DeviceRule,
    first_index: int = 0,
) -> None:
    """One pass over flat vectors: noise on a clipped sum, optimiser, average; then the next step.

    The noise is `gaussian_integers(key, step, first_index, …, rule.noise_std)`, added in int64: it
    is exact and the same for any sharding of the parameters. `step` is raised by 1 in place, so
    that no second call can draw the same noise.

    Args:
        clipped_sum: int64 [parameters], in grid steps.
        key: uint8 [32], on the CPU.
        step: int64 [1], on the device of the parameters.
        state: what is changed.
        rule: the numbers of this step.
        first_index: global index of the first of these parameters.

    Raises:
        TypeError, ValueError: a tensor of another type, shape or device, or a number out of range.
    """
    _check_key(key)
    _check_std("rule.noise_std", rule.noise_std)
    parameters = state.parameters
    count = parameters.numel()
    _check_vector("state.parameters", parameters, torch.float32, count, parameters.device)
    _check_vector("clipped_sum", clipped_sum, torch.int64, count, parameters.device)
    _check_vector("step", step, torch.int64, 1, parameters.device)
    for name in ("momentum", "second_moment", "average"):
        tensor = getattr(state, name)
        if tensor is not None:
            _check_vector(f"state.{name}", tensor, torch.float32, count, parameters.device)
    if first_index < 0:
        raise ValueError(f"first_index: expected no negative number, got {first_index}")
    if isinstance(rule, UpdateRule):
        rule = rule.on(parameters.device)
    _check_vector("rule.numbers", rule.numbers, torch.float64, 8, parameters.device)
    tensors = (parameters, state.momentum, state.second_moment, state.average)
    torch.ops.privimage.private_update(
        clipped_sum,
        key,
        step,
        first_index,
        *(_detached(tensor) for tensor in tensors),
        rule.numbers,
        rule.noise_std,
        rule.scale,
    )


def _detached(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach()


def _check_key(key: torch.Tensor) -> None:
    # The message must not show the key.
    if not isinstance(key, torch.Tensor) or key.dtype != torch.uint8 or key.shape != (32,):
        raise TypeError("key: expected a uint8 tensor [32]")
    if key.device.type != "cpu" or not key.is_contiguous():
        raise ValueError("key: expected a contiguous tensor on the CPU")


def _check_draw(key: torch.Tensor, step: int, first: int, count: int) -> None:
    _check_key(key)
    for name, value in (("step", step), ("first", first), ("count", count)):
        if not 0 <= value < 2**62:
            raise ValueError(f"{name}: expected a number in [0, 2^62), got {value}")


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}], got {value}")


def _check_std(name: str, std: float) -> None:
    if not 0 <= std <= LARGEST_STD:
        raise ValueError(f"{name}: expected a number in [0, 2^58], got {std}")


def _check_vector(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, count: int, device: torch.device
) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}")
    if tensor.shape != (count,) or not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a vector of {count}, got shape {list(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected it on {device}, got {tensor.device}")
