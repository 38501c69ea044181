"""Tensors computed from parameters alone: a normalised weight, a slice of a table, a learned token.

Such a tensor has one gradient an example as a parameter has. After the backward pass they go on to
the parameters, through the very operations that made it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn import functional as F

from privimage.dp.rules.embeddings import NOT_SPARSE
from privimage.dp.rules.examples import Examples
from privimage.dp.rules.slots import content
from privimage.errors import UserError

_REPEATING = (torch.Tensor.expand, torch.Tensor.repeat)
_CUTTING = (torch.Tensor.detach, torch.detach, getattr(torch.Tensor, "data").__get__)  # noqa: B009
"""What hands out the values of a parameter without its gradient, to be changed in place perhaps."""

_CUTTING_OFF = (torch.Tensor.detach_, torch.detach_)
"""What makes a constant of the tensor itself, which is known as something else."""

BY_FORM: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.Tensor.expand_as: torch.Tensor.expand,
    torch.Tensor.view_as: torch.Tensor.view,
    torch.Tensor.reshape_as: torch.Tensor.reshape,
    torch.Tensor.type_as: torch.Tensor.to,
    torch.Tensor.to: torch.Tensor.to,
}
"""What takes another tensor for its form alone, and what takes the form instead."""

_UNSEEN = "its values would be used where its gradient is not seen; use a frozen copy"
CHANGED = "it is changed in place; write to a new tensor (inplace=False)"


def derive(
    examples: Examples, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`func(*args, **kwargs)` of parameters and constants, ready to be used as a parameter is.

    Raises:
        UserError: the result has lost its connection to the parameters, or is one of them, changed.
    """
    if func in _CUTTING:
        if args[0].is_leaf or (args[0]._base is not None and args[0]._base.is_leaf):
            raise UserError(_UNSEEN)
        # A constant, whose memory is no parameter's; by `detach`, whose versions are those of both.
        return args[0].detach()
    if func in _CUTTING_OFF:
        raise UserError(_UNSEEN)
    if kwargs.get("sparse"):
        raise UserError(NOT_SPARSE)
    parameters = [value for value in tensors_in((args, kwargs)) if id(value) in examples.slots]
    versions = [parameter._version for parameter in parameters]
    output = func(*args, **kwargs)
    if [parameter._version for parameter in parameters] != versions:
        raise UserError(CHANGED)
    if func is torch.Tensor.__setitem__:
        output = args[0]
    several = isinstance(output, tuple | list)
    results = [each for each in output if each is not None] if several else [output]
    if not all(isinstance(result, torch.Tensor) for result in results):
        raise UserError(_UNSEEN)
    for result in with_bases(results):
        # What has no gradient, such as a comparison, is a constant.
        if result.requires_grad and not examples.owns(result):
            examples.derive(result)
    if examples.owns(output) and (once := _once(func, args, kwargs)) is not None:
        examples.repeated[content(output)] = examples.derive(once)
    return output


def _once(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor | None:
    """What `func` gives where it repeats a parameter for all rows, of one row; None elsewhere."""
    once: torch.Tensor | None = None
    if func is F.embedding and args and _is_repeated(args[0]):
        once = func(args[0][:1], *args[1:], **kwargs)
    if func in _REPEATING and len(args) > 1:
        tensor, sizes = args[0], torch.Size(args[1:] if isinstance(args[1], int) else args[1])
        if len(sizes) > tensor.dim() or (sizes and len(tensor) == 1):
            once = func(tensor, 1, *sizes[1:])
    return once


def _is_repeated(x: torch.Tensor) -> bool:
    """Whether its rows are one in memory, as of positions that were expanded."""
    return x.dim() > 0 and len(x) > 1 and x.stride(0) == 0


def by_form(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A call of one of `BY_FORM`, without the tensor that it takes for its form alone."""
    if len(args) < 2 or not all(isinstance(value, torch.Tensor) for value in args[:2]):
        return func, args
    tensor, like, *others = args
    instead = BY_FORM[func]
    form = (like.device, like.dtype) if instead is torch.Tensor.to else (like.shape,)
    return instead, (tensor, *form, *others)


def hand_back(examples: Examples, parameters: Sequence[torch.Tensor]) -> None:
    """Adds the gradients of what was computed from parameters to theirs.

    Raises:
        UserError: it depends on a layer's result as well, which was written to it out of sight,
            through a view of constants that were there before: that layer would not see them.
    """
    used = [slot for slot in examples.derived_slots.values() if slot.used]
    if not used:
        return
    if _reach([slot.edge.node for slot in used], get_gradient_edge(examples.anchor).node):
        raise UserError(
            "data is written through a view into what was computed from parameters; write to a "
            "new tensor, or to the whole one"
        )
    gradients = torch.autograd.grad(
        [slot.edge for slot in used],
        parameters,
        [slot.rows.to(slot.dtype) for slot in used],
        allow_unused=True,
        is_grads_batched=True,
    )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            examples.slots[id(parameter)].add(gradient)


def _reach(nodes: Iterable[Node], goal: Node) -> bool:
    """Whether PyTorch's graph leads from one of the nodes to `goal`."""
    found = set(nodes)
    waiting = list(found)
    while waiting:
        following = {node for node, _ in waiting.pop().next_functions if node is not None}
        waiting.extend(following - found)
        found |= following
    return goal in found


def with_bases(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a structure, and what they are views of, which is written to through them."""
    for tensor in tensors_in(value):
        yield tensor
        if tensor._base is not None:
            yield tensor._base


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a structure of arguments."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
