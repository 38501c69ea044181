r"""How near to the machine, and to PyTorch's own operators, does each operator come?

    python benchmarks/kernels.py [--device cuda] [--threads N] [--json FILE]

Each row is a layer of the CIFAR-10 network at 16 images of one draw, or 4 of eight (on a GPU in the
micro-batches of `privimage train`, in bfloat16): the time of our operator, what that is in GFLOP/s
and GB/s (of its inputs and outputs, each counted once), the floor's share of that time, and the
ratio to PyTorch.
The floor is what operations and bytes take at the peaks that this run measures: of matrix products
and a convolution, and of reading (on a GPU: of copying). PyTorch is, for a weight gradient,
`convolution_backward` of the weight and bias alone (oneDNN, cuDNN), which adds the images up; for a
norm `group_norm` and `silu`; for an embedding its ordinary gradient; for the projections of
attention the four ordinary weight gradients; for the update fused Adam, an average and float noise.
In turns, the best of the rounds; on a GPU the median between events, in which launch and events are
counted, too: an operation that does next to nothing, timed likewise, says how long they take.

Where the time of one row goes, instruction by instruction:

    perf record -o /tmp/perf.data python benchmarks/kernels.py --threads 1 \
        --only 'conv 64->64 8' --rounds 1000
    perf report -i /tmp/perf.data --no-children     # 'turn' and 'memmove' are the write-out
    perf annotate -i /tmp/perf.data --stdio -s 'privimage::cpu::avx512::tile<float, 2, 8>'

In a virtual machine without counters perf samples the clock by itself, which is enough. (With more
threads what shows first is those that wait.)
Prediction: weight gradients of 32x32 and 16x16 images at 75 % of the peak and 0.8-1.1 of oneDNN.
Seen on two cores of a Xeon (results/kernels-cpu.json): those of 3x3 taps at 53 to 86 % (median 82)
and 0.91 to 1.18 of oneDNN, q, k, v and o at 0.7, GroupNorm with SiLU at 0.5 to 1.0, an embedding of
ten labels at 1.5 to 1.8 (10 us), with 64 positions 0.7. With three input channels 2.4 to 2.6.
On an EPYC without AVX-512: 3x3 taps at 45 to 92 % of the peak and 0.6 to 0.9 of oneDNN, GroupNorm
with SiLU at 0.3 to 0.8.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import records
import torch
from operators import Row, rows
from torch.nn import functional as F

from privimage import ops
from privimage.dp import most_examples
from privimage.machine import cores


def best(runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of the fastest call of each, in turns; on a GPU between events, the median."""
    is_cuda = torch.get_default_device().type == "cuda"
    clock, least = (on_gpu, statistics.median) if is_cuda else (on_cpu, min)
    times = [[clock(run) for run in runs] for _ in range(rounds)]
    return [least(column) for column in zip(*times, strict=True)]


def on_cpu(run: Callable[[], object]) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def on_gpu(run: Callable[[], object]) -> float:
    """Seconds a call between events, with nothing of an earlier one in the caches.

    Reading four gigabytes takes longer than the host needs to queue the calls behind it, and leaves
    the cache nothing that has to be written back meanwhile.
    """
    scratch = torch.zeros(2**30)
    run()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    scratch.sum()
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3


def peaks() -> tuple[float, float]:
    """GFLOP/s of the fastest product, and GB/s of a sum (on a GPU: a copy) beyond the caches."""
    if torch.get_default_device().type == "cuda":
        square, long = torch.randn(8192, 8192, dtype=torch.bfloat16), torch.randn(2**28)
        there = torch.empty_like(long)
        product, copy = best([lambda: square @ square, lambda: there.copy_(long)], 7)
        return 2 * 8192**3 / product / 1e9, 8 * long.numel() / copy / 1e9
    images, weight = torch.randn(16, 64, 32, 32), torch.randn(64, 64, 3, 3)
    images = images.contiguous(memory_format=torch.channels_last)
    squares = [torch.randn(size, size) for size in (512, 1024, 1536)]
    work = {lambda: F.conv2d(images, weight, padding=1): 2.0 * 64 * 9 * images.numel()}
    work |= {lambda square=square: square @ square: 2.0 * len(square) ** 3 for square in squares}
    rates = [flops / best([run], 30)[0] / 1e9 for run, flops in work.items()]
    long = torch.randn(2**26)
    return max(rates), 4 * long.numel() / best([long.sum], 7)[0] / 1e9


def launch(rounds: int) -> float:
    """Seconds of an operation that does next to nothing: what every row's time has in it."""
    return best([lambda: torch.empty(1).zero_()], rounds)[0]


def main() -> None:
    """Prints a line for each row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    many, few = 16, 4
    if options.device == "cuda":
        torch.set_default_device("cuda")
        many, few = (most_examples(torch.device("cuda"), draws) for draws in (1, 8))
    flops, bandwidth = peaks()
    launch_us = round(1e6 * launch(options.rounds), 1)
    print(
        f"peaks: {flops:.0f} GFLOP/s, {bandwidth:.1f} GB/s; a launch takes {launch_us} us of a row"
    )
    figures: dict[str, Any] = {
        "commit": records.commit(),
        "threads": options.threads,
        "build": ops.describe_build(),
        "peak_gflops": round(flops),
        "peak_gbytes": round(bandwidth, 1),
        "launch_us": launch_us,
        "rows": [],
    }
    failed = False
    for row in rows(many, few):
        if options.only not in row.name:
            continue
        try:
            record = measured(row, options.rounds, flops, bandwidth)
        except Exception as problem:
            print(f"{row.name:<46} does not run: {problem!s:.200}", flush=True)
            failed = True
            continue
        print(line(record), flush=True)
        figures["rows"].append(record)
        if options.json:  # After each, since the next one may take the process with it.
            records.write(options.json, options.device, **figures)
    sys.exit(failed)


def measured(row: Row, rounds: int, flops: float, bandwidth: float) -> dict[str, Any]:
    """The figures of a row, beside the peaks."""
    ours, theirs = best([row.ours, row.theirs], rounds)
    rate, traffic = row.flops / ours / 1e9, row.bytes / ours / 1e9
    return {
        "name": row.name,
        "us": round(1e6 * ours, 1),
        "gflops": round(rate, 1),
        "gbytes": round(traffic, 2),
        "share_of_peak": round(max(rate / flops, traffic / bandwidth), 2),
        "ratio": round(ours / theirs, 2),
    }


def line(record: dict[str, Any]) -> str:
    """For a person."""
    return (
        f"{record['name']:<46} {record['us']:>9} us {record['gflops']:>7} GFLOP/s "
        f"{record['gbytes']:>6} GB/s  {record['share_of_peak']:.0%} of a peak, "
        f"{record['ratio']} of PyTorch's time"
    )


if __name__ == "__main__":
    main()
