"""What does the fused private update cost, against an ordinary step that draws no secret noise?

    python benchmarks/private_update.py [--rounds 15] [--json FILE]

Both sides work on flat float32 vectors. Ours: an int64 sum, ChaCha20 noise, Adam, average, in one
pass. The ordinary one: `normal_` into the gradient, Adam(fused=True), `lerp_` into the average; it
does not even add a sum. `with_sum` does: noise plus the sum, times 1 / batch size, as DP-SGD must.

A round times one after the other; the figures are medians of the rounds' ratios, below 1 where ours
is faster. Each case is a process of its own, in which all use the same number of threads and at
most the instruction set named. One thread is timed in CPU seconds, which other processes of a
shared machine hardly touch, two in seconds of the clock.

Predicted for a 2-GHz core with AVX-512, one thread, in ns a parameter: ChaCha20 480 vector
instructions at two a cycle for 128 words, 2; Box-Muller 1.5; the update 1, or 5 where memory of
48 bytes a parameter is slower. Ordinary: `normal_` 5 (its generator is serial), Adam and average 3.
So about 0.5 with AVX-512, 1.0 with AVX2 (half the width, rotations of three instructions), less
with two threads, since `normal_` uses one.

Seen on a 2-core Xeon (benchmarks/results/private_update.json), 2 and 28 million parameters: 0.87
and 0.82 with AVX-512, 0.55 and 0.49 with two threads; 1.45 and 1.40 with AVX2, 0.92 and 0.84 with
two threads; with_sum 0.78, 0.71, 0.51, 0.46; 1.29, 1.21, 0.84, 0.78. So AVX2 alone misses 1.0
on one thread: ChaCha20 takes 4 of its 8 ns there, more than `normal_` takes for all. OpenSSL's
hand-written ChaCha20 takes 3.2 ns on the same machine with AVX-512 masked
(`OPENSSL_ia32cap=:~0xD1230000 openssl speed -bytes 65536 -evp chacha20`: 2.5 GB/s, eight bytes a
parameter), which would make 1.3 of our 1.45: RFC 8439 itself does not fit into the target there.
The same rounds written with AVX2 byte shuffles were 11 % faster by themselves, some 5 % of the
pass: not worth a second copy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import records
import torch

from privimage import ops
from privimage.dp import DPAdam

SIZES = (2_000_000, 28_000_000)
ATEN = {"avx512f": "avx512", "avx2": "avx2", "baseline": "default"}


def main() -> None:
    """Runs every case in a process of its own and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=2, type=int, metavar=("PARAMETERS", "THREADS"))
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*options.case, options.rounds)))
        return
    from privimage import _host

    cases = []
    for name in _host.instruction_sets():
        if name == "baseline":
            continue
        chosen = {"PRIVIMAGE_INSTRUCTION_SET": name, "ATEN_CPU_CAPABILITY": ATEN[name]}
        for size in SIZES:
            for threads in (1, 2):
                case = ["--case", str(size), str(threads), "--rounds", str(options.rounds)]
                done = subprocess.run(
                    [sys.executable, __file__, *case],
                    env=os.environ | chosen,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                figures = {"instruction_set": name, **json.loads(done.stdout)}
                cases.append(figures)
                print(figures, flush=True)
    if options.json:
        records.write(options.json, build=ops.describe_build(), cases=cases)


def measure(parameters: int, threads: int, rounds: int) -> dict[str, float]:
    """Median ratios of times, and the fastest of each in ns a parameter."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    steps = (
        private_step(parameters),
        ordinary_step(parameters, with_sum=False),
        ordinary_step(parameters, with_sum=True),
    )
    for step in steps * 2:
        step()
    times = [[seconds(step, clock) for step in steps] for _ in range(rounds)]
    fastest = [min(column) / parameters * 1e9 for column in zip(*times, strict=True)]
    return {
        "parameters": parameters,
        "threads": threads,
        "ratio": round(statistics.median(row[0] / row[1] for row in times), 3),
        "ratio_with_sum": round(statistics.median(row[0] / row[2] for row in times), 3),
        "private_ns": round(fastest[0], 2),
        "ordinary_ns": round(fastest[1], 2),
        "with_sum_ns": round(fastest[2], 2),
    }


def private_step(parameters: int) -> Callable[[], None]:
    """One step of DPAdam with an average."""
    weights = torch.nn.Parameter(torch.zeros(parameters))
    optimizer = DPAdam([weights], 1e-3, 1.0, 100.0, ema_decay=lambda _: 0.999)
    total = torch.zeros(parameters, dtype=torch.int64)
    return lambda: optimizer.step(total)


def ordinary_step(parameters: int, with_sum: bool) -> Callable[[], None]:
    """Noise in the gradient, Adam and average by PyTorch."""
    weights = torch.nn.Parameter(torch.zeros(parameters))
    weights.grad = torch.zeros(parameters)
    average, total = torch.zeros(parameters), torch.zeros(parameters)
    optimizer = torch.optim.Adam([weights], 1e-3, fused=True)

    def step() -> None:
        weights.grad.normal_(0.0, 1.0)
        if with_sum:
            weights.grad.add_(total).mul_(0.01)
        optimizer.step()
        average.lerp_(weights.detach(), 0.001)

    return step


def seconds(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """How long one call takes."""
    began = clock()
    run()
    return clock() - began


if __name__ == "__main__":
    main()
