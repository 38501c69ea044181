"""Watches every PyTorch call of a thread and sends each use of a parameter to its rule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from privimage.dp.pending import Pending, StandIns
from privimage.dp.rules import REGISTERED
from privimage.dp.slots import Examples
from privimage.errors import UserError

_PROPERTIES = "shape dtype device layout ndim requires_grad is_leaf is_cuda is_cpu is_nested"
_METADATA: set[Callable[..., Any]] = {
    *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES.split()),
    torch.Tensor.size,
    torch.Tensor.stride,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.__len__,
    torch.Tensor.__hash__,
    torch.Tensor.is_contiguous,
    torch.Tensor.is_floating_point,
    torch.numel,
    torch.is_floating_point,
}
"""What may be asked about a parameter, because the answer does not depend on its values."""


class Exchange(TorchFunctionMode):
    """Sends each use of a trainable parameter to its rule, or refuses it by name."""

    def __init__(self, examples: Examples, names: dict[int, str], rows: int) -> None:
        """`names` says in words what the parameter of each `id` is."""
        super().__init__()
        self._examples = examples
        self._names = names
        self._rows = rows
        self._stand_ins = StandIns(examples.anchor)

    @property
    def stand_ins(self) -> list[torch.Tensor]:
        """Leaves that must have no gradient: each stands for a result that was used unseen."""
        return self._stand_ins.leaves

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name, waits = self._look((args, kwargs) if kwargs else args)
        if waits:
            if (fused := self._stand_ins.fused(func, args, kwargs)) is not None:
                return fused
            args, kwargs = self._stand_ins.resolve(args), self._stand_ins.resolve(kwargs)
        if name is None or func in _METADATA:
            return func(*args, **kwargs)
        if func not in REGISTERED:
            known = ", ".join(operation.__name__ for operation in REGISTERED)
            raise UserError(
                f"{name} is used by {_called(func)}, which has no per-example "
                f"gradient here; use {known}, give it one by privimage.dp.register_rule, "
                "or freeze it with requires_grad_(False)"
            )
        if args:
            x, *rest = args
        else:
            kwargs = dict(kwargs)
            x, rest = kwargs.pop("input"), []
        rule = REGISTERED[func]
        try:
            self._check_use(x, rule.rows_dimension)
            output = rule.apply(self._examples, x, *rest, **kwargs)
        except UserError as error:
            raise UserError(f"{name} in {_called(func)}: {error}") from None
        return self._stand_ins.put(output, x.dtype) if isinstance(output, Pending) else output

    def _look(self, values: Iterable[Any]) -> tuple[str | None, bool]:
        """What a parameter among nested arguments is, and whether a stand-in is among them.

        Sees every argument of every call, most of which are neither: it has to be fast.
        """
        name, waits = None, False
        for value in values:
            if id(value) in self._names:
                name = name or self._names[id(value)]
            elif id(value) in self._stand_ins:
                waits = True
            elif isinstance(value, tuple | list | dict):
                inner = self._look(value.values() if isinstance(value, dict) else value)
                name, waits = name or inner[0], waits or inner[1]
        return name, waits

    def _check_use(self, x: torch.Tensor, dimension: int) -> None:
        if not torch.is_grad_enabled():
            raise UserError(
                "gradients are switched off here (torch.no_grad, a custom autograd.Function, "
                "checkpoint with use_reentrant=True); use a copy with requires_grad_(False), "
                "or switch them on"
            )
        if id(x) in self._names:
            raise UserError(
                "a parameter can't be the input, only the weight; "
                "look it up with nn.Embedding, or freeze it with requires_grad_(False)"
            )
        rows = x.shape[dimension] if x.dim() > dimension else None
        if rows not in (self._rows, self._examples.count):
            which = ("first", "second")[dimension]
            raise UserError(
                f"the {which} dimension of its input {list(x.shape)} must be that of the "
                f"{self._rows} rows (or {self._examples.count} examples) of the batch"
            )


def _called(func: Callable[..., Any]) -> str:
    """What its caller calls an operation."""
    return str(resolve_name(func) or getattr(func, "__name__", func))
