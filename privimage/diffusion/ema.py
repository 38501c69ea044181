"""An exponential moving average of parameters, with a warm-up so that it forgets the first ones."""

from collections.abc import Mapping

import torch


class Ema:
    """The running average of named tensors; updated once a logical step.

    Attributes:
        average: name -> averaged tensor; the start counts as the first value.
        updates: how many updates it has seen.
    """

    def __init__(self, start: Mapping[str, torch.Tensor], decay: float = 0.999) -> None:
        self.average = {name: tensor.detach().clone() for name, tensor in start.items()}
        self.updates = 0
        self._decay = decay

    @torch.no_grad()
    def update(self, values: Mapping[str, torch.Tensor]) -> None:
        """Moves the average towards `values` (the names it was started with)."""
        self.updates += 1
        ordered = [values[name].detach() for name in self.average]
        weight = 1 - ema_decay(self.updates, self._decay)
        torch._foreach_lerp_(list(self.average.values()), ordered, weight)

    @torch.no_grad()
    def restore(self, average: Mapping[str, torch.Tensor], updates: int) -> None:
        """Goes on from a saved `average` after `updates` updates."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
        self.updates = updates


def ema_decay(update: int, limit: float = 0.999) -> float:
    """The decay of the n-th update, n = 1, 2, …: min(limit, (1 + n) / (10 + n))."""
    return min(limit, (1 + update) / (10 + update))
