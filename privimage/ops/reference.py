"""Every operator as the formula it stands for, in plain PyTorch: any float type, any device."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from privimage.ops.reference_noise import gaussian_integers as gaussian_integers
from privimage.ops.reference_noise import random_words as random_words

GRID_BITS = 30
"""A grid step is C / 2^30; the same number is in csrc/shared/grid.h."""

_MARGIN = 2.0**-20


def grid_scales(
    norms: torch.Tensor, max_grad_norm: float, share: float = 1.0, stability: float | None = None
) -> torch.Tensor:
    """float64 [examples] → the same: `grid_scale` in csrc/shared/grid.h; 0 where not finite."""
    allowed = max_grad_norm * share * (1 - _MARGIN)
    clipped, normalised = (allowed / norms).clamp(max=1), allowed / (norms + (stability or 0.0))
    scales = 2**GRID_BITS / max_grad_norm * (clipped if stability is None else normalised)
    floats = torch.finfo(torch.float32)
    cut = (scales.clamp(max=floats.max).view(torch.int64) & -(2**29)).view(torch.float64)
    return torch.where(norms.isfinite() & (scales >= floats.tiny), cut, 0.0)


def private_update(
    clipped_sum: torch.Tensor,
    key: torch.Tensor,
    step: torch.Tensor,
    first_index: int,
    parameters: torch.Tensor,
    momentum: torch.Tensor,
    second_moment: torch.Tensor | None,
    average: torch.Tensor | None,
    numbers: torch.Tensor,
    noise_std: float,
    scale: float,
) -> None:
    """Changes all but sum, key and numbers in place; see `privimage.ops.private_update`."""
    keep, momentum_decay, gradient_weight, second_decay, *others = numbers.tolist()
    second_correction, epsilon, step_size, average_weight = others
    drawn = int(step)
    step.add_(1)  # First: an update that is cut off must not leave its noise to the next one.
    noise = gaussian_integers(key, drawn, first_index, len(parameters), noise_std)
    released = clipped_sum + noise.to(clipped_sum.device)
    gradient = (released.double() * scale).to(parameters.dtype)
    momentum.copy_(momentum * momentum_decay + gradient * gradient_weight)
    direction = momentum
    if second_moment is not None:
        squares = gradient * gradient
        second_moment.copy_(second_moment * second_decay + squares * (1 - second_decay))
        # By way of float64, since PyTorch's root is not the nearest float32 either.
        root = second_moment.double().sqrt().to(parameters.dtype)
        direction = momentum / (root * second_correction + epsilon)
    parameters.copy_(parameters * keep - direction * step_size)
    if average is not None:
        average.add_((parameters - average) * average_weight)


def example_weight_grad(
    x: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    accumulate: bool,
) -> None:
    """Writes weight [examples, outputs, inputs / groups, *taps]; see `privimage.ops`."""
    draws, wide = len(x) // max(len(weight), 1), torch.promote_types(weight.dtype, torch.float32)
    for i, row in enumerate(weight if weight.numel() else ()):
        one = slice(i * draws, (i + 1) * draws)
        inputs, grads = (t[one].to(wide) for t in (x, grad))
        part = conv2d_weight(inputs, row.shape, grads, stride, padding, dilation, groups)
        row.copy_(row + part if accumulate else part)
    if bias is not None and bias.numel():
        sums = grad.to(wide).reshape(len(bias), -1, *grad.shape[1:]).sum((1, 3, 4))
        bias.copy_(bias + sums if accumulate else sums)


def example_embedding_grad(
    indices: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int,
    accumulate: bool,
) -> None:
    """Writes weight [examples, entries, width]; see `privimage.ops.example_embedding_grad`."""
    entries = torch.arange(weight.shape[1], device=weight.device)
    is_read = (indices[..., None] == entries) & (entries != padding_idx)
    sums = is_read.to(weight.dtype).mT @ grad.to(weight.dtype)
    weight.copy_(weight + sums if accumulate else sums)


def example_embedding_norms(
    indices: torch.Tensor, grad: torch.Tensor, entries: int, padding_idx: int
) -> torch.Tensor:
    """→ float64 [examples]; see `privimage.ops.example_embedding_norms`."""
    table = grad.new_zeros(len(grad), entries, grad.shape[2])
    example_embedding_grad(indices, grad, table, padding_idx, False)
    return squared_norms(table.flatten(1))


def recomputed_embedding_sum(
    indices: torch.Tensor,
    grad: torch.Tensor,
    scales: torch.Tensor,
    weight_sum: torch.Tensor,
    padding_idx: int,
) -> None:
    """Adds to weight_sum [entries, width]; see `privimage.ops.recomputed_embedding_sum`."""
    table = grad.new_zeros(len(grad), *weight_sum.shape)
    example_embedding_grad(indices, grad, table, padding_idx, False)
    scaled_sum(table.flatten(1), scales, weight_sum.view(-1), True)


def measured_weight_grads(
    x: list[torch.Tensor],
    grad: list[torch.Tensor],
    weight: list[torch.Tensor],
    bias: list[torch.Tensor],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """`example_weight_grad` of several layers, and float64 [examples]; see `privimage.ops`."""
    geometry = stride, padding, dilation, groups
    biases: Sequence[torch.Tensor | None] = bias or [None] * len(x)
    for layer in zip(x, grad, weight, biases, strict=True):
        torch.ops.privimage.example_weight_grad(*layer, *geometry, False)
    return torch.stack([squared_norms(rows.flatten(1)) for rows in [*weight, *bias]]).sum(0)


def squared_norms(parts: torch.Tensor, columns: Sequence[int] | None = None) -> torch.Tensor:
    """[examples, parameters] → float64 [examples]; `columns` are pairs of ends, None for all."""
    ends = [0, parts.shape[1]] if columns is None else columns
    squares = parts.new_zeros(parts.shape[0], dtype=torch.float64)
    for begin, end in zip(ends[::2], ends[1::2], strict=True):
        squares = squares + parts[:, begin:end].double().square().sum(dim=1)
    return squares


def scaled_sum(
    parts: torch.Tensor, scales: torch.Tensor, total: torch.Tensor, accumulate: bool
) -> None:
    """[examples, parameters] → int64 [parameters] in `total`; see `privimage.ops.scaled_sum`."""
    passed_over = (scales == 0)[:, None]
    wide = parts.float() if parts.dtype == torch.bfloat16 else parts
    rows = torch.where(passed_over, 0.0, wide * scales.to(wide.dtype)[:, None])
    summed = rows.trunc().long().sum(dim=0)
    total.copy_(total + summed if accumulate else summed)


def example_weight_norms(
    x: torch.Tensor,
    grad: torch.Tensor,
    examples: int,
    taps: list[int],
    with_bias: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """→ float64 [examples]; see `privimage.ops.example_weight_norms`."""
    weight = x.new_zeros(examples, grad.shape[1], x.shape[1] // groups, *taps)
    bias = x.new_zeros(examples, grad.shape[1]) if with_bias else None
    example_weight_grad(x, grad, weight, bias, stride, padding, dilation, groups, False)
    squares = squared_norms(weight.flatten(1))
    return squares if bias is None else squares + squared_norms(bias)


def recomputed_sum(
    x: torch.Tensor,
    grad: torch.Tensor,
    scales: torch.Tensor,
    weight_sum: torch.Tensor,
    bias_sum: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    accumulate: bool,
) -> None:
    """Adds to weight_sum and bias_sum, or writes them; see `privimage.ops.recomputed_sum`."""
    weight = x.new_zeros(len(scales), *weight_sum.shape)
    bias = None if bias_sum is None else x.new_zeros(len(scales), *bias_sum.shape)
    example_weight_grad(x, grad, weight, bias, stride, padding, dilation, groups, False)
    scaled_sum(weight.flatten(1), scales, weight_sum.view(-1), accumulate)
    if bias is not None and bias_sum is not None:
        scaled_sum(bias, scales, bias_sum, accumulate)


def gram_sums(
    x: torch.Tensor,
    grad: torch.Tensor,
    examples: int,
    taps: list[int],
    with_bias: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """→ float64 [4, examples]; see `privimage.ops.gram_sums`."""
    numbers = (tuple(pair) for pair in (taps, dilation, padding, stride))  # groups == 1
    patches = F.unfold(x.double(), *numbers)
    positions = len(x) // max(examples, 1) * patches.shape[2]
    by_position = (
        rows.mT.reshape(examples, positions, rows.shape[1])
        for rows in (patches, grad.double().flatten(2))
    )
    of_x, of_grad = (rows @ rows.mT for rows in by_position)
    of_x = of_x + float(with_bias)
    lengths = [gram.diagonal(dim1=1, dim2=2).sqrt() for gram in (of_x, of_grad)]
    sums = [(of_x * of_grad).sum(2), lengths[0] * lengths[1], *lengths]
    return torch.stack([each.sum(1) for each in sums])


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, channels, ...] → the same, and mean and 1 / deviation [2, rows, groups]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    values = wide.unflatten(1, (groups, -1)).flatten(2)
    mean = values.mean(2)
    variance = (values - mean[..., None]).square().mean(2)
    y = F.group_norm(wide, groups, weight, bias, eps)
    return (F.silu(y) if silu else y).to(x.dtype), torch.stack([mean, (variance + eps).rsqrt()])


def group_norm_silu_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    silu: bool,
    accumulate: bool,
) -> torch.Tensor:
    """The gradient of x; writes the rows of grad_weight and grad_bias [examples, channels]."""
    by_group = 1, (moments.shape[2], -1)
    affine = -1, *[1] * (x.dim() - 2)
    scale = 1.0 if weight is None else weight.view(affine)
    shift = 0.0 if bias is None else bias.view(affine)
    mean, rstd = moments[..., None]
    grad = grad.to(moments.dtype)
    normal = ((x.unflatten(*by_group).flatten(2) - mean) * rstd).reshape(x.shape)
    if silu:
        value = normal * scale + shift
        s = value.sigmoid()
        grad = grad * s * (1 + value * (1 - s))
    for rows, slope in ((grad_weight, grad * normal), (grad_bias, grad)):
        if rows is not None:
            split = len(rows), len(x) // max(len(rows), 1)
            sums = slope.unflatten(0, split).sum((1, *range(3, x.dim() + 1)))
            rows.copy_(rows + sums if accumulate else sums)
    slope, normal = (t.unflatten(*by_group).flatten(2) for t in (grad * scale, normal))
    tilt = (slope * normal).mean(2, keepdim=True)
    grad_x = rstd * (slope - slope.mean(2, keepdim=True) - normal * tilt)
    return torch.empty_like(x).copy_(grad_x.view(x.shape))
