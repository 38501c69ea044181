"""Adam on a clipped sum: noise once a logical step, divided by a batch size that is public."""

from collections.abc import Iterable

import torch
from torch import nn

from privimage.dp.clipping import GRID_UNITS
from privimage.dp.noise import gaussian_integers
from privimage.errors import check_non_negative, check_positive


class DPAdam:
    """Adam (Kingma and Ba, arXiv 1412.6980) for gradients that are clipped, summed and noised.

    The gradient is handed to Adam in units of the clipping norm. Adam itself does not care about
    the scale, and its `eps` then damps every clipping norm alike instead of swallowing small ones.

    Formal guarantee: the parameters after a step depend on the examples only through
    `clipped_sum` plus N(0, (noise_multiplier · GRID_UNITS)²) per coordinate, drawn afresh; an empty
    sum is a step like any other (tests/dp/test_optimizers.py).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        noise_multiplier: float,
        expected_batch_size: float,
    ) -> None:
        """Takes over `parameters`: afterwards they are views of one flat vector.

        Args:
            parameters: all trainable parameters, on one device, fp32.
            learning_rate: step size.
            noise_multiplier: noise std / clipping norm; 0 for no privacy.
            expected_batch_size: sample rate × public number of examples, never the real batch.

        Raises:
            UserError: a number is out of range.
        """
        check_positive("learning_rate", learning_rate)
        check_non_negative("noise_multiplier", noise_multiplier)
        check_positive("expected_batch_size", expected_batch_size)
        self._noise_std = noise_multiplier * GRID_UNITS
        self._scale = 1.0 / (GRID_UNITS * expected_batch_size)
        self.flat = nn.Parameter(_flatten(list(parameters)))
        self._adam = torch.optim.Adam([self.flat], lr=learning_rate)

    def step(self, clipped_sum: torch.Tensor) -> None:
        """Takes one step from the integer sum of one logical batch, int64 [parameters]."""
        noise = gaussian_integers(clipped_sum.numel(), self._noise_std)
        released = clipped_sum + noise.to(clipped_sum.device)
        self.flat.grad = (released.double() * self._scale).to(self.flat.dtype)
        self._adam.step()
        self.flat.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and moments, flat; holds no randomness and no un-noised value."""
        moments = self._adam.state.get(self.flat)
        tensors = {"parameters": self.flat.detach()}
        if moments:
            tensors |= {name: moments[name] for name in ("exp_avg", "exp_avg_sq", "step")}
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        with torch.no_grad():
            self.flat.copy_(tensors["parameters"])
        if "step" in tensors:
            self._adam.state[self.flat] = {
                "exp_avg": tensors["exp_avg"].to(self.flat.device),
                "exp_avg_sq": tensors["exp_avg_sq"].to(self.flat.device),
                "step": tensors["step"],
            }


def _flatten(parameters: list[nn.Parameter]) -> torch.Tensor:
    """One vector of all `parameters`, which become views of it."""
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return flat
