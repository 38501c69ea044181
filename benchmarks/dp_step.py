"""What does a private step cost beside an ordinary one, and beside what else there is?

    python benchmarks/dp_step.py [--quick] [--models NAME,…] [--draws K,…] [--json FILE] [--peak] …

Every method does one whole optimiser step on the same micro-batch: forward, backward, Adam and an
average of the weights; the private ones also the norm of each image's gradient, clipping, the sum
and noise. All run in this process, in turns; a ratio is the median over the rounds of a method's
time to that of the faster ordinary step in the same round. Peers run only where they are installed.
Prediction: `privimage` at most 1.10, 1.05 and 1.02 at 1, 4 and 8 draws on the CIFAR-10 network.
Seen with --quick on a 2-core Xeon, both cores (benchmarks/results/dp_step-cpu.json): 1.14 and 1.03
at 1 and 8 draws; vmap(grad) 1.76 and 1.65, Opacus' hooks 2.16 and 2.02, a loop over images 3.05 and
1.38. What is left at one draw is the weight gradient's write-out and the arena of 7 MB an image.
"""

import argparse
import copy
import dataclasses
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from models import MODELS, Setting, settings
from torch import nn
from torch.func import functional_call, grad, vmap

from privimage.dp import ClipRule, DPAdam, ExampleGradients, plan, planned_clipped_sum

MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 1e-4
EMA_DECAY = 0.999
ORDINARY = ("ordinary channels-first", "ordinary channels-last")
# Otherwise glibc returns large blocks at each free and gets them again, at a tenth of every step.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}

Step = Callable[[], None]


class Update:
    """Fused Adam and the average of the weights, as every method but ours uses them."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        self._adam = torch.optim.Adam(self.parameters, LEARNING_RATE, fused=True)
        self._average = [parameter.detach().clone() for parameter in self.parameters]

    def __call__(self) -> None:
        """From the parameters' `grad`, which is forgotten afterwards."""
        self._adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self.parameters, 1 - EMA_DECAY)
        self._adam.zero_grad()


def add_noise(parameters: list[nn.Parameter], sums: list[torch.Tensor], examples: int) -> None:
    """Sets `grad` to the noisy mean."""
    for parameter, total in zip(parameters, sums, strict=True):
        noise = torch.randn_like(total) * (NOISE_MULTIPLIER * MAX_GRAD_NORM)
        parameter.grad = (total + noise) / examples


def ordinary(setting: Setting, memory_format: torch.memory_format) -> Step:
    """The step of a training without privacy."""
    network = setting.network().to(memory_format=memory_format)
    update = Update(network)
    batch = [
        t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in setting.batch()
    ]

    def step() -> None:
        setting.losses(network, *batch).mean().backward()
        update()

    return step


class Ours:
    """Our step, as the plan has it for so many bytes (None: as many as it takes)."""

    def __init__(self, setting: Setting, max_memory: float | None = None) -> None:
        self._setting, self._batch = setting, setting.batch()
        network = setting.network()
        self._gradients = ExampleGradients(network, torch.channels_last)
        self.plan = plan(
            network,
            setting.batch(1),
            draws=setting.draws,
            max_memory=max_memory,
            examples=setting.examples,
            losses=setting.losses,
            memory_format=torch.channels_last,
        )
        self._adam = DPAdam(
            network.parameters(),
            LEARNING_RATE,
            NOISE_MULTIPLIER,
            setting.examples,
            ema_decay=lambda update: EMA_DECAY,
        )

    def total(self) -> torch.Tensor:
        """The clipped sum, to which `max_memory` applies."""
        return planned_clipped_sum(
            *(self._gradients, self._setting.losses, *self._batch),
            plan=self.plan,
            rule=ClipRule(MAX_GRAD_NORM),
        )

    def __call__(self) -> None:
        """The whole step."""
        self._adam.step(self.total())


def opacus_hooks(setting: Setting) -> Step:
    """Opacus' hooks: one gradient a row, averaged over an image's draws before clipping."""
    from opacus import GradSampleModule

    network, batch = GradSampleModule(setting.network(), loss_reduction="sum"), setting.batch()
    update = Update(network)

    def step() -> None:
        setting.losses(network, *batch).sum().backward()
        parts = [
            p.grad_sample.unflatten(0, (setting.examples, -1)).mean(1) for p in update.parameters
        ]
        add_noise(update.parameters, clip_and_sum(parts), setting.examples)
        update()
        for parameter in update.parameters:
            parameter.grad_sample = None

    return step


def vmap_grad(setting: Setting) -> Step:
    """torch.func: the gradient of one image's loss, vectorised over the images."""
    network = setting.network()
    update = Update(network)
    parameters = dict(network.named_parameters())
    batch = [tensor.unflatten(0, (setting.examples, -1)) for tensor in setting.batch()]

    def loss(weights: dict[str, torch.Tensor], *example: torch.Tensor) -> torch.Tensor:
        return setting.losses(
            lambda *inputs: functional_call(network, weights, inputs), *example
        ).mean()

    each = vmap(grad(loss), in_dims=(None, *[0] * len(batch)))

    def step() -> None:
        parts = each({name: p.detach() for name, p in parameters.items()}, *batch)
        add_noise(update.parameters, clip_and_sum(list(parts.values())), setting.examples)
        update()

    return step


def loop(setting: Setting) -> Step:
    """Ordinary autograd, an image at a time."""
    network = setting.network().to(memory_format=torch.channels_last)
    update = Update(network)
    batch = setting.batch()

    def step() -> None:
        sums = [torch.zeros_like(parameter) for parameter in update.parameters]
        for example in zip(*(tensor.split(setting.draws) for tensor in batch), strict=True):
            parts = torch.autograd.grad(setting.losses(network, *example).mean(), update.parameters)
            norm = torch.stack(torch._foreach_norm(parts)).norm()
            scale = (MAX_GRAD_NORM / norm).clamp(max=1).item()
            torch._foreach_add_(sums, parts, alpha=scale)
        add_noise(update.parameters, sums, setting.examples)
        update()

    return step


def synchronize() -> None:
    """Waits until a GPU has done what was asked of it."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


def clip_and_sum(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """[examples, *shape] each -> [*shape] each."""
    norms = torch.stack([part.flatten(1).norm(dim=1) for part in parts]).norm(dim=0)
    scales = (MAX_GRAD_NORM / norms).clamp(max=1)
    return [torch.tensordot(scales, part, 1) for part in parts]


def methods(setting: Setting, limits: Sequence[int] = ()) -> dict[str, Callable[[], Step]]:
    """What makes a step of each that can run here, by name; ours also in so many megabytes."""
    found = {
        ORDINARY[0]: lambda: ordinary(setting, torch.contiguous_format),
        ORDINARY[1]: lambda: ordinary(setting, torch.channels_last),
        "privimage": lambda: Ours(setting),
        **{f"privimage in {mb} MB": partial(Ours, setting, 1e6 * mb) for mb in limits},
        "vmap(grad)": lambda: vmap_grad(setting),
        "loop over images": lambda: loop(setting),
    }
    if importlib.util.find_spec("opacus") is not None:
        found["opacus hooks"] = lambda: opacus_hooks(setting)
    return found


def measure(
    setting: Setting, rounds: int, among: str, limits: Sequence[int]
) -> list[dict[str, float | int | str]]:
    """One record for each method whose name has a word of `among` in it."""
    words = among.split(",")
    steps = {
        name: build()
        for name, build in methods(setting, limits).items()
        if any(word in name for word in words)
    }
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu = copy.deepcopy(wall)
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter(), time.process_time()
            step()
            synchronize()
            if turn > 0:  # the first one warms up
                wall[name].append(time.perf_counter() - began[0])
                cpu[name].append(time.process_time() - began[1])
    reference = min(ORDINARY, key=lambda name: statistics.median(wall[name]))
    rows = []
    for name in steps:
        ratios = [a / b for a, b in zip(wall[name], wall[reference], strict=True)]
        cpu_ratios = [a / b for a, b in zip(cpu[name], cpu[reference], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append(
            {
                "model": setting.name,
                "examples": setting.examples,
                "draws": setting.draws,
                "method": name,
                "ratio": round(middle, 3),
                "ratio_low": round(low, 3),
                "ratio_high": round(high, 3),
                "cpu_ratio": round(statistics.median(cpu_ratios), 3),
                "reference": reference,
                "reference_ms": round(1e3 * statistics.median(wall[reference]), 1),
            }
        )
    return rows


def peak(setting: Setting, method: str, limits: str) -> dict[str, float]:
    """Megabytes that a method adds to a process of its own (see `print_peak`)."""
    command = [sys.executable, __file__, "--models", setting.name, "--draws", str(setting.draws)]
    command += ["--max-memory", limits, "--peak-of", method]
    done = subprocess.run(command, check=True, capture_output=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(setting: Setting, method: str, limits: Sequence[int]) -> None:
    """What `peak` reads: of network, optimiser and three steps; of ours the sum alone as well.

    What the libraries take once does not count: a tiny network has run before.
    """
    (tiny,) = settings(["digits"], [1])
    tiny = dataclasses.replace(tiny, examples=2)
    methods(tiny)[method if method in methods(tiny) else "privimage"]()()
    before = resident_mb()
    step, found = methods(setting, limits)[method](), {}
    if isinstance(step, Ours):
        built = resident_mb()
        for _ in range(3):
            step.total()
        found = {"predicted_mb": round(step.plan.bytes / 1e6), "sum_mb": round(peak_mb() - built)}
    for _ in range(3):
        step()
    print(json.dumps({"peak_mb": round(peak_mb() - before), **found}))


def resident_mb() -> float:
    """What the process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """The most that it ever had; `ru_maxrss` would be that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def main() -> None:
    """Measures and prints a table."""
    options = parse()
    if not ALLOCATOR.items() <= os.environ.items():
        command = [sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, env=os.environ | ALLOCATOR).returncode)
    torch.set_num_threads(options.threads)
    if options.device != "cpu":  # a default device, even the CPU, costs every call some time
        torch.set_default_device(options.device)
    draws = [int(k) for k in options.draws.split(",")]
    chosen = settings(options.models.split(","), draws, 16 if options.device == "cuda" else 1)
    limits = [int(mb) for mb in options.max_memory.split(",") if mb]
    if options.peak_of:
        print_peak(chosen[0], options.peak_of, limits)
        return
    rows = []
    for setting in chosen:
        for row in measure(setting, options.rounds, options.among, limits):
            if options.peak:
                row |= peak(setting, str(row["method"]), options.max_memory)
            rows.append(row)
            print(
                f"{row['model']:<8} K={row['draws']} {row['method']:<24} {row['ratio']:6.3f} "
                f"({row['ratio_low']:.3f} to {row['ratio_high']:.3f}), CPU {row['cpu_ratio']:.3f}, "
                f"of {row['reference_ms']} ms, {row.get('peak_mb', '')} MB, the sum "
                f"{row.get('sum_mb', '')} of {row.get('predicted_mb', '')} predicted",
                flush=True,
            )
        if options.json:
            write(options, rows)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names, with commas")
    parser.add_argument("--draws", default="1,4,8", help="draws an image, with commas")
    parser.add_argument("--quick", action="store_true", help="cifar10 at 1 and 8 draws")
    parser.add_argument("--among", default="", help="words of methods' names, with commas")
    parser.add_argument("--peak", action="store_true", help="measure peak memory as well")
    parser.add_argument("--max-memory", default="", help="megabytes for the plan, with commas")
    parser.add_argument("--peak-of", metavar="METHOD", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.quick:
        options.models, options.draws = "cifar10", "1,8"
    return options


def write(options: argparse.Namespace, rows: list[dict[str, float | int | str]]) -> None:
    """The figures so far, with the machine named."""
    machine = f"{platform.machine()}, {cpu_name()}, {options.threads} threads"
    if options.device == "cuda":
        machine = torch.cuda.get_device_name()
    figures = {"machine": machine, "torch": torch.__version__, "rows": rows}
    options.json.write_text(json.dumps(figures, indent=2) + "\n")


def cpu_name() -> str:
    """As Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
