"""Which operations of PyTorch can hand out one weight gradient an example, and how each does it.

A weight enters a rule expanded to [examples, *shape], without a copy. The forward pass is the
ordinary operation and so is the gradient of the input; the gradient of the expanded weight has one
row an example, which is what clipping needs. The sum over examples is never computed.

Shapes: rows = examples x draws, an example's draws being consecutive rows. A rule adds up what an
example's rows contribute.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from privimage.dp.convolution import ExampleConv2d, Pair, pad_by_name, pair
from privimage.errors import UserError


@dataclass(frozen=True)
class Examples:
    """The micro-batch that a rule works on.

    Attributes:
        count: number of examples.
        parts: the expanded weights [count, *shape] by the `id` of the parameter they stand for.
    """

    count: int
    parts: Mapping[int, torch.Tensor]

    def expand(self, tensor: torch.Tensor) -> torch.Tensor:
        """[*shape] -> [count, *shape]: the part of a trainable parameter, else a plain view."""
        part = self.parts.get(id(tensor))
        return tensor.expand(self.count, *tensor.shape) if part is None else part

    def expand_optional(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """As `expand`; None stays None."""
        return None if tensor is None else self.expand(tensor)


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
    output: torch.Tensor = ExampleConv2d.apply(  # type: ignore[no-untyped-call]
        x, examples.expand(weight), examples.expand_optional(bias), geometry
    )
    return output


def linear(
    examples: Examples, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear` on [rows, ..., inputs]."""
    _check_dimensions(x, 2)
    if weight.dim() != 2:
        raise UserError(f"its weight {list(weight.shape)} must be [outputs, inputs]")
    output: torch.Tensor = _ExampleLinear.apply(  # type: ignore[no-untyped-call]
        x, examples.expand(weight), examples.expand_optional(bias)
    )
    return output


def group_norm(
    examples: Examples,
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.group_norm` on [rows, channels, ...].

    The rows laid side by side are one image of rows x channels feature maps in rows x `num_groups`
    groups; every row then has a scale and shift of its own, with gradients of their own.
    """
    _check_dimensions(x, 2)
    rows, channels, *size = x.shape
    scale, shift = (
        None if tensor is None else _by_row(examples.expand(tensor), rows).flatten()
        for tensor in (weight, bias)
    )
    # PyTorch 2.13 crashes in the backward pass if this is channels-last and needs no gradient.
    side_by_side = x.reshape(1, rows * channels, *size).contiguous()
    return F.group_norm(side_by_side, rows * num_groups, scale, shift, eps).view(x.shape)


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
    output: torch.Tensor = _ExampleEmbedding.apply(  # type: ignore[no-untyped-call]
        x, examples.expand(weight), padding_idx
    )
    return output


Rule = Callable[..., torch.Tensor]

RULES: dict[Callable[..., Any], Rule] = {
    torch.conv2d: conv2d,
    F.linear: linear,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.embedding: embedding,
}
"""Operation -> its rule: the operation's own arguments after `examples` and `x`, its input.

The first dimension of `x` is that of the rows, and a parameter passes through `Examples.expand`.
"""


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


class _ExampleLinear(Function):
    """F.linear; weight [examples, outputs, inputs], bias [examples, outputs], both expanded."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight[0], None if bias is None else bias[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        xs, grads = (t.reshape(len(weight), -1, t.shape[-1]) for t in (x, grad))
        for_x = grad @ weight[0] if ctx.needs_input_grad[0] else None
        for_weight = grads.mT @ xs if ctx.needs_input_grad[1] else None
        for_bias = grads.sum(1) if ctx.needs_input_grad[2] else None
        return for_x, for_weight, for_bias


class _ExampleEmbedding(Function):
    """F.embedding of a table [examples, entries, width], expanded."""

    @staticmethod
    def forward(
        ctx: Any, indices: torch.Tensor, weight: torch.Tensor, padding_idx: int | None
    ) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.shape, ctx.padding_idx = weight.shape, padding_idx
        return F.embedding(indices, weight[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        count, entries, width = ctx.shape
        # One table of examples x entries: what two examples read never meets in one entry.
        first = entries * torch.arange(count, device=indices.device)
        shifted = indices.reshape(count, -1) + first[:, None]
        parts = torch.ops.aten.embedding_dense_backward(
            grad.reshape(count, -1, width), shifted, count * entries, -1, False
        ).view(ctx.shape)
        if ctx.padding_idx is not None:
            parts[:, ctx.padding_idx] = 0
        return None, parts, None


def _by_row(part: torch.Tensor, rows: int, dimensions: int = 0) -> torch.Tensor:
    """[examples, *shape] -> [rows, 1, ..., *shape] with at least so many dimensions."""
    shape = part.shape[1:]
    ones = [1] * (dimensions - 1 - len(shape))
    by_draw = part[:, None].expand(-1, rows // len(part), *shape)
    return by_draw.reshape(rows, *ones, *shape)


def _check_dimensions(x: torch.Tensor, least: int) -> None:
    if x.dim() < least:
        raise UserError(f"its input {list(x.shape)} has no dimension for the examples")
