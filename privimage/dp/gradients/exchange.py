"""Watches every PyTorch call of a thread and sends each use of a parameter to its rule."""

import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from privimage.dp.gradients.provenance import FROM_CONSTANTS, Provenance
from privimage.dp.rules.derived import BY_FORM, CHANGED, by_form, derive, tensors_in, with_bases
from privimage.dp.rules.examples import Examples
from privimage.dp.rules.packing import FOLLOWED
from privimage.dp.rules.pending import Pending, StandIns
from privimage.dp.rules.registry import REGISTERED, Rule
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

_VIEWS = {
    *(torch.Tensor.view, torch.Tensor.reshape, torch.Tensor.flatten),
    *(torch.Tensor.view_as, torch.Tensor.reshape_as, torch.reshape, torch.flatten),
}
"""Whose first dimension may take in what stood behind it."""


class Exchange(TorchFunctionMode):
    """Sends each use of a trainable parameter to its rule, or refuses it by name.

    A call of parameters and constants alone gives a tensor that is treated as a parameter again.
    """

    def __init__(
        self,
        examples: Examples,
        names: dict[int, str],
        batch: Iterable[torch.Tensor],
        constants: Iterable[torch.Tensor],
    ) -> None:
        """`names` says in words what the parameter of each `id` is."""
        super().__init__()
        self._examples = examples
        self._names = names
        self._stand_ins = StandIns(examples.anchor)
        self._provenance = Provenance(examples, batch, constants)

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
            output = func(*args, **kwargs)
            if func in _VIEWS and args and self._provenance.is_data(args[0]):
                self._examples.note_view(args[0], output)
            if func in FOLLOWED:
                self._examples.packing.follow(func, args, output)
            # What has a gradient is known to be data.
            if not (isinstance(output, torch.Tensor) and output.requires_grad):
                self._provenance.follow(func, (args, kwargs), output)
            return output
        try:
            return self._use(func, name, args, dict(kwargs))
        except UserError as error:
            raise UserError(f"{name} in {_called(func)}: {error}") from None
        except TypeError as error:
            raise UserError(
                f"{name} in {_called(func)}: its rule does not take these arguments ({error}); "
                "give them by position"
            ) from error
        except RuntimeError as error:
            if (advice := _advice(str(error))) is None:
                raise
            raise UserError(f"{name} in {_called(func)}: {advice}") from error

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

    def _use(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Runs a function that takes a parameter, or something computed from parameters."""
        if not torch.is_grad_enabled():
            raise UserError(
                "gradients are switched off here (torch.no_grad, a custom autograd.Function, "
                "checkpoint with use_reentrant=True); switch them on, use a copy with "
                "requires_grad_(False), or name the Function by `watched` and `register_rule`"
            )
        if isinstance(func, torch._ops.OpOverload):
            raise UserError("torch.compile hides calls; give the engine what is not compiled")
        if func in BY_FORM:
            func, args = by_form(func, args)
            if not any(map(self._examples.owns, tensors_in((args, kwargs)))):
                output = func(*args, **kwargs)
                self._provenance.follow(func, (args, kwargs), output)
                return output
        if not any(map(self._provenance.is_data, tensors_in((args, kwargs)))):
            output = derive(self._examples, func, args, kwargs)
            for tensor in filter(self._examples.owns, with_bases(output)):
                self._names.setdefault(id(tensor), name)
            return output
        rule = REGISTERED.get(func)
        if rule is None:
            owned = list(filter(self._examples.owns, tensors_in((args, kwargs))))
            raise UserError(_no_rule(is_derived=not all(tensor.is_leaf for tensor in owned)))
        return self._apply(rule, args, kwargs)

    def _apply(self, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a rule, or a stand-in for one that waits."""
        if rule.rows_dimension is None:
            return rule.apply(self._examples, *args, **kwargs)
        if not args and "input" not in kwargs:
            raise TypeError("its input is missing")
        x, *rest = args if args else (kwargs.pop("input"),)
        if self._examples.owns(x):
            raise UserError(
                "a parameter can't be the input, only the weight; make it one row for each of the "
                "data's, as in x.new_zeros(len(x), 1) + parameter"
            )
        self._examples.check_rows(x, rule.rows_dimension)
        output = rule.apply(self._examples, x, *rest, **kwargs)
        return self._stand_ins.put(output, x.dtype) if isinstance(output, Pending) else output


def exchange(
    examples: Examples,
    names: dict[int, str],
    batch: Iterable[torch.Tensor],
    constants: Iterable[torch.Tensor],
) -> Exchange:
    """An `Exchange` that torch.compile lets alone: compiled, rules would not write into slots."""
    # Nobody has compiled anything before this module is there, which takes a second to import.
    kind = _uncompiled() if "torch._dynamo" in sys.modules else Exchange
    return kind(examples, names, batch, constants)


@cache
def _uncompiled() -> type[Exchange]:
    function = torch.compiler.disable(Exchange.__torch_function__)
    return type("Uncompiled", (Exchange,), {"__torch_function__": function})


def _no_rule(is_derived: bool) -> str:
    """What to do about a function that takes parameters, or what is derived of them, and data."""
    known = (one for one, rule in REGISTERED.items() if rule.rows_dimension is not None)
    names = ", ".join(operation.__name__ for operation in known)
    advice = (
        f"no per-example gradient is known; use arithmetic, products or {names}, give it one by "
        "privimage.dp.register_rule, or freeze the parameter with requires_grad_(False)"
    )
    return f"{advice}. {FROM_CONSTANTS}" if is_derived else advice


def _advice(problem: str) -> str | None:
    """What to do about an error of PyTorch; None if it says so itself."""
    if "functorch" in problem:
        return (
            "torch.func can't transform what has per-example gradients; call the model without it"
        )
    # Of a parameter, a view of one, or a part that chunk or unbind gave.
    return CHANGED if "inplace" in problem or "in-place" in problem else None


def _called(func: Callable[..., Any]) -> str:
    """What its caller calls an operation."""
    name = getattr(func, "__name__", "")
    known = str(resolve_name(func) or name)
    # Of some operations PyTorch knows only an alias.
    return f"torch.{name}" if getattr(torch, name, None) is func else known
