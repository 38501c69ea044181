"""Which operations of PyTorch can hand out one weight gradient an example, and how each does it.

The forward pass is the ordinary operation and so is the gradient of the input; the gradient of a
weight has one row an example, which is what clipping needs, and is written into the weight's slot.
The sum over examples is never computed.

Shapes: rows = examples x draws, an example's draws being consecutive rows. A rule adds up what an
example's rows contribute.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from privimage import ops
from privimage.dp.convolution import ExampleConv2d, Pair, pad_by_name, pair
from privimage.dp.normalisation import ExampleGroupNorm
from privimage.dp.pending import Pending
from privimage.dp.slots import Examples, Slot, Slots, claim, write_weight_grad
from privimage.errors import UserError


def conv2d(
    examples: Examples,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: str | Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> torch.Tensor:
    """`torch.conv2d` on [rows, channels, height, width]."""
    _check_dimensions(x, 4)
    if isinstance(padding, str):
        x, padding = pad_by_name(x, padding, weight.shape[2:], pair(dilation))
    geometry = (pair(stride), pair(padding), pair(dilation), groups)
    x = examples.in_format(x)
    return examples.in_format(_apply(ExampleConv2d, examples, x, weight, bias, geometry))


def linear(
    examples: Examples, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear` on [rows, ..., inputs]."""
    _check_dimensions(x, 2)
    if weight.dim() != 2:
        raise UserError(f"its weight {list(weight.shape)} must be [outputs, inputs]")
    return _apply(_ExampleLinear, examples, x, weight, bias)


def group_norm(
    examples: Examples,
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> Pending:
    """`F.group_norm` on [rows, channels, ...], with the SiLU that follows in one go."""
    _check_dimensions(x, 2)
    dtype = torch.promote_types(x.dtype, torch.float32)
    (taken,) = ops.as_taken(dtype, x)
    scale, shift = (t if t is None else t.to(dtype) for t in map(examples.hide, (weight, bias)))
    slots = examples.slots_of(weight, bias)

    def compute(silu: bool) -> torch.Tensor:
        output: torch.Tensor = ExampleGroupNorm.apply(  # type: ignore[no-untyped-call]
            examples.anchor, taken, scale, shift, slots, num_groups, eps, silu
        )
        return output.to(x.dtype)

    return Pending(x.shape, compute)


def layer_norm(
    examples: Examples,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.layer_norm` on [rows, ..., *normalized_shape]."""
    _check_dimensions(x, 1 + len(normalized_shape))
    output = F.layer_norm(x, normalized_shape, eps=eps)
    if weight is not None:
        output = output * _by_row(examples.expand(weight), len(x), x.dim())
    if bias is not None:
        output = output + _by_row(examples.expand(bias), len(x), x.dim())
    return output


def rms_norm(
    examples: Examples,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor,
    eps: float | None = None,
) -> torch.Tensor:
    """`F.rms_norm` on [rows, ..., *normalized_shape]."""
    _check_dimensions(x, 1 + len(normalized_shape))
    output = F.rms_norm(x, normalized_shape, eps=eps)
    return output * _by_row(examples.expand(weight), len(x), x.dim())


def embedding(
    examples: Examples,
    x: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    """`F.embedding` of indices [rows, ...]; entry `padding_idx` has gradient 0, as there."""
    _check_dimensions(x, 1)
    if max_norm is not None:
        raise UserError("max_norm changes the table while it is read; leave it out")
    if scale_grad_by_freq:
        raise UserError("scale_grad_by_freq counts over all examples; leave it out")
    if sparse:
        raise UserError("sparse gradients are not supported; leave sparse out")
    slot, hidden = examples.slots.get(id(weight)), examples.hide(weight)
    output: torch.Tensor = _ExampleEmbedding.apply(  # type: ignore[no-untyped-call]
        examples.anchor, x, hidden, slot, padding_idx
    )
    return output


Rule = Callable[..., torch.Tensor | Pending]

RULES: dict[Callable[..., Any], Rule] = {
    torch.conv2d: conv2d,
    F.linear: linear,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.embedding: embedding,
}
"""Operation -> its rule: the operation's own arguments after `examples` and `x`, its input.

The first dimension of `x` is that of the rows. A parameter's gradients go into its slot, by
hand or through `Examples.expand`.
"""

_ONE_TAP = ((1, 1), (0, 0), (1, 1), 1)


def check_layers(model: nn.Module) -> None:
    """Raises UserError, naming the module, if a layer mixes examples or keeps statistics of them.

    Mixing by any other means is found by `ExampleGradients.check_independence`.
    """
    for name, module in model.named_modules():
        where = f"module '{name}' ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"{where} mixes the examples of a batch; use nn.GroupNorm instead")
        if getattr(module, "track_running_stats", False):
            raise UserError(f"{where} keeps statistics of the data; set track_running_stats=False")


def _apply(
    function: type[Function],
    examples: Examples,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *others: Any,
) -> torch.Tensor:
    """A layer of weight and bias that writes their gradients into their slots."""
    slots = examples.slots_of(weight, bias)
    cast = _as_autocast(x, examples.hide(weight), examples.hide(bias))
    output: torch.Tensor = function.apply(examples.anchor, *cast, slots, *others)
    return output


def _as_autocast(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """In the type in which autocast would compute, so that the backward pass meets one type."""
    kind = next(tensor.device.type for tensor in tensors if tensor is not None)
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


class _ExampleLinear(Function):
    """F.linear of x [rows, ..., inputs], with the arguments of `ExampleConv2d` but no geometry."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        slots: Slots,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slots = slots
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        if weight_slot is not None:
            write_weight_grad(_as_pixels(x), _as_pixels(grad), weight_slot, bias_slot, _ONE_TAP)
        elif bias_slot is not None:
            bias_slot.add(grad.reshape(len(bias_slot.rows), -1, grad.shape[-1]).sum(1))
        _, wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        for_x = grad @ weight if wants_x else None
        flat = grad.flatten(0, -2)
        for_weight = flat.mT @ x.flatten(0, -2) if wants_weight else None
        for_bias = flat.sum(0) if wants_bias else None
        return None, for_x, for_weight, for_bias, None


class _ExampleEmbedding(Function):
    """F.embedding of indices [rows, ...] in a table [entries, width]."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        indices: torch.Tensor,
        weight: torch.Tensor,
        slot: Slot | None,
        padding_idx: int | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.slot, ctx.entries = slot, len(weight)
        # From the end or from the start: the gradient's rule counts from the start.
        ctx.padding_idx = None if padding_idx is None else padding_idx % len(weight)
        return F.embedding(indices, weight, padding_idx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        slot, padding = ctx.slot, ctx.padding_idx
        for_weight = None
        if slot is not None:
            accumulate = claim(slot)
            count = len(slot.rows)
            (taken,) = ops.as_taken(slot.rows.dtype, grad)
            slopes = taken.reshape(count, -1, grad.shape[-1])
            read = indices.reshape(count, -1)
            ops.example_embedding_grad(read, slopes, slot.rows, padding, accumulate)
        if ctx.needs_input_grad[2]:
            for_weight = torch.ops.aten.embedding_dense_backward(
                grad, indices, ctx.entries, -1 if padding is None else padding, False
            )
        return None, None, for_weight, None, None


def _as_pixels(x: torch.Tensor) -> torch.Tensor:
    """[rows, ..., channels] -> [rows, channels, 1, pixels]: a linear layer is a 1x1 convolution."""
    return x.reshape(len(x), 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _by_row(part: torch.Tensor, rows: int, dimensions: int = 0) -> torch.Tensor:
    """[examples, *shape] -> [rows, 1, ..., *shape] with at least so many dimensions."""
    shape = part.shape[1:]
    ones = [1] * (dimensions - 1 - len(shape))
    by_draw = part[:, None].expand(-1, rows // len(part), *shape)
    return by_draw.reshape(rows, *ones, *shape)


def _check_dimensions(x: torch.Tensor, least: int) -> None:
    if x.dim() < least:
        raise UserError(f"its input {list(x.shape)} has no dimension for the examples")
