"""The operators that `kernels.py` times, each beside what PyTorch has for the same work."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from privimage import ops

LAST = torch.channels_last


@dataclass(frozen=True)
class Row:
    """Two ways to the same result.

    Attributes:
        name: what is computed.
        ours: by an operator of ours.
        theirs: by PyTorch.
        flops: additions and multiplications.
        bytes: of inputs and outputs, each once.
    """

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    flops: float
    bytes: float


def conv(
    inputs: int,
    outputs: int,
    size: int,
    taps: int,
    examples: int,
    draws: int,
    rows_dtype: torch.dtype = torch.float32,
) -> Row:
    """The weight gradient of a convolution (1x1 pixels: of a linear layer)."""
    x, grad = images(examples * draws, inputs, size), images(examples * draws, outputs, size)
    weight = torch.empty(examples, outputs, inputs, taps, taps, dtype=rows_dtype)
    bias = torch.empty(examples, outputs, dtype=rows_dtype)
    ordinary = weight[0].to(x.dtype)
    padding = [taps // 2] * 2

    def theirs() -> object:
        return torch.ops.aten.convolution_backward(
            grad, x, ordinary, [outputs], [1, 1], padding, [1, 1], False, [0, 0], 1,
            [False, True, True],
        )  # fmt: skip

    return Row(
        f"conv {inputs}->{outputs} {size}x{size} taps {taps} K={draws}{_in(rows_dtype)}",
        lambda: ops.example_weight_grad(x, grad, weight, bias, ([1, 1], padding, [1, 1], 1)),
        theirs,
        2.0 * weight.numel() * draws * size * size,
        x.element_size() * (x.numel() + grad.numel())
        + 1.0 * weight.element_size() * weight.numel(),
    )


def _in(rows_dtype: torch.dtype) -> str:
    """What a name says of rows that are not float32."""
    return "" if rows_dtype == torch.float32 else f", rows in {str(rows_dtype)[6:]}"


def norms(inputs: int, outputs: int, size: int, examples: int) -> Row:
    """The norm alone of a 3x3 convolution's gradients, without rows."""
    kept = conv(inputs, outputs, size, 3, examples, 1)
    x, grad = images(examples, inputs, size), images(examples, outputs, size)
    return Row(
        f"norm alone {inputs}->{outputs} {size}x{size}",
        lambda: ops.example_weight_norms(x, grad, examples, (3, 3), False, ([1, 1],) * 3 + (1,)),
        kept.theirs,
        kept.flops,
        float(x.element_size() * (x.numel() + grad.numel())),
    )


def again(inputs: int, outputs: int, size: int, examples: int) -> Row:
    """Norm and clipped sum by computing a 3x3 convolution's gradients twice, against keeping."""
    kept = conv(inputs, outputs, size, 3, examples, 1)
    x, grad = images(examples, inputs, size), images(examples, outputs, size)
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    parts = torch.empty(examples, outputs * inputs * 9)
    total = torch.zeros(outputs, inputs, 3, 3, dtype=torch.int64)
    scales = torch.ones(examples, dtype=torch.float64)

    def ours() -> None:
        ops.example_weight_norms(x, grad, examples, (3, 3), False, geometry)
        ops.recomputed_sum(x, grad, scales, total, None, geometry)

    def theirs() -> None:
        rows = parts.view(examples, outputs, inputs, 3, 3)
        ops.example_weight_grad(x, grad, rows, None, geometry)
        ops.squared_norms(parts)
        ops.scaled_sum(parts, scales)

    name = f"recompute instead of keep {inputs}->{outputs} {size}x{size}"
    return Row(name, ours, theirs, 2 * kept.flops, kept.bytes)


def projections(width: int, size: int, examples: int, draws: int) -> Row:
    """The weight gradients of q, k, v and o of an attention block."""
    each = [conv(width, width, size, 1, examples, draws) for _ in range(4)]
    h, mixed, *grads = (images(examples * draws, width, size) for _ in range(6))
    weights = [torch.empty(examples, width, width, 1, 1) for _ in range(4)]
    biases, geometry = [torch.empty(examples, width) for _ in range(4)], ([1, 1], [0, 0], [1, 1], 1)
    return Row(
        f"attention q,k,v,o {width} {size}x{size} K={draws}",
        lambda: ops.measured_weight_grads([h, h, h, mixed], grads, weights, biases, geometry),
        lambda: [row.theirs() for row in each],
        sum(row.flops for row in each),
        sum(row.bytes for row in each),
    )


def group_norm(channels: int, size: int, examples: int, draws: int, backward: bool) -> Row:
    """GroupNorm and SiLU, or their gradients with one an example for scale and shift."""
    x = images(examples * draws, channels, size)
    weight, bias = torch.ones(channels), torch.zeros(channels)
    groups, count = channels // 4, float(x.numel())
    y, moments = ops.group_norm_silu(x, weight, bias, groups)
    rows = torch.empty(examples, channels), torch.empty(examples, channels)
    leaves = [t.to(x.dtype, copy=True).requires_grad_() for t in (x, weight, bias)]
    output = F.silu(F.group_norm(leaves[0], groups, *leaves[1:]))
    name = f"group_norm_silu {'backward' if backward else 'forward'} {channels} {size}x{size}"
    if backward:
        return Row(
            f"{name} K={draws}",
            lambda: ops.group_norm_silu_backward(y, x, moments, weight, bias, *rows),
            lambda: torch.autograd.grad(output, leaves, y, retain_graph=True),
            30 * count,
            3 * x.element_size() * count,
        )
    return Row(
        f"{name} K={draws}",
        lambda: ops.group_norm_silu(x, weight, bias, groups),
        lambda: F.silu(F.group_norm(x, groups, *(t.detach() for t in leaves[1:]))),
        25 * count,
        2 * x.element_size() * count,
    )


def embedding(entries: int, width: int, examples: int, positions: int) -> Row:
    """The gradient of a table, a table an example against one for all."""
    labels = torch.randint(0, entries, (examples, positions))
    grad = torch.randn(examples, positions, width)
    weight = torch.empty(examples, entries, width)
    back = torch.ops.aten.embedding_dense_backward
    return Row(
        f"embedding {entries}x{width}, {examples} examples of {positions}",
        lambda: ops.example_embedding_grad(labels, grad, weight),
        lambda: back(grad, labels, entries, -1, False),
        float(grad.numel()),
        4.0 * (grad.numel() + weight.numel()),
    )


def clipped_sum(parameters: int, examples: int) -> Row:
    """Norms, clipping and the integer sum, against a norm and a matrix product in float32."""
    parts = torch.randn(examples, parameters)

    def theirs() -> torch.Tensor:
        scales = (1.0 / parts.norm(dim=1)).clamp(max=1)
        return scales @ parts

    size = float(parts.numel())
    name = f"clipped_sum {examples} x {parameters}"
    return Row(name, lambda: ops.clipped_sum(parts, 1.0), theirs, 4 * size, 8 * size)


def scaled_sum(parameters: int, examples: int, rows_dtype: torch.dtype = torch.float32) -> Row:
    """The integer sum with given factors, which reads every row once, against a matrix product."""
    parts = torch.randn(examples, parameters).to(rows_dtype)
    factors, weights = (torch.rand(examples).to(each) for each in (torch.float64, rows_dtype))
    total = torch.empty(parameters, dtype=torch.int64)
    read = 1.0 * parts.element_size() * parts.numel()
    return Row(
        f"scaled_sum {examples} x {parameters}{_in(rows_dtype)}",
        lambda: ops.scaled_sum(parts, factors, total),
        lambda: weights @ parts,
        2.0 * parts.numel(),
        read + 8.0 * parameters,
    )


def by_entry(entries: int, width: int, examples: int, positions: int) -> Row:
    """Norm and sum of a table's gradients without tables, against the ordinary gradient."""
    table = embedding(entries, width, examples, positions)
    labels, grad = (
        torch.randint(0, entries, (examples, positions)),
        torch.randn(examples, positions, width),
    )
    scales, total = (
        torch.ones(examples, dtype=torch.float64),
        torch.zeros(entries, width, dtype=torch.int64),
    )

    def ours() -> None:
        ops.example_embedding_norms(labels, grad, entries)
        ops.recomputed_embedding_sum(labels, grad, scales, total)

    return Row(
        f"{table.name}, by entry", ours, table.theirs, 4.0 * grad.numel(), 8.0 * grad.numel()
    )


def update(parameters: int) -> Row:
    """Noise, Adam and the average in one pass, against float noise, fused Adam and an average."""
    state, total = [torch.rand(parameters) for _ in range(4)], torch.arange(parameters)
    step, key = torch.tensor([0]), torch.arange(32, dtype=torch.uint8, device="cpu")
    numbers = torch.tensor([1, 0.9, 0.1, 0.999, 1, 1e-8, 1e-3, 0.01], dtype=torch.float64)
    weight = torch.nn.Parameter(state[0].clone())
    weight.grad, average = torch.zeros(parameters), state[0].clone()
    adam = torch.optim.Adam([weight], 1e-3, fused=True)

    def theirs() -> None:
        torch.add(total, torch.randn(parameters), out=weight.grad)
        adam.step()
        average.lerp_(weight.detach(), 0.01)

    def ours() -> None:
        ops.private_update(
            total, key, step, ops.UpdateState(*state), ops.DeviceRule(1e9, 1e-9, numbers)
        )

    return Row(f"private_update {parameters}", ours, theirs, 100.0 * parameters, 40.0 * parameters)


def images(rows: int, channels: int, size: int) -> torch.Tensor:
    """Activations, channels last; on a GPU bfloat16."""
    made = torch.randn(rows, channels, size, size).contiguous(memory_format=LAST)
    return made.bfloat16() if made.is_cuda else made


def rows(many: int, few: int) -> list[Row]:
    """All of them, with so many images of one draw, and so few of eight."""
    layers = [
        (3, 32, 32, 3), (32, 3, 32, 3), (32, 32, 32, 3), (64, 64, 32, 3), (96, 32, 32, 3),
        (64, 64, 16, 3), (128, 64, 16, 3), (64, 64, 8, 3), (128, 64, 8, 3), (64, 32, 32, 1),
        (64, 64, 16, 1), (128, 64, 1, 1),
    ]  # fmt: skip
    found = [conv(*layer, *batch) for batch in ((many, 1), (few, 8)) for layer in layers]
    found += [again(64, 64, 8, many), again(64, 64, 16, many)]
    found += [projections(64, 16, many, 1), projections(64, 16, few, 8)]
    for norm in ((32, 32, many, 1), (64, 16, many, 1), (32, 32, few, 8)):
        found += [group_norm(*norm, backward) for backward in (False, True)]
    found += [embedding(11, 32, many, 1), embedding(11, 32, few, 8), embedding(64, 192, few, 64)]
    found += [clipped_sum(1_754_499, many), clipped_sum(1_754_499, few)]
    found += [scaled_sum(1_754_499, many), by_entry(1000, 64, few, 64)]
    if images(1, 1, 1).is_cuda:
        half = torch.bfloat16
        found += [conv(64, 64, size, 3, many, 1, half) for size in (8, 16, 32)]
        found += [conv(*wide, 3, few, 8) for wide in ((128, 128, 16), (256, 256, 8), (512, 256, 8))]
        found += [norms(64, 64, 8, many), norms(256, 256, 8, many)]
        found += [scaled_sum(1_754_499, many, half)]
    return [*found, update(1_754_499)]
