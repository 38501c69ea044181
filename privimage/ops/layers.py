"""The operators inside a network: per-example weight gradients, fused normalisation.

Arguments are checked once, here, before the native code or the reference runs.
"""

from collections.abc import Sequence

import torch

_HALF = torch.bfloat16

ConvGeometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, dilation (height and width each) and groups, as `torch.conv2d` takes them."""


def example_weight_grad(
    x: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
    accumulate: bool = False,
) -> None:
    """Writes the weight gradient of each example of a convolution, summed over its draws.

    Works on any strides; fastest where `x` and `grad` are channels-last. A sum's order depends on
    the shapes alone: an example's gradient is bitwise the same whatever its neighbours and the
    number of threads are.

    Args:
        x: float32 or float64 [rows, inputs, height, width], what the convolution was given;
            rows = examples x draws, an example's draws consecutive. On a GPU bfloat16 as well, with
            float32 for `weight` and `bias`.
        grad: [rows, outputs, height', width'], gradient of its output.
        weight: [examples, outputs, inputs / groups, *taps], written; each example's values in one
            piece, as are those of a slice of columns of [examples, parameters]. On a GPU bfloat16
            does for float32; values are then rounded before anything is made of them.
        bias: [examples, outputs], written as well; None where there is none.
        geometry: of the convolution.
        accumulate: add to what `weight` and `bias` hold.

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes that are not those of one convolution, or rows of `weight` or `bias` in
            pieces.
    """
    _check_weight_grad(x, grad, weight, bias, geometry)
    stride, padding, dilation, groups = geometry
    torch.ops.privimage.example_weight_grad(
        x, grad, weight, bias, stride, padding, dilation, groups, accumulate
    )


def measured_weight_grads(
    x: Sequence[torch.Tensor],
    grad: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    bias: Sequence[torch.Tensor],
    geometry: ConvGeometry,
) -> torch.Tensor:
    """`example_weight_grad` of several layers in one go, and the squared norm of what it wrote.

    Small layers, such as the projections of an attention block, so fill a machine together that
    each of them would leave idle in part: one loop over the threads of a CPU, one launch on a GPU
    for up to four layers of one tap that are dense and channels-last.

    Args:
        x: as there, one a layer; layers may differ in channels, pixels, taps and draws.
        grad: as there, one a layer.
        weight: as there, one a layer; no two share memory.
        bias: as there, one a layer, and counts in the norm; or empty, where no layer has one.
        geometry: as there, of every layer.

    Returns:
        float64 [examples], over all layers.

    Raises:
        TypeError: as there, or layers of several types or devices.
        ValueError: as there, or lists of different lengths, or layers of different examples.
    """
    if not len(x) == len(grad) == len(weight) > 0 or len(bias) not in (0, len(x)):
        found = [len(each) for each in (x, grad, weight, bias)]
        raise ValueError(f"x, grad, weight, bias: expected as many of each, got {found}")
    biases: Sequence[torch.Tensor | None] = bias or [None] * len(x)
    for each in zip(x, grad, weight, biases, strict=True):
        _check_weight_grad(*each, geometry)
        if each[0].dtype != x[0].dtype or each[0].device != x[0].device:
            there = f"{each[0].dtype} on {each[0].device}"
            raise TypeError(f"x: expected {x[0].dtype} on {x[0].device} in all, got {there}")
        if len(each[2]) != len(weight[0]):
            raise ValueError(f"weight: expected {len(weight[0])} examples, got {len(each[2])}")
    stride, padding, dilation, groups = geometry
    result: torch.Tensor = torch.ops.privimage.measured_weight_grads(
        x, grad, weight, bias, stride, padding, dilation, groups
    )
    return result


def _check_weight_grad(
    x: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
) -> None:
    wide = wide_type(x)
    rows = (wide, _HALF) if wide == torch.float32 and _has_half(x) else (wide,)
    for name, tensor, dtypes in (
        ("grad", grad, (x.dtype,)),
        ("weight", weight, rows),
        ("bias", bias, rows),
    ):
        if tensor is not None and (tensor.dtype not in dtypes or tensor.device != x.device):
            there = f"{tensor.dtype} on {tensor.device}"
            raise TypeError(f"{name}: expected {dtypes[0]} on {x.device} as x, got {there}")
    if x.dim() != 4 or weight.dim() != 5:
        raise ValueError(
            "x, weight: expected [rows, inputs, height, width] and [examples, outputs, inputs / "
            f"groups, *taps], got {list(x.shape)} and {list(weight.shape)}"
        )
    examples, outputs, inputs, *taps = weight.shape
    stride, padding, dilation, groups = geometry
    if groups < 1 or outputs % groups or x.shape[1] != inputs * groups:
        raise ValueError(
            f"groups: {groups} do not fit {x.shape[1]} inputs and a weight {list(weight.shape)}"
        )
    if len(x) % examples if examples else len(x):
        raise ValueError(f"x: {len(x)} rows do not fit {examples} examples")
    if not len(stride) == len(padding) == len(dilation) == 2 or min(*taps, *stride, *dilation) < 1:
        raise ValueError(f"geometry: expected two positive numbers each, got {geometry}")
    if min(padding) < 0:
        raise ValueError(f"geometry: expected padding from 0 on, got {geometry}")
    axes = zip(x.shape[2:], taps, stride, padding, dilation, strict=True)
    pixels = [(n + 2 * p - d * (t - 1) - 1) // s + 1 for n, t, s, p, d in axes]
    if min(pixels) < 1:
        raise ValueError(f"x: images {list(x.shape[2:])} are smaller than the taps {taps}")
    if grad.shape != (expected := (len(x), outputs, *pixels)):
        raise ValueError(f"grad: expected {list(expected)}, got {list(grad.shape)}")
    if bias is not None and bias.shape != (examples, outputs):
        raise ValueError(f"bias: expected {[examples, outputs]}, got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and examples and not tensor[0].is_contiguous():
            raise ValueError(f"{name}: expected each example's values in one piece")


def group_norm_silu(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    groups: int,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`F.silu(F.group_norm(x, groups, weight, bias, eps))`, or without the SiLU, in one go.

    Not differentiable; `group_norm_silu_backward` has the gradients.

    Args:
        x: float32 or float64 [rows, channels, ...]; keeps its memory format. On a GPU bfloat16 as
            well, with float32 for weights, moments and their gradients.
        weight: [channels], or None for ones.
        bias: [channels], or None for zeros.
        groups: number of groups, divides the channels.
        eps: added to the variance.
        silu: whether v * sigmoid(v) follows.

    Returns:
        The result, as `x`, and the moments [2, rows, groups]: means and 1 / deviations.

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes that don't fit.
    """
    _check_group_norm(x, {"weight": weight, "bias": bias}, groups)
    result: tuple[torch.Tensor, torch.Tensor] = torch.ops.privimage.group_norm_silu(
        _in_order(x), weight, bias, groups, eps, silu
    )
    return result


def group_norm_silu_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    moments: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
    grad_bias: torch.Tensor | None,
    silu: bool = True,
    accumulate: bool = False,
) -> torch.Tensor:
    """The gradients of `group_norm_silu`: of x, and one an example of weight and bias.

    Args:
        grad: [rows, channels, ...], of the result.
        x: as there.
        moments: from there.
        weight: as there.
        bias: as there.
        grad_weight: [examples, channels], written, summed over an example's draws; or None.
            rows = examples x draws, an example's draws consecutive. On a GPU bfloat16 does for
            float32.
        grad_bias: likewise.
        silu: as there.
        accumulate: add to what `grad_weight` and `grad_bias` hold.

    Raises:
        TypeError: a tensor of another type.
        ValueError: shapes that don't fit.
    """
    _check_group_norm(x, {"weight": weight, "bias": bias}, moments.shape[-1])
    if grad.dtype != x.dtype or grad.shape != x.shape:
        raise ValueError(f"grad: expected {x.dtype} {list(x.shape)}, got {list(grad.shape)}")
    for name, rows in (("grad_weight", grad_weight), ("grad_bias", grad_bias)):
        if rows is None:
            continue
        fits = rows.dim() == 2 and rows.shape[1] == x.shape[1]
        if not fits or (len(x) % len(rows) if len(rows) else len(x)):
            raise ValueError(f"{name}: {list(rows.shape)} does not fit x {list(x.shape)}")
    x = _in_order(x)
    order = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    result: torch.Tensor = torch.ops.privimage.group_norm_silu_backward(
        grad.contiguous(memory_format=order),
        x,
        moments,
        weight,
        bias,
        grad_weight,
        grad_bias,
        silu,
        accumulate,
    )
    return result


def as_taken(wide: torch.dtype, *activations: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Activations in a type that the operators take beside weights and sums of type `wide`.

    On a GPU that is bfloat16, where all of them are, beside float32; else `wide` itself.
    """
    for x in activations:
        if x.dtype != wide:
            break
    else:  # As nearly always; a layer's call takes a share of a step.
        return activations
    if wide == torch.float32 and all(_has_half(x) and x.dtype == _HALF for x in activations):
        return activations
    return tuple(x.to(wide) for x in activations)


def as_multiplied(wide: torch.dtype, *images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `as_taken`, of what a weight gradient is made of: [rows, channels, height, width].

    On a GPU channels last: a copy takes far less time there than the kernel for other strides.
    """
    taken = as_taken(wide, *images)
    if not all(map(_has_half, taken)):
        return taken
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in taken)


def wide_type(x: torch.Tensor, name: str = "x") -> torch.dtype:
    """The type of sums over x. Raises TypeError for an x that the operators can't take."""
    known = torch.float32, torch.float64, *([_HALF] if _has_half(x) else [])
    if not isinstance(x, torch.Tensor) or x.dtype not in known:
        found = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(
            f"{name}: expected a float32 or float64 tensor, or bfloat16 on a GPU, got {found}"
        )
    return torch.promote_types(x.dtype, torch.float32)


def _has_half(x: torch.Tensor) -> bool:
    """Whether there are kernels for bfloat16 where x is."""
    return isinstance(x, torch.Tensor) and x.is_cuda


def _in_order(x: torch.Tensor) -> torch.Tensor:
    """In one of the two memory formats that the kernels read."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def _check_group_norm(x: torch.Tensor, affine: dict[str, torch.Tensor | None], groups: int) -> None:
    wide = wide_type(x)
    if x.dim() < 2 or groups < 1 or x.shape[1] % groups:
        raise ValueError(f"groups: {groups} do not fit x {list(x.shape)}")
    for name, tensor in affine.items():
        if tensor is not None and tensor.dtype != wide:
            raise TypeError(f"{name}: expected {wide} for x, got {tensor.dtype}")
        if tensor is not None and tensor.shape != (x.shape[1],):
            raise ValueError(f"{name}: expected [{x.shape[1]}], got {list(tensor.shape)}")
