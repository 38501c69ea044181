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
In turns, the best of the rounds; on a GPU the median between events.

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
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from operators import rows
from records import commit, machine

from privimage import ops


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
        product, copy = best([lambda: square @ square, lambda: there.copy_(long)], 7)
        return 2 * 8192**3 / product / 1e9, 8 * long.numel() / copy / 1e9
    square, long = torch.randn(1536, 1536), torch.randn(2**26)
    product, total = best([lambda: square @ square, long.sum], 7)
    return 2 * 1536**3 / product / 1e9, 4 * long.numel() / total / 1e9


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
        ours, theirs = best([row.ours, row.theirs], options.rounds)
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
        figures = {**machine(), "commit": commit(), "threads": options.threads}
        figures |= {
            "build": ops.describe_build(),
            "peak_gflops": round(flops),
            "peak_gbytes": round(bandwidth, 1),
        }
        options.json.write_text(json.dumps(figures | {"rows": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
