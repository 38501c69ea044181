"""Every operator as the formula it stands for, in plain PyTorch: any float type, any device."""

import torch
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
