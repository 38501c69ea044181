"""Adam, AdamW and SGD on a clipped sum: noise, step and average in one pass over flat vectors."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from privimage import ops
from privimage.dp.clipping import GRID_UNITS
from privimage.dp.noise import Domain, SecretKey
from privimage.errors import UserError, check_non_negative, check_positive


class DPOptimizer(torch.optim.Optimizer):
    """What the private optimisers share: a step from an integer sum, with noise of its own.

    The gradient is taken in units of the clipping norm: Adam does not care about the scale, its
    `eps` damps every clipping norm alike, and an SGD step is at most the learning rate long.
    Learning rates are in `param_groups`, so the schedulers of `torch.optim.lr_scheduler` work.

    Formal guarantee: the parameters after a step depend on the examples only through
    `clipped_sum` plus N(0, (noise_multiplier · GRID_UNITS)²) per coordinate, drawn afresh; an empty
    sum is a step like any other
    (tests/dp/test_optimizers.py::test_an_empty_batch_is_a_step_of_pure_noise,
    tests/dp/test_optimizers.py::test_two_steps_draw_two_noises). No state holds the key
    (tests/dp/test_optimizers.py::test_no_state_holds_the_key).

    Attributes:
        flat: all parameters in one vector; the model's own are views of it.
        is_secret: whether the noise comes from a secret key: not so with a test key.
    """

    _has_second_moment = True

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        noise_multiplier: float,
        expected_batch_size: float,
        key: SecretKey | None,
        ema_decay: Callable[[int], float] | None,
        defaults: dict[str, Any],
    ) -> None:
        check_positive("learning_rate", defaults["lr"])
        check_non_negative("noise_multiplier", noise_multiplier)
        check_positive("expected_batch_size", expected_batch_size)
        self._noise_std = noise_multiplier * GRID_UNITS
        if self._noise_std > ops.LARGEST_STD:
            raise UserError(
                f"noise_multiplier is {noise_multiplier:g}, but at most 2^28 is possible"
            )
        self.flat = nn.Parameter(_flatten(list(parameters)))
        super().__init__([self.flat], defaults)
        self._scale = 1.0 / (GRID_UNITS * expected_batch_size)
        self._noise = (key or SecretKey.from_os()).stream(Domain.UPDATE)
        self._ema_decay = ema_decay
        self.is_secret = self._noise.is_secret
        state = self.state[self.flat]
        state["step"] = torch.tensor(0)
        state["exp_avg"] = torch.zeros_like(self.flat.detach())
        if self._has_second_moment:
            state["exp_avg_sq"] = torch.zeros_like(self.flat.detach())
        if ema_decay is not None:
            state["ema"] = self.flat.detach().clone()

    @property
    def average(self) -> torch.Tensor:
        """The moving average of the parameters, flat; KeyError without `ema_decay`."""
        return self.state[self.flat]["ema"]  # type: ignore[no-any-return]

    def step(self, clipped_sum: torch.Tensor) -> None:  # type: ignore[override]
        """Takes one step from the integer sum of one logical batch, int64 [parameters]."""
        state = self.state[self.flat]
        state["step"] += 1
        steps = int(state["step"])
        average_weight = 0.0 if self._ema_decay is None else 1.0 - self._ema_decay(steps)
        rule = ops.UpdateRule(
            noise_std=self._noise_std,
            scale=self._scale,
            average_weight=average_weight,
            **self._numbers(self.param_groups[0], steps),
        )
        tensors = ops.UpdateState(
            self.flat, state["exp_avg"], state.get("exp_avg_sq"), state.get("ema")
        )
        self._noise.private_update(clipped_sum, tensors, rule)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters, moments, average and step; holds no randomness and no un-noised value."""
        return {"parameters": self.flat.detach(), **self.state[self.flat]}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ValueError for a second group: all parameters are one vector.

        Raises:
            ValueError: there is a group already.
        """
        if self.param_groups:
            raise ValueError("a private optimiser has one group: all its parameters")
        super().add_param_group(param_group)

    def _numbers(self, group: dict[str, Any], steps: int) -> dict[str, float]:
        """The fields of `ops.UpdateRule` that an algorithm decides, for its step `steps` >= 1."""
        raise NotImplementedError


class DPAdamW(DPOptimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on clipped, summed and noised gradients.

    Formal guarantee: as `DPOptimizer`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        noise_multiplier: float,
        expected_batch_size: float,
        *,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        key: SecretKey | None = None,
        ema_decay: Callable[[int], float] | None = None,
    ) -> None:
        """Takes over `parameters`: afterwards they are views of one flat vector.

        Args:
            parameters: all trainable parameters, on one device, fp32.
            learning_rate: step size.
            noise_multiplier: noise std / clipping norm; 0 for no privacy.
            expected_batch_size: sample rate × public number of examples, never the real batch.
            weight_decay: share of a parameter that a step of learning rate 1 would take away.
            betas: decay of the running means of gradients and of their squares.
            key: of this run; default a fresh one.
            ema_decay: decay of the average of the parameters at its n-th update, n = 1, 2, …

        Raises:
            UserError: a number is out of range.
        """
        check_non_negative("weight_decay", weight_decay)
        defaults = {"lr": learning_rate, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
        super().__init__(
            parameters, noise_multiplier, expected_batch_size, key, ema_decay, defaults
        )

    def _numbers(self, group: dict[str, Any], steps: int) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        return {
            "keep": 1.0 - group["lr"] * group["weight_decay"],
            "momentum_decay": beta1,
            "gradient_weight": 1.0 - beta1,
            "second_decay": beta2,
            "second_correction": float((1.0 - beta2**steps) ** -0.5),
            "epsilon": group["eps"],
            "step_size": group["lr"] / (1.0 - beta1**steps),
        }


class DPAdam(DPAdamW):
    """Adam (Kingma and Ba, arXiv 1412.6980) on clipped, summed and noised gradients.

    Formal guarantee: as `DPOptimizer`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        noise_multiplier: float,
        expected_batch_size: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        key: SecretKey | None = None,
        ema_decay: Callable[[int], float] | None = None,
    ) -> None:
        """As `DPAdamW`, without weight decay."""
        super().__init__(
            parameters,
            learning_rate,
            noise_multiplier,
            expected_batch_size,
            weight_decay=0.0,
            betas=betas,
            key=key,
            ema_decay=ema_decay,
        )


class DPSGD(DPOptimizer):
    """SGD with momentum, as PyTorch has it, on clipped, summed and noised gradients.

    Formal guarantee: as `DPOptimizer`.
    """

    _has_second_moment = False

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        noise_multiplier: float,
        expected_batch_size: float,
        *,
        momentum: float = 0.0,
        key: SecretKey | None = None,
        ema_decay: Callable[[int], float] | None = None,
    ) -> None:
        """As `DPAdamW`, with `momentum` the share of the last step's direction that is kept."""
        check_non_negative("momentum", momentum)
        defaults = {"lr": learning_rate, "momentum": momentum}
        super().__init__(
            parameters, noise_multiplier, expected_batch_size, key, ema_decay, defaults
        )

    def _numbers(self, group: dict[str, Any], steps: int) -> dict[str, float]:
        return {"momentum_decay": group["momentum"], "step_size": group["lr"]}


def _flatten(parameters: list[nn.Parameter]) -> torch.Tensor:
    """One vector of all `parameters`, which become views of it."""
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return flat
