"""The operations that may use a trainable parameter, each with its rule; others can be registered.

A rule computes what the operation computes and lets each example's gradient of a parameter go into
the parameter's slot: `rule(examples, x, *others)` for `operation(x, *others)`. Most are in
`privimage.dp.rules.layers`. What has no rule of its own there can be run for each example by
`torch.vmap`: right for every operation that vmap knows, and slower.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from privimage.dp.rules import direct, recurrent
from privimage.dp.rules.attention import multi_head_attention
from privimage.dp.rules.embeddings import embedding_bag
from privimage.dp.rules.examples import Examples
from privimage.dp.rules.layers import RULES
from privimage.errors import UserError, check_count

Operation = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """How an operation is done.

    Attributes:
        apply: `apply(examples, *args, **kwargs)` with the operation's own arguments.
        rows_dimension: which dimension of the first one holds the rows; None if the rule finds out
            by itself where data and parameters are.
    """

    apply: Callable[..., Any]
    rows_dimension: int | None = 0


def vmapped(operation: Operation, inputs: int = 1) -> Rule:
    """The rule that runs `operation` for each example with a copy of the parameters of its own.

    Args:
        operation: a function of tensors that `torch.vmap` can run, with one output whose first
            dimension is that of the rows.
        inputs: how many of its first arguments have one row (or more) an example; all others are
            parameters, frozen tensors or options, and belong to all examples.
    """

    def apply(examples: Examples, *arguments: Any, **options: Any) -> torch.Tensor:
        count = examples.count
        split = [argument.unflatten(0, (count, -1)) for argument in arguments[:inputs]]
        shared = [examples.own(argument) for argument in arguments[inputs:]]
        named = {name: examples.own(option) for name, option in options.items()}
        given = [*split, *(value for value, _ in shared)]
        dimensions = [*[0] * inputs, *(dimension for _, dimension in shared)]
        keywords = {name: value for name, (value, dimension) in named.items() if dimension is None}
        mapped = {name: value for name, (value, dimension) in named.items() if dimension == 0}

        def run(given: tuple[Any, ...], mapped: dict[str, Any]) -> torch.Tensor:
            return operation(*given, **keywords, **mapped)  # type: ignore[no-any-return]

        of_all = torch.vmap(run, in_dims=(tuple(dimensions), 0), randomness="different")
        output: torch.Tensor = of_all(tuple(given), mapped)
        return output.flatten(0, 1)

    return Rule(apply)


def _bilinear(
    x: torch.Tensor, other: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`torch.bilinear`, which vmap does not know."""
    output = torch.einsum("...i,oij,...j->...o", x, weight, other)
    return output if bias is None else output + bias


REGISTERED: dict[Operation, Rule] = {
    **{operation: Rule(rule) for operation, rule in RULES.items()},
    F.multi_head_attention_forward: Rule(multi_head_attention, rows_dimension=1),
    torch.conv1d: vmapped(torch.conv1d),
    torch.conv3d: vmapped(torch.conv3d),
    torch.conv_transpose1d: vmapped(torch.conv_transpose1d),
    torch.conv_transpose2d: vmapped(torch.conv_transpose2d),
    torch.conv_transpose3d: vmapped(torch.conv_transpose3d),
    torch.bilinear: vmapped(_bilinear, inputs=2),
    F.embedding_bag: Rule(embedding_bag, None),
    **{
        operation: Rule(rule, None)
        for operation, rule in (direct.OPERATIONS | recurrent.OPERATIONS).items()
    },
}


def register_rule(
    operation: Operation, rule: Callable[..., torch.Tensor] | None = None, *, inputs: int = 1
) -> None:
    """Lets an own operation use trainable parameters.

    Without `rule`, the operation is run for each example by `torch.vmap`. An own Python function
    must hand itself over to PyTorch's modes, by `torch.overrides.handle_torch_function` or, in
    short, by the decorator `privimage.dp.watched`.

    Formal guarantee: none for a `rule` of one's own: a row of the gradient that depends on another
    example, or leaves a part out, breaks the promise of every step. Compare it with
    `torch.autograd.grad` one example at a time, and run `check_independence`
    (tests/dp/test_rules.py::test_a_wrong_rule_is_found_by_the_check). Without `rule`, as
    `ExampleGradients`.

    Args:
        operation: a PyTorch function, or a function decorated by `watched`, whose first argument
            has the rows of the batch as its first dimension.
        rule: `rule(examples, x, *others, **options)`, with the operation's own arguments; gets a
            parameter as [examples, *shape] from `examples.expand(parameter)`.
        inputs: without `rule`, how many of the first arguments have rows.

    Raises:
        UserError: the operation has a rule already.
    """
    check_count("inputs", inputs)
    if operation in REGISTERED:
        raise UserError(f"{operation.__name__} has a rule already")
    REGISTERED[operation] = vmapped(operation, inputs) if rule is None else Rule(rule)


def watched(function: Operation) -> Operation:
    """A decorator: the function is one operation to `ExampleGradients`, as those of PyTorch are."""

    def operation(*arguments: Any, **options: Any) -> Any:
        tensors = [a for a in (*arguments, *options.values()) if isinstance(a, torch.Tensor)]
        if torch.overrides.has_torch_function(tensors):
            return torch.overrides.handle_torch_function(operation, tensors, *arguments, **options)
        return function(*arguments, **options)

    operation.__name__ = function.__name__
    operation.__doc__ = function.__doc__
    return operation
