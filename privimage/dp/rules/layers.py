"""Which operations of PyTorch can hand out one weight gradient an example, and how each does it.

The forward pass is the ordinary operation and so is the gradient of the input; the gradient of a
weight has one row an example, which is what clipping needs, and is written into the weight's slot.
The sum over examples is never computed.

Shapes: rows = examples x draws, an example's draws being consecutive rows. A rule adds up what an
example's rows contribute.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from privimage import ops
from privimage.dp.rules.convolution import ExampleConv2d, Pair, pad_by_name, pair
from privimage.dp.rules.embeddings import embedding
from privimage.dp.rules.examples import Examples
from privimage.dp.rules.layer_call import applied, check_dimensions
from privimage.dp.rules.linear import linear
from privimage.dp.rules.normalisation import ExampleGroupNorm
from privimage.dp.rules.pending import Pending
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
    check_dimensions(x, 4)
    if isinstance(padding, str):
        x, padding = pad_by_name(x, padding, weight.shape[2:], pair(dilation))
    geometry = (pair(stride), pair(padding), pair(dilation), groups)
    x = examples.in_format(x)
    return examples.in_format(applied(ExampleConv2d, examples, x, weight, bias, geometry))


def group_norm(
    examples: Examples,
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> Pending:
    """`F.group_norm` on [rows, channels, ...], with the SiLU that follows in one go."""
    check_dimensions(x, 2)
    compute = partial(_normalised, examples, x, weight, bias, num_groups, eps)
    return Pending(x.shape, (x, weight, bias), compute)


def layer_norm(
    examples: Examples,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """`F.layer_norm` on [rows, ..., *normalized_shape]: one group of each position's values."""
    check_dimensions(x, 1 + len(normalized_shape))
    positions = x.flatten(-len(normalized_shape)).flatten(0, -2)
    return _normalised(examples, positions, weight, bias, 1, eps, silu=False).view(x.shape)


def rms_norm(
    examples: Examples,
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor,
    eps: float | None = None,
) -> torch.Tensor:
    """`F.rms_norm` on [rows, ..., *normalized_shape]."""
    check_dimensions(x, 1 + len(normalized_shape))
    output = F.rms_norm(x, normalized_shape, eps=eps)
    return output * examples.by_row(weight, len(x), x.dim())


def instance_norm(
    examples: Examples,
    x: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Pending:
    """`F.instance_norm` on [rows, channels, ...]: group normalisation with a group a channel."""
    if running_mean is not None or not use_input_stats:
        raise UserError("statistics of the data are kept; set track_running_stats=False")
    check_dimensions(x, 3)
    return group_norm(examples, x, x.shape[1], weight, bias, eps)


def prelu(examples: Examples, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`torch.prelu` on [rows, channels, ...]."""
    slope = examples.by_row(weight, len(x), 2)
    slope = slope.reshape(*slope.shape, *[1] * (x.dim() - 2)) if x.dim() > 1 else slope[:, 0]
    return torch.where(x > 0, x, slope.to(x.dtype) * x)


Rule = Callable[..., torch.Tensor | Pending]

RULES: dict[Callable[..., Any], Rule] = {
    torch.conv2d: conv2d,
    F.linear: linear,
    F.group_norm: group_norm,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.embedding: embedding,
    F.instance_norm: instance_norm,
    torch.prelu: prelu,
}
"""Operation -> its rule: the operation's own arguments after `examples` and `x`, its input.

The first dimension of `x` is that of the rows. A parameter's gradients go into its slot, by
hand or through `Examples.expand`.
"""

KEEPS_STATISTICS = nn.modules.batchnorm._NormBase
"""Batch and instance normalisation; whether they do depends on their mode."""


def check_layers(model: nn.Module) -> None:
    """Raises UserError, naming the module, if a layer mixes examples or keeps statistics of them.

    One that only reads its statistics, in evaluation mode, does neither. Mixing by any other means
    is found by `check_independence`.
    """
    for name, module in model.named_modules():
        where = f"module '{name}' ({type(module).__name__})"
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise UserError(f"{where}: give its .module: the engine joins processes itself")
        if not isinstance(module, KEEPS_STATISTICS):
            continue
        if not module.training and module.running_mean is not None:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"{where} mixes the examples of a batch; use nn.GroupNorm instead, or, with public "
                "statistics, freeze it and call its eval()"
            )
        if module.track_running_stats:
            raise UserError(f"{where} keeps statistics of the data; set track_running_stats=False")


def _normalised(
    examples: Examples,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> torch.Tensor:
    """Group normalisation of [rows or positions, channels, ...], and SiLU."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    (taken,) = ops.as_taken(dtype, x)
    slots = examples.slots_of(weight, bias)
    affine = (examples.hide(tensor) for tensor in (weight, bias))
    scale, shift = (t if t is None else t.flatten().to(dtype) for t in affine)
    output: torch.Tensor = ExampleGroupNorm.apply(  # type: ignore[no-untyped-call]
        examples.anchor, taken, scale, shift, slots, groups, eps, silu
    )
    return output.to(x.dtype)
