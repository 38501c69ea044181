"""Takes the steps of a `PrivateEngine`: by a private optimiser, or by any of torch.optim."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from privimage.dp.flat_optimizer import DPOptimizer
from privimage.dp.gradient_noise import GradientNoise
from privimage.dp.optimizer_state import check_options, check_torch_state, plain
from privimage.errors import UserError

_UNSUITABLE = (torch.optim.LBFGS, torch.optim.SparseAdam)


class Stepper:
    """From the clipped sum of one logical batch to the updated model.

    Formal guarantee: the parameters and the optimiser's state after a step depend on the examples
    only through the sum plus fresh noise, whatever the optimiser is
    (tests/dp/test_private_engine.py::test_every_optimizer_gets_the_same_noised_mean).

    Args:
        optimizer: without noise of its own.
        parameters: the model's trainable ones by name, in the model's order.
        noise: for its gradients.

    Raises:
        UserError: the optimiser's trainable parameters are not these, or it can't take one dense
            gradient a step, or has noise already.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        noise: GradientNoise,
    ) -> None:
        if isinstance(optimizer, _UNSUITABLE):
            raise UserError(
                f"{type(optimizer).__name__} does not take one dense gradient a step; use another"
            )
        self._optimizer = optimizer
        self._parameters = list(parameters.values())
        self._noise = noise
        _check_same(optimizer, parameters)
        if isinstance(optimizer, DPOptimizer):
            optimizer.add_noise(noise)

    def check_ready(self) -> None:
        """Raises UserError if the optimiser can't update the model any more."""
        if isinstance(self._optimizer, DPOptimizer):
            self._optimizer.check_views()
            self._optimizer.check_options()
        else:
            check_options(self._optimizer.param_groups)
            check_torch_state(self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's, which is read back without pickle's dangers whatever sets its rates."""
        state = self._optimizer.state_dict()
        return {**state, "param_groups": plain(state["param_groups"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; raises UserError if it is of another optimiser or model."""
        try:
            self._optimizer.load_state_dict(state)
        except KeyError as missing:
            raise UserError(
                f"the optimiser's state has no {missing}; make model and optimiser (its kind and "
                "groups) as they were when the state was saved"
            ) from missing
        if not isinstance(self._optimizer, DPOptimizer):
            check_torch_state(self._optimizer)

    def step(self, total: torch.Tensor) -> None:
        """Adds noise and updates the model.

        Args:
            total: int64 [parameters], in the model's order.
        """
        sizes = [parameter.numel() for parameter in self._parameters]
        if isinstance(self._optimizer, DPOptimizer):
            places = {id(p): i for i, p in enumerate(self._parameters)}
            order = [places[id(p)] for p in self._optimizer.parameters]
            if order != sorted(order):  # Else they lie as the optimiser wants them.
                parts = total.split(sizes)
                total = torch.cat([parts[i] for i in order])
            self._optimizer.step(total)
            return
        noise = self._noise.stream.gaussian_integers(len(total), self._noise.std)
        mean = (total + noise.to(total.device)).double() * self._noise.scale
        for parameter, part in zip(self._parameters, mean.split(sizes), strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter.dtype)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _check_same(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises UserError unless the optimiser's trainable parameters are these."""
    given = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if isinstance(optimizer, DPOptimizer):
        given = optimizer.parameters
    optimised = {id(parameter): parameter for parameter in given if parameter.requires_grad}
    for name, parameter in parameters.items():
        if optimised.pop(id(parameter), None) is None:
            raise UserError(
                f"parameter '{name}' is trainable but not the optimizer's; give it to the "
                "optimizer, or freeze it with requires_grad_(False)"
            )
    for parameter in optimised.values():
        raise UserError(
            f"the optimizer has a parameter {list(parameter.shape)} that is not the model's; "
            "make the optimizer from this model's parameters"
        )
