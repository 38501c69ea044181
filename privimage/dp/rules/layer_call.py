"""What the rules of a layer with weight and bias share: checks, autocast, slots."""

from typing import Any

import torch
from torch.autograd import Function

from privimage.dp.rules.examples import Examples
from privimage.errors import UserError


def applied(
    function: type[Function],
    examples: Examples,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *others: Any,
) -> torch.Tensor:
    """A layer of weight and bias that writes their gradients into their slots."""
    slots = examples.slots_of(weight, bias)
    inputs = map(_autocast, (x, examples.hide(weight), examples.hide(bias)))
    output: torch.Tensor = function.apply(examples.anchor, *inputs, slots, *others)
    return output


def check_dimensions(x: torch.Tensor, least: int) -> None:
    """Raises UserError if the input has fewer dimensions, the rows' among them."""
    if x.dim() < least:
        raise UserError(f"its input {list(x.shape)} has no dimension for the examples")


def _autocast(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """In the type that `torch.autocast` has layers compute in; here, since it ends before backward.

    Float64 keeps its own, as there.
    """
    if tensor is None or not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    is_eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(tensor.device.type)) if is_eligible else tensor
