"""An optimiser's saved state: numbers that can be read back anywhere, and only where they fit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from privimage.errors import UserError, check_non_negative

_FACTORS = ("row_var", "col_var")
"""Of Adafactor: what alone has another shape than its parameter, with a dimension of 1."""


def plain(value: Any) -> Any:
    """Options with Python's numbers: NumPy's can't be read back without pickle's dangers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


def check_options(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError where a step of any optimiser would make the model NaN, or go backwards.

    Args:
        groups: `param_groups`; a scheduler may have written into them since they were checked.
    """
    for i, group in enumerate(groups):
        if group.get("lr") is not None:  # Adafactor of transformers may find its own.
            check_non_negative(f"the optimiser's learning rate (lr, group {i})", group["lr"])
        for name, value in group.items():
            parts = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(part, float) and math.isnan(part) for part in parts):
                raise UserError(f"the optimiser's {name} (group {i}) is {value}; give it a number")


def check_torch_state(optimizer: torch.optim.Optimizer) -> None:
    """Raises UserError if a state of other parameters, or of another kind, was loaded into it.

    PyTorch compares the number of groups and parameters alone, and its own optimisers then fail
    inside a step. What those of others keep nobody knows.
    """
    if type(optimizer).__module__.split(".")[:2] != ["torch", "optim"]:
        return
    # PyTorch adds the last one to the defaults of every optimiser that loads a state.
    options = [name for name in optimizer.defaults if name != "differentiable"]
    for i, group in enumerate(optimizer.param_groups):
        if missing := ", ".join(name for name in options if name not in group):
            raise _unlike(f"no {missing}", f"needs {missing}", f" in group {i}")
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                shape = value.shape if isinstance(value, torch.Tensor) else torch.Size()
                if shape and not _belongs(name, shape, parameter.shape):
                    own = f"a parameter {list(parameter.shape)}"
                    raise _unlike(f"{name} {list(shape)}", own, f" in group {i}")


def check_fits(
    groups: Sequence[Mapping[str, Any]],
    states: Mapping[int, Mapping[str, torch.Tensor]],
    own_options: Sequence[str],
    own_states: Sequence[Mapping[str, torch.Tensor]],
) -> None:
    """Raises UserError unless a saved state is of an optimiser of this kind and these parameters.

    Args:
        groups: the saved options.
        states: the saved tensors by the number of a group.
        own_options: those without which a step can't be taken.
        own_states: the tensors of each group.
    """
    if len(groups) != len(own_states):
        raise _unlike(f"{len(groups)} groups", f"{len(own_states)}")
    for i, (group, own) in enumerate(zip(groups, own_states, strict=True)):
        if len(group["params"]) != 1 or not set(own_options) <= set(group):
            options = ", ".join(name for name in group if name != "params")
            raise _unlike(f"{options} for {len(group['params'])} vectors", ", ".join(own_options))
        saved = states.get(group["params"][0], {})
        if _shapes(saved) != _shapes(own):
            raise _unlike(_shapes(saved) or "nothing", _shapes(own), f" in group {i}")


def _belongs(name: str, shape: torch.Size, own: torch.Size) -> bool:
    """Whether a state's tensor is of a parameter of the shape `own`."""
    if name in _FACTORS:
        return len(shape) == len(own) and all(map(lambda a, b: a in (1, b), shape, own))
    return shape == own


def _shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {list(tensors[name].shape)}" for name in sorted(tensors))


def _unlike(saved: str, own: str, where: str = "") -> UserError:
    return UserError(
        f"the optimiser's state{where} has {saved}, this optimiser {own}; make model and optimiser "
        "(its kind, groups and ema_decay) as they were when the state was saved"
    )
