"""Every operator as the formula it stands for, in plain PyTorch: any float type, any device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

GRID_BITS = 30
"""A grid step is C / 2^30; the same number is in csrc/shared/grid.h."""

_MARGIN = 2.0**-20

_LANES = 16
_SLOTS = 8
_TILE = _LANES * _SLOTS
_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)

# Highest power first; the same numbers are in csrc/shared/gaussian.h. Chebyshev interpolants of
# (2 artanh √z / √z - 2) / z, of (sin(π t / 2) / t - π / 2) / t² and of (1 - cos(π t / 2)) / t².
_LOGARITHM = (
    "0x1.2b5f68a50d903p-3 0x1.39fdcceb4bb45p-3 0x1.7462b91b8df65p-3 0x1.c71c62d5e53e0p-3 "
    "0x1.2492492dfd86cp-2 0x1.9999999995273p-2 0x1.5555555555558p-1"
)
_SINE = (
    "0x1.e4a96917f6cc2p-25 -0x1.e3027cee75368p-19 0x1.50783207c0263p-13 -0x1.32d2cce4ffbdep-8 "
    "0x1.466bc6775a473p-4 -0x1.4abbce625be52p-1"
)
_COSINE = (
    "0x1.b2f38468445b5p-28 -0x1.f9ce23426c0b7p-22 0x1.a6d1eef358ff6p-16 -0x1.e1f5068687c82p-11 "
    "0x1.55d3c7e3cb23ap-6 -0x1.03c1f081b5ac0p-2 0x1.3bd3cc9be45dep+0"
)
_LN2 = tuple(map(float.fromhex, ("0x1.62e42fefa2000p-1", "0x1.9ef35793c7673p-41")))
_HALF_PI = tuple(map(float.fromhex, ("0x1.921fb54442d18p+0", "0x1.1a62633145c07p-54")))


def clipped_sum(
    parts: torch.Tensor, max_grad_norm: float, share: float = 1.0, stability: float | None = None
) -> torch.Tensor:
    """[examples, parameters] → int64 [parameters]; see `privimage.ops.clipped_sum`."""
    norms = parts.double().square().sum(dim=1).sqrt()
    scales = grid_scales(norms, max_grad_norm, share, stability)
    total = torch.empty(parts.shape[1], dtype=torch.int64, device=parts.device)
    scaled_sum(parts, scales, total, False)
    return total


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


def random_words(key: torch.Tensor, step: int, first: int, count: int) -> torch.Tensor:
    """uint8 [32] → int64 [count]; see `privimage.ops.random_words`."""
    low, high = _halves(key, step, first, count)
    return (low | high << 32).flatten()[first % _TILE :][:count]


def gaussian_integers(
    key: torch.Tensor, step: int, first: int, count: int, std: float
) -> torch.Tensor:
    """uint8 [32] → int64 [count]; see `privimage.ops.gaussian_integers`."""
    low, high = (half.view(-1, _SLOTS // 2, 2, _LANES) for half in _halves(key, step, first, count))
    uniform = (high[:, :, 0].double() * 2.0**32 + low[:, :, 0].double() + 0.5) * 2.0**-64
    # NumPy's root, since PyTorch's is not the nearest float64 to the true one (MKL's: 1 % of the
    # results are off in the last place).
    radius = torch.from_numpy(np.sqrt((natural_logarithm(uniform) * -2.0).numpy()))
    # Eighths of a turn are added so that the two highest bits name the nearest quarter.
    turned = (high[:, :, 1] + 2**29) & 0xFFFFFFFF
    fraction = ((turned & (2**30 - 1)) - 2**29).double() * 2.0**32 + low[:, :, 1].double()
    sine, cosine = quarter_sine_cosine(fraction * 2.0**-62)
    quarter = turned >> 30
    along = torch.where(quarter % 2 == 0, cosine, sine)
    across = torch.where(quarter % 2 == 0, sine, cosine)
    along = torch.where((quarter == 1) | (quarter == 2), -along, along)
    across = torch.where(quarter >= 2, -across, across)
    pairs = torch.stack((radius * along, radius * across), dim=2)
    return (pairs * std).round().long().flatten()[first % _TILE :][:count]


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


def chacha20_blocks(key: torch.Tensor, blocks: torch.Tensor, step: int) -> torch.Tensor:
    """RFC 8439, 2.3, for block numbers int64 [n] → words in int64 [16, n].

    The number's lower half is the counter, its upper half and the step are the nonce.
    """
    words = key.to(blocks.device).view(8, 4).long() << torch.tensor([0, 8, 16, 24])
    fixed = [*_CONSTANTS, *words.sum(dim=1).tolist()]
    after = [blocks & 0xFFFFFFFF, blocks >> 32, step & 0xFFFFFFFF, step >> 32]
    start = [torch.zeros_like(blocks) + word for word in (*fixed, *after)]
    x = list(start)
    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            _quarter_round(x, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            _quarter_round(x, a, b, c, d)
    return torch.stack([(a + b) & 0xFFFFFFFF for a, b in zip(x, start, strict=True)])


def natural_logarithm(u: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of float64 u in [2^-65, 1], as csrc/shared/gaussian.h has it."""
    mantissa, exponent = torch.frexp(u)  # mantissa in [½, 1)
    small = mantissa < float.fromhex("0x1.6a09e667f3bcdp-1")
    f = torch.where(small, 2 * mantissa, mantissa) - 1
    k = (exponent - small.int()).double()
    s = f / (2 + f)
    z = s * s
    return k * _LN2[0] + (f - (s * (f - _polynomial(_LOGARITHM, z) * z) - k * _LN2[1]))


def quarter_sine_cosine(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sin(π t / 2) and cos(π t / 2) for float64 |t| <= ½, as csrc/shared/gaussian.h has them."""
    w = t * t
    sine = t * _HALF_PI[0] + t * (_polynomial(_SINE, w) * w + _HALF_PI[1])
    return sine, 1.0 - _polynomial(_COSINE, w) * w


def _halves(
    key: torch.Tensor, step: int, first: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper 32 bits of all words in the tiles of these indices: [tiles, slots, lanes]."""
    begin, end = first // _TILE, -(-(first + count) // _TILE)
    words = chacha20_blocks(key, torch.arange(begin * _LANES, end * _LANES), step)
    words = words.view(_SLOTS, 2, -1, _LANES).permute(1, 2, 0, 3)
    return words[0], words[1]


def _quarter_round(x: list[torch.Tensor], a: int, b: int, c: int, d: int) -> None:
    """RFC 8439, 2.1, on 32-bit words in int64."""
    for one, two, three, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[one] = (x[one] + x[two]) & 0xFFFFFFFF
        mixed = x[three] ^ x[one]
        x[three] = (mixed << bits | mixed >> (32 - bits)) & 0xFFFFFFFF


def _polynomial(coefficients: str, x: torch.Tensor) -> torch.Tensor:
    """Horner's rule, one rounding an operation."""
    highest, *others = map(float.fromhex, coefficients.split())
    value = torch.full_like(x, highest)
    for coefficient in others:
        value = value * x + coefficient
    return value


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
