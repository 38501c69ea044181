"""Adam, AdamW and SGD on a clipped sum: noise, step and average in one pass over flat vectors."""

from collections.abc import Callable
from typing import Any

from privimage.dp.flat_optimizer import DPOptimizer, Parameters
from privimage.dp.noise import SecretKey


class DPAdamW(DPOptimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) on clipped, summed and noised gradients.

    Formal guarantee: as `DPOptimizer`.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float,
        noise_multiplier: float | None = None,
        expected_batch_size: float | None = None,
        *,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        key: SecretKey | None = None,
        ema_decay: Callable[[int], float] | None = None,
    ) -> None:
        """Takes over `parameters`: afterwards they are views of one flat vector.

        Args:
            parameters: on one device, fp32, or groups of them; frozen ones are left alone.
            lr: learning rate.
            noise_multiplier: noise std / clipping norm, 0 for no privacy; None for a
                `PrivateEngine`, which gives the noise.
            expected_batch_size: sample rate × public number of examples, never the real batch;
                None for a `PrivateEngine`.
            weight_decay: share of a parameter that a step of learning rate 1 would take away.
            betas: decay of the running means of gradients and of their squares.
            key: of this run; default a fresh one.
            ema_decay: decay of the average of the parameters at its n-th update, n = 1, 2, …

        Raises:
            UserError: a number is out of range, or the parameters are not as above.
        """
        defaults = {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
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
        parameters: Parameters,
        lr: float,
        noise_multiplier: float | None = None,
        expected_batch_size: float | None = None,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        key: SecretKey | None = None,
        ema_decay: Callable[[int], float] | None = None,
    ) -> None:
        """As `DPAdamW`, without weight decay."""
        super().__init__(
            parameters,
            lr,
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
        parameters: Parameters,
        lr: float,
        noise_multiplier: float | None = None,
        expected_batch_size: float | None = None,
        *,
        momentum: float = 0.0,
        key: SecretKey | None = None,
        ema_decay: Callable[[int], float] | None = None,
    ) -> None:
        """As `DPAdamW`, with `momentum` the share of the last step's direction that is kept."""
        defaults = {"lr": lr, "momentum": momentum}
        super().__init__(
            parameters, noise_multiplier, expected_batch_size, key, ema_decay, defaults
        )

    def _numbers(self, group: dict[str, Any], steps: int) -> dict[str, float]:
        return {"momentum_decay": group["momentum"], "step_size": group["lr"]}
