"""A convolution whose weight has one gradient an example: here a private step spends its time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F

from privimage import ops
from privimage.dp.rules.slots import Slots, once_differentiable, opened, write_weight_grad

Pair = int | Sequence[int]


class ExampleConv2d(Function):
    """`torch.conv2d` with the gradients of weight and bias written into slots.

    Arguments: an anchor, x [rows, inputs, height, width], weight, bias or None, their slots and the
    `ops.ConvGeometry`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        slots: Slots,
        geometry: ops.ConvGeometry,
    ) -> torch.Tensor:
        """[rows, outputs, height', width'], as `torch.conv2d`."""
        if x.is_contiguous(memory_format=torch.channels_last):
            # Both passes need it so, and would each make a copy of their own.
            weight = weight.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.slots = slots
        ctx.geometry = geometry
        return torch.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of what is no trainable parameter, as ever."""
        x, weight = ctx.saved_tensors
        weight_slot, bias_slot = opened(*ctx.slots)
        if weight_slot is not None:
            write_weight_grad(x, grad, weight_slot, bias_slot, ctx.geometry)
        elif bias_slot is not None:
            bias_slot.add(grad.view(len(bias_slot.rows), -1, *grad.shape[1:]).sum((1, 3, 4)))
        ordinary = _ordinary_gradients(grad, x, weight, ctx.geometry, ctx.needs_input_grad[1:4])
        return None, *ordinary, None, None


def _ordinary_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    geometry: ops.ConvGeometry,
    wanted: Sequence[bool],
) -> list[torch.Tensor | None]:
    """conv2d's gradients of x, weight and bias, those that are wanted."""
    if not any(wanted):
        return [None, None, None]
    stride, padding, dilation, groups = geometry
    outputs = [grad.shape[1]]
    return list(
        torch.ops.aten.convolution_backward.default(
            grad, x, weight, outputs, stride, padding, dilation, False, [0, 0], groups, list(wanted)
        )
    )


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
