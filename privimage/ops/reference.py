"""Every operator as the formula it stands for, in plain PyTorch: any float type, any device."""

import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

GRID_BITS = 30
"""A grid step is C / 2^30; the same number is in csrc/shared/grid.h."""

_MARGIN = 2.0**-20


def clipped_sum(parts: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    """[examples, parameters] → int64 [parameters]; see `privimage.ops.clipped_sum`."""
    norms = parts.double().square().sum(dim=1).sqrt()
    scales = 2**GRID_BITS / max_grad_norm * (max_grad_norm * (1 - _MARGIN) / norms).clamp(max=1)
    rows = torch.where(norms.isfinite()[:, None], parts.double() * scales[:, None], 0.0)
    return rows.trunc().long().sum(dim=0)


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
    draws = len(x) // max(len(weight), 1)
    for i, row in enumerate(weight if weight.numel() else ()):
        one = slice(i * draws, (i + 1) * draws)
        part = conv2d_weight(x[one], row.shape, grad[one], stride, padding, dilation, groups)
        row.copy_(row + part if accumulate else part)
    if bias is not None and bias.numel():
        sums = grad.reshape(len(bias), -1, *grad.shape[1:]).sum((1, 3, 4))
        bias.copy_(bias + sums if accumulate else sums)


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, channels, ...] → the same, and mean and 1 / deviation [2, rows, groups]."""
    values = x.unflatten(1, (groups, -1)).flatten(2)
    mean = values.mean(2)
    variance = (values - mean[..., None]).square().mean(2)
    y = F.group_norm(x, groups, weight, bias, eps)
    return (F.silu(y) if silu else y), torch.stack([mean, (variance + eps).rsqrt()])


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
