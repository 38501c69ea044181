"""Every operator as the formula it stands for, in plain PyTorch: any float type, any device."""

import torch

GRID_BITS = 30
"""A grid step is C / 2^30; the same number is in csrc/shared/grid.h."""

_MARGIN = 2.0**-20


def clipped_sum(parts: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    """[examples, parameters] → int64 [parameters]; see `privimage.ops.clipped_sum`."""
    norms = parts.double().square().sum(dim=1).sqrt()
    scales = 2**GRID_BITS / max_grad_norm * (max_grad_norm * (1 - _MARGIN) / norms).clamp(max=1)
    rows = torch.where(norms.isfinite()[:, None], parts.double() * scales[:, None], 0.0)
    return rows.trunc().long().sum(dim=0)
