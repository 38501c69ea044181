"""A convolution whose weight has one gradient an example: here a private step spends its time."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Pair = int | Sequence[int]

Geometry = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation (height and width each) and groups, as `torch.conv2d` takes them."""

# From here on a loop over the examples is as fast as one grouped convolution for them all, and
# several times faster where the channels don't fill the CPU's vectors.
_POSITIONS_FOR_LOOP = 1024


class ExampleConv2d(Function):
    """`torch.conv2d` of x [rows, inputs, height, width] with weights that have example rows.

    Arguments: x, weight [examples, outputs, inputs / groups, *taps] and bias [examples, outputs] or
    None, both one tensor expanded over the examples, and the `Geometry`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        geometry: Geometry,
    ) -> torch.Tensor:
        """[rows, outputs, height', width'], as `torch.conv2d`."""
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.conv2d(x, weight[0], None if bias is None else bias[0], *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x (as ever), weight and bias (one row an example)."""
        x, weight = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = _ordinary_gradient("input", grad, x, weight[0], ctx.geometry)
        if ctx.needs_input_grad[1]:
            for_weight = weight_parts(x, grad, weight.shape, ctx.geometry)
        if ctx.needs_input_grad[2]:
            for_bias = _by_example(grad, len(weight)).sum((1, 3, 4))
        return for_x, for_weight, for_bias, None


def weight_parts(
    x: torch.Tensor, grad: torch.Tensor, shape: torch.Size, geometry: Geometry
) -> torch.Tensor:
    """The weight gradient of each example, summed over its draws and the positions.

    Three ways, chosen by what was measured on one CPU thread (UNets on 8x8 and 32x32 images):
    1x1 taps are a batch of matrix products; a long sum (draws x positions) is one call an example;
    a short one, where the calls themselves would cost more, is a single convolution in which the
    examples lie side by side as groups.

    Args:
        x: [rows, inputs, height, width], input of the convolution.
        grad: [rows, outputs, height', width'], gradient of its output.
        shape: [examples, outputs, inputs / groups, *taps], shape of the result.
        geometry: of the convolution.
    """
    count, taps = shape[0], list(shape[3:])
    stride, padding, dilation, groups = geometry
    xs, grads = (_by_example(tensor, count) for tensor in (x, grad))
    if taps == stride == [1, 1] and padding == [0, 0] and groups == 1:
        return torch.einsum("edop,edip->eoi", grads.flatten(3), xs.flatten(3)).view(shape)
    draws, positions = grads.shape[1], math.prod(grad.shape[2:])
    if draws * positions >= _POSITIONS_FOR_LOOP:
        unread = grad.new_empty(1).expand(shape[1:])
        parts = grad.new_empty(shape)
        for part, g, one in zip(parts, grads, xs, strict=True):
            part.copy_(_ordinary_gradient("weight", g, one, unread, geometry))
        return parts
    unread = grad.new_empty(1).expand(shape).flatten(0, 1)
    xs, grads = (tensor.transpose(0, 1).flatten(1, 2) for tensor in (xs, grads))
    side_by_side = (stride, padding, dilation, count * groups)
    return _ordinary_gradient("weight", grads, xs, unread, side_by_side).view(shape)


def _ordinary_gradient(
    of: str, grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: Geometry
) -> torch.Tensor:
    """conv2d's gradient of "input" or "weight", of which only the shape is read."""
    stride, padding, dilation, groups = geometry
    wanted = [of == "input", of == "weight", False]
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    gradient: torch.Tensor = gradients[wanted.index(True)]
    return gradient


def _by_example(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """[rows, ...] -> [examples, draws, ...], a view."""
    return tensor.view(count, -1, *tensor.shape[1:])


def pair(value: Pair) -> list[int]:
    """One number for height and width, or one for each -> one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def pad_by_name(
    x: torch.Tensor, name: str, taps: Sequence[int], dilation: Sequence[int]
) -> tuple[torch.Tensor, list[int]]:
    """Padding "same" or "valid" in numbers; where one pixel more is needed, `x` gets it."""
    if name == "valid":
        return x, [0, 0]
    height, width = (reach * (count - 1) for reach, count in zip(dilation, taps, strict=True))
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    return x, [height // 2, width // 2]
