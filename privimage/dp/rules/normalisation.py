"""Group and layer normalisation with the gradients of scale and shift for each example."""

from typing import Any

import torch
from torch.autograd import Function

from privimage import ops
from privimage.dp.rules.slots import Slots, claim, once_differentiable, opened


class ExampleGroupNorm(Function):
    """`ops.group_norm_silu` with the gradients of weight and bias written into slots.

    Arguments: an anchor, x [rows, channels, ...], weight and bias [channels] or None, their slots
    (of as many values, in any shape), groups, eps and whether SiLU follows. An example may have
    many rows: its draws, or the positions that layer normalisation takes one by one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        slots: Slots,
        groups: int,
        eps: float,
        silu: bool,
    ) -> torch.Tensor:
        """As x."""
        y, moments = ops.group_norm_silu(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, moments, weight, bias)
        ctx.slots = slots
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of what is no trainable parameter, as ever."""
        x, moments, weight, bias = ctx.saved_tensors
        slots = opened(*ctx.slots)
        accumulate = claim(*slots)
        rows = [None if slot is None else slot.rows.flatten(1) for slot in slots]
        count = next((len(r) for r in rows if r is not None), len(x))
        ordinary: list[torch.Tensor | None] = [None, None]
        for i, wanted in enumerate(ctx.needs_input_grad[2:4]):
            if wanted:
                ordinary[i] = rows[i] = moments.new_zeros(count, x.shape[1])
        for_weight, for_bias = rows
        for_x = ops.group_norm_silu_backward(
            grad, x, moments, weight, bias, for_weight, for_bias, ctx.silu, accumulate
        )
        sums = (None if parts is None else parts.sum(0) for parts in ordinary)
        return None, for_x, *sums, None, None, None, None
