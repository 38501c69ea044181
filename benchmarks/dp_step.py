r"""What does a private step cost beside an ordinary one, and beside what else there is?

    python benchmarks/dp_step.py [--quick] [--models NAME,…] [--draws K,…] [--json FILE] [--peak] …

Every method does one whole optimiser step on the same micro-batch: forward, backward, Adam and an
average of the weights; the private ones also the norm of each image's gradient, clipping, the sum
and noise. All run in this process, in turns, by the rules of step/turns.py; a ratio is the median
over the turns of a method's time to that of the faster ordinary step in the same turn. Peers run
where they are installed, in the micro-batch that suits them; ours in the ordinary step's. Before
it is timed a method's clipped sum is held against ours; a row says if nothing checked its own.
`privimage` is the step that `privimage train` takes, recorded once as a graph of operators, "call
by call" that of a `PrivateEngine`.

--device cuda: the micro-batch of `privimage train` there (for wide networks a part of it),
activations in bfloat16 for everybody; the ordinary step also compiled and captured, the peak of
memory on the GPU, and a second ratio to PyTorch's eager step. --examples sweeps over micro-batches.

--quick leaves out what takes longest and is never ahead: compiling a peer, and all modes of Opacus
but its hooks. With --seconds what there is no time for is left out. Rows of an existing FILE stay,
unless the same was measured again. --peak measures memory instead, stage by stage (memory.py says
how). --profile prints the operators, on a GPU the kernels, of a step of each method of --among.

Prediction: `privimage` at most 1.10, 1.05 and 1.02 at 1, 4 and 8 draws on the CIFAR-10 network.
Seen on both cores of a Xeon with AVX-512 (results/dp_step-cpu.json): 0.96, 0.92 and 0.90 (in other
hours 0.95 to 1.02), call by call 1.10, 1.02 and 1.01; vmap(grad) 1.82, 1.59 and 1.55, Opacus' hooks
2.15, 2.03 and 2.06, a loop over images 2.91, 1.77 and 1.35. On one thread 0.93 and 0.94 at 4 and 8
draws. On an EPYC without AVX-512 (results/dp_step-cpu-avx2.json) 0.95 (in another hour 0.86), 0.84
and 0.87. ViT-Ti 1.29 and 1.12 at 1 and 8 draws, on the EPYC, where memory is slower, 1.39 and 1.17;
at one draw ResNet-18 1.24 and 1.18, and the digits network, where calls are most of a step, 1.23
and 1.04. Small networks, predicted 2, on an EPYC with AVX-512 (results/dp_step-cpu-small.json): a
perceptron 1.71, where Opacus' ghost takes 2.25, and Opacus' MNIST example 1.36, its hooks 3.9.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from memory import KEEPING, peak
from records import merge
from step.methods import COMPILED, ORDINARY, Method, methods
from step.models import MODELS, Setting, settings
from step.profiles import profile
from step.turns import Row, measure

from privimage.machine import cores

IDENTITY = ("model", "draws", "examples", "threads", "method")


def main() -> None:
    """Measures and prints a table."""
    options = parse()
    if not KEEPING.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEPING)  # noqa: S606
    torch.set_num_threads(options.threads)
    draws = [int(k) for k in options.draws.split(",")]
    limits = [int(mb) for mb in options.max_memory.split(",") if mb]
    sweep = [int(count) for count in options.examples.split(",") if count]
    asked = settings(options.models.split(","), draws, options.device, sweep)
    until = time.perf_counter() + options.seconds
    for number, setting in enumerate(asked):
        budget = (until - time.perf_counter()) / (len(asked) - number)
        if budget <= 0:
            print(f"{setting.name:<8} K={setting.draws}: no time left")
            continue
        chosen = among(setting, options, limits)
        if options.profile:
            for name, method in chosen.items():
                print(f"{setting.name} K={setting.draws} {name}\n{profiled(setting, method)}")
            continue
        if options.peak:
            rows = [memory_row(setting, name, limits, options.threads) for name in chosen]
        else:
            rows = measure(setting, chosen, options.rounds, budget)
        for row in rows:
            print(line(row), flush=True)
        if options.json:
            merge(options.json, rows, IDENTITY, options.device)


def among(setting: Setting, options: argparse.Namespace, limits: list[int]) -> Mapping[str, Method]:
    """The methods whose names have a word of `--among` in them, and what times are ratios to."""
    words, found = options.among.split(","), methods(setting, limits)
    if options.peak:
        del found[COMPILED]  # Compiling takes memory of its own.
    for word in words:
        if not any(word in name for name in found):
            print(f"{setting.name:<8} K={setting.draws} {word}: not here, skipped")
    always = () if options.peak or options.profile else ORDINARY
    return {
        name: method
        for name, method in found.items()
        if name in always or any(word in name for word in words)
    }


def profiled(setting: Setting, method: Method) -> str:
    """As `profile`, or why there is none."""
    try:
        return profile(method, setting.on_gpu)
    except Exception as problem:
        return f"does not run: {problem!s:.200}"


def memory_row(setting: Setting, method: str, limits: list[int], threads: int) -> Row:
    """As `peak`, with what identifies it."""
    what = {"model": setting.name, "examples": setting.examples, "draws": setting.draws}
    return {**what, "threads": threads, "method": method, **peak(setting, method, limits, threads)}


def line(row: Row) -> str:
    """For a person."""
    what = f"{row['model']:<8} K={row['draws']} {row['method']:<24} "
    if "ratio" in row:
        unchecked = "" if row.get("checked", True) else "; NOT CHECKED against another's sum"
        gpu = ""
        if "eager_ratio" in row:
            gpu = f"; {row['eager_ratio']:.3f} of eager, {row['peak_mb']} MB"
        return what + (
            f"{row['ratio']:6.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f}), "
            f"CPU {row['cpu_ratio']:.3f}, of the {row['reference_ms']} ms of {row['reference']}; "
            f"micro-batches of {row['micro_batch']}{gpu}{unchecked}"
        )
    if "sum_mb" in row:
        plan = f"; the sum adds {row['sum_mb']}, {row['predicted_mb']} predicted"
    else:
        plan = ""
    return what + (
        f"{row['peak_mb']:5} MB; network and optimiser {row['built_mb']}, "
        f"gradient {row['gradient_mb']}, update {row['update_mb']}{plan}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names, with commas")
    parser.add_argument("--draws", default="1,4,8", help="draws an image, with commas")
    parser.add_argument("--examples", default="", help="images a micro-batch, with commas: a sweep")
    parser.add_argument("--quick", action="store_true", help="cifar10 at 1 and 8 draws")
    parser.add_argument("--among", default="", help="words of methods' names, with commas")
    parser.add_argument("--peak", action="store_true", help="measure memory instead of times")
    parser.add_argument("--profile", action="store_true", help="print what a step consists of")
    parser.add_argument("--max-memory", default="", help="megabytes for the plan, with commas")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=math.inf, help="to end in, nearly")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.quick:
        options.models, options.draws = "cifar10", "1,8"
        options.among = options.among or "privimage,captured,vmap,loop,hooks"
    if options.peak and options.device != "cpu":
        parser.error("--peak is of a process; on a GPU every row has its peak anyway")
    return options


if __name__ == "__main__":
    main()
