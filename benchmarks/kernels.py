r"""How near to the machine, and to PyTorch's own operators, does each operator come?

    python benchmarks/kernels.py [--device cuda] [--threads N] [--json FILE]

Each row is a layer of the CIFAR-10 network at 16 images of one draw, or 4 of eight (on a GPU with
four times as many, in bfloat16): the time of our operator, what that is in GFLOP/s and GB/s (of its
inputs and outputs, each counted once), the floor's share of that time, and the ratio to PyTorch.
The floor is what operations and bytes take at the peaks that this run measures: of a matrix
product, and of reading (on a GPU: of copying). PyTorch is, for a weight gradient,
`convolution_backward` of the weight and bias alone (oneDNN, cuDNN), which adds the images up; for a
norm `group_norm` and `silu`; for an embedding its ordinary gradient; for the projections of
attention the four ordinary weight gradients; for the update fused Adam, an average and float noise.
Best of the rounds; on a GPU the median between events.

Where the time of one row goes, instruction by instruction:

    perf record -o /tmp/perf.data python benchmarks/kernels.py --only 'conv 64->64 8' --rounds 500
    perf report -i /tmp/perf.data --no-children
    perf annotate -i /tmp/perf.data --stdio -s tile    # 'turn' and 'memmove' are the write-out

In a virtual machine without counters perf samples the clock (`-e cpu-clock`), which is enough.
Prediction: weight gradients of 32x32 and 16x16 images at 75 % of the peak and 0.8-1.1 of oneDNN.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from records import cpu_name
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


def conv(inputs: int, outputs: int, size: int, taps: int, examples: int, draws: int) -> Row:
    """The weight gradient of a convolution (1x1 pixels: of a linear layer)."""
    x, grad = images(examples * draws, inputs, size), images(examples * draws, outputs, size)
    weight = torch.empty(examples, outputs, inputs, taps, taps)
    bias, ordinary = torch.empty(examples, outputs), weight[0].to(x.dtype)
    padding = [taps // 2] * 2

    def theirs() -> object:
        return torch.ops.aten.convolution_backward(
            grad, x, ordinary, [outputs], [1, 1], padding, [1, 1], False, [0, 0], 1,
            [False, True, True],
        )  # fmt: skip

    return Row(
        f"conv {inputs}->{outputs} {size}x{size} taps {taps} K={draws}",
        lambda: ops.example_weight_grad(x, grad, weight, bias, ([1, 1], padding, [1, 1], 1)),
        theirs,
        2.0 * weight.numel() * draws * size * size,
        x.element_size() * (x.numel() + grad.numel()) + 4.0 * weight.numel(),
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


def embedding(entries: int, width: int, examples: int) -> Row:
    """The gradient of a table of labels, a table an example against one for all."""
    labels = torch.randint(0, entries, (examples,))
    grad = torch.randn(examples, width)
    shifted = labels + entries * torch.arange(examples)
    back = torch.ops.aten.embedding_dense_backward
    return Row(
        f"embedding {entries}x{width}, {examples} examples",
        lambda: back(grad, shifted, examples * entries, -1, False),
        lambda: back(grad, labels, entries, -1, False),
        float(grad.numel()),
        4.0 * (grad.numel() + examples * entries * width),
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


def rows(times: int) -> list[Row]:
    """All of them, with `times` the images that suit a core."""
    layers = [
        (3, 32, 32, 3), (32, 3, 32, 3), (32, 32, 32, 3), (64, 64, 32, 3), (96, 32, 32, 3),
        (64, 64, 16, 3), (128, 64, 16, 3), (64, 64, 8, 3), (128, 64, 8, 3), (64, 32, 32, 1),
        (64, 64, 16, 1), (128, 64, 1, 1),
    ]  # fmt: skip
    many, few = 16 * times, 4 * times
    found = [conv(*layer, *batch) for batch in ((many, 1), (few, 8)) for layer in layers]
    found += [again(64, 64, 8, many), again(64, 64, 16, many)]
    found += [projections(64, 16, many, 1), projections(64, 16, few, 8)]
    for channels, size in ((32, 32), (64, 16)):
        found += [group_norm(channels, size, many, 1, backward) for backward in (False, True)]
    found += [embedding(11, 32, many), clipped_sum(1_754_499, many), clipped_sum(1_754_499, few)]
    return [*found, update(1_754_499)]


def best(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls; on a GPU between events, the median."""
    if torch.get_default_device().type == "cuda":
        return statistics.median(on_gpu(run) for _ in range(rounds))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def on_gpu(run: Callable[[], object]) -> float:
    """Seconds a call between events, with nothing of an earlier one in the caches."""
    scratch = torch.empty(2**26)
    run()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    scratch.zero_()
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3


def peaks() -> tuple[float, float]:
    """GFLOP/s of a matrix product, and GB/s of a sum (on a GPU: a copy) beyond the caches."""
    if torch.get_default_device().type == "cuda":
        square, long = torch.randn(8192, 8192, dtype=torch.bfloat16), torch.randn(2**28)
        there = torch.empty_like(long)
        product = 2 * 8192**3 / best(lambda: square @ square, 7) / 1e9
        return product, 8 * long.numel() / best(lambda: there.copy_(long), 7) / 1e9
    square, long = torch.randn(1536, 1536), torch.randn(2**26)
    product = best(lambda: square @ square, 7)
    return 2 * 1536**3 / product / 1e9, 4 * long.numel() / best(long.sum, 7) / 1e9


def main() -> None:
    """Prints a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        torch.set_default_device("cuda")
    flops, bandwidth = peaks()
    print(f"peaks: {flops:.0f} GFLOP/s (matrix product), {bandwidth:.1f} GB/s")
    records = []
    for row in rows(4 if options.device == "cuda" else 1):
        if options.only not in row.name:
            continue
        ours, theirs = best(row.ours, options.rounds), best(row.theirs, options.rounds)
        record = {
            "name": row.name,
            "us": round(1e6 * ours, 1),
            "gflops": round(row.flops / ours / 1e9, 1),
            "gbytes": round(row.bytes / ours / 1e9, 2),
            "share_of_peak": round(
                max(row.flops / ours / 1e9 / flops, row.bytes / ours / 1e9 / bandwidth), 2
            ),
            "ratio": round(ours / theirs, 2),
        }
        records.append(record)
        print(
            f"{row.name:<46} {record['us']:>9} us {record['gflops']:>7} GFLOP/s "
            f"{record['gbytes']:>6} GB/s  {record['share_of_peak']:.0%} of a peak, "
            f"{record['ratio']} of PyTorch's time",
            flush=True,
        )
    if options.json:
        machine = f"{options.threads} cores of {cpu_name()}, {platform.machine()}"
        if options.device == "cuda":
            machine = torch.cuda.get_device_name()
        figures = {"machine": machine, "build": ops.describe_build(), "torch": torch.__version__}
        figures |= {"peak_gflops": round(flops), "peak_gbytes": round(bandwidth, 1)}
        options.json.write_text(json.dumps(figures | {"rows": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
