"""Is a model still what a private engine has checked, or recorded?"""

from typing import Any

import torch
from torch import nn

from privimage.errors import UserError

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""Of a module: id -> hook; no id is given twice."""


class CheckedModel:
    """What a check saw of a model, and of losses that are a module or a method of one.

    Formal guarantee: a module that was exchanged, put into another mode or given another hook since
    is noticed before a step touches data
    (tests/dp/test_private_engine.py::test_what_changed_since_the_check_is_checked).
    """

    def __init__(self, model: nn.Module, losses: Any) -> None:
        """Nothing has been checked yet."""
        owner = getattr(losses, "__self__", losses)
        self._roots = {"": model}
        if isinstance(owner, nn.Module):
            self._roots["losses."] = owner
        # Modules and tensors are held, so that no other one gets the id of one that was checked.
        self._modules: list[nn.Module] = []
        self._behaviour: list[tuple[Any, ...]] = []
        self._parts: dict[str, nn.Module | torch.Tensor] = {}

    def forget(self) -> None:
        """Nothing counts as checked any more."""
        self._modules, self._behaviour, self._parts = [], [], {}

    def note(self) -> None:
        """Takes what is there now for checked."""
        self._modules = self._modules_now()
        self._behaviour = _behaviour(self._modules)
        self._parts = self._parts_now()

    def is_unchanged(self) -> bool:
        """Whether all modules, with their modes, hooks and types, are those that were checked."""
        return _behaviour(self._modules_now()) == self._behaviour

    def check_recorded(self) -> None:
        """Raises UserError if a module or tensor is another one: what is recorded reads the old."""
        now = self._parts_now()
        for name in self._parts | now:
            if now.get(name) is not self._parts.get(name):
                raise UserError(
                    f"'{name}' is not the one that recorded=True has recorded and goes on with; "
                    "change tensors in place (copy_), or call check(), which records again"
                )

    def _modules_now(self) -> list[nn.Module]:
        return [module for root in self._roots.values() for module in root.modules()]

    def _parts_now(self) -> dict[str, nn.Module | torch.Tensor]:
        """Everything with a name in the model and in losses that are a module."""
        parts: dict[str, nn.Module | torch.Tensor] = {}
        for prefix, root in self._roots.items():
            for each in (root.named_modules(), root.named_parameters(), root.named_buffers()):
                parts.update((prefix + name, part) for name, part in each)
        return parts


def _behaviour(modules: list[nn.Module]) -> list[tuple[Any, ...]]:
    """Of each module what may decide how it treats examples, cheap to compare."""
    return [
        (id(module), module.training, *(tuple(getattr(module, hooks)) for hooks in _HOOKS))
        for module in modules
    ] + [
        (parameter.dtype, parameter.device)
        for module in modules
        for parameter in module._parameters.values()
        if parameter is not None
    ]
