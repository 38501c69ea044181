"""Products of data with a matrix: the linear layer, and the matrix that stands behind the data."""

from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from privimage.dp.rules.examples import Examples
from privimage.dp.rules.layer_call import applied, check_dimensions
from privimage.dp.rules.slots import Slots, once_differentiable, opened, write_weight_grad
from privimage.errors import UserError

_ONE_TAP = ((1, 1), (0, 0), (1, 1), 1)


def linear(
    examples: Examples, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear` on [rows, ..., inputs]."""
    check_dimensions(x, 2)
    if weight.dim() != 2:
        raise UserError(f"its weight {list(weight.shape)} must be [outputs, inputs]")
    if bias is not None and bias.shape != weight.shape[:1]:  # One for all outputs.
        shift = examples.by_row(bias, len(x), x.dim()) if examples.owns(bias) else bias
        return linear(examples, x, weight) + shift
    return applied(_ExampleLinear, examples, x, weight, bias, False)


def matrix_product(
    examples: Examples, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Of x [rows, ..., inputs] with a parameter [inputs, outputs], and a bias [outputs] added."""
    if weight.is_complex():  # The native products are those of real numbers.
        output = (x[..., None, :] @ examples.by_row(weight, len(x), x.dim() + 1)).squeeze(-2)
        return output if bias is None else output + examples.by_row(bias, len(x), x.dim())
    return applied(_ExampleLinear, examples, x, weight, bias, True)


def write_linear_grad(x: torch.Tensor, grad: torch.Tensor, slots: Slots) -> None:
    """Writes the gradients of a linear layer from [rows, ..., inputs] to [rows, ..., outputs]."""
    weight_slot, bias_slot = opened(*slots)
    if weight_slot is not None:
        write_weight_grad(_as_pixels(x), _as_pixels(grad), weight_slot, bias_slot, _ONE_TAP)
    elif bias_slot is not None:
        bias_slot.add(grad.reshape(len(bias_slot.rows), -1, grad.shape[-1]).sum(1))


class _ExampleLinear(Function):
    """F.linear of x [rows, ..., inputs], with the arguments of `ExampleConv2d` but no geometry.

    If `stands_behind`, the weight is [inputs, outputs]: its gradient is that of a linear layer from
    `grad` to x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        slots: Slots,
        stands_behind: bool,
    ) -> torch.Tensor:
        weight = weight.mT if stands_behind else weight
        ctx.save_for_backward(x, weight)
        ctx.slots, ctx.stands_behind = slots, stands_behind
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        if ctx.stands_behind:
            write_linear_grad(grad, x, (weight_slot, None))
            write_linear_grad(x, grad, (None, bias_slot))
        else:
            write_linear_grad(x, grad, ctx.slots)
        _, wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        for_x = grad @ weight if wants_x else None
        flat = grad.flatten(0, -2)
        # A weight that stands behind has a slot.
        for_weight = flat.mT @ x.flatten(0, -2) if wants_weight else None
        for_bias = flat.sum(0) if wants_bias else None
        return None, for_x, for_weight, for_bias, None, None


def _as_pixels(x: torch.Tensor) -> torch.Tensor:
    """[rows, ..., channels] -> [rows, channels, 1, pixels]: a linear layer is a 1x1 convolution."""
    return x.reshape(len(x), 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
