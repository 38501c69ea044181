"""Group normalisation by our operator in a step without privacy, with the SiLU that follows.

PyTorch's own takes images channels first on a GPU, so that every convolution around it copies them,
and compiled it is many kernels where this is one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from privimage import ops


class FusedNorms(TorchFunctionMode):
    """Inside, `F.group_norm` is ours.

    One that a SiLU follows is computed twice, with it and without: for a recorded step, which drops
    the one that nobody uses.
    """

    def __init__(self) -> None:
        super().__init__()
        self._without: dict[int, tuple[torch.Tensor, Callable[..., torch.Tensor]]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.group_norm:
            norm = partial(_normalised, *args, **kwargs)
            without = norm(silu=False)
            # Kept, so that no other tensor has its id.
            self._without[id(without)] = without, norm
            return without
        if func is F.silu and id(args[0]) in self._without:
            return self._without[id(args[0])][1](silu=True)
        return func(*args, **kwargs)


def _normalised(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    *,
    silu: bool,
) -> torch.Tensor:
    """`F.group_norm`, as that takes its arguments, and SiLU."""
    output: torch.Tensor = _Norm.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, groups, eps, silu
    )
    return output


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        groups: int,
        eps: float,
        silu: bool,
    ) -> torch.Tensor:
        y, moments = ops.group_norm_silu(x, weight, bias, groups, eps, silu)
        ctx.save_for_backward(x, moments, weight, bias)
        ctx.silu = silu
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, moments, weight, bias = ctx.saved_tensors
        scales, shifts = (moments.new_empty(len(x), x.shape[1]) for _ in range(2))
        for_x = ops.group_norm_silu_backward(
            grad, x, moments, weight, bias, scales, shifts, ctx.silu
        )
        return for_x, scales.sum(0), shifts.sum(0), None, None, None
