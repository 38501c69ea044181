"""Times the methods against each other: in one process, turn by turn, by fixed rules.

Every method takes one step that warms up. One that may take the micro-batch in pieces takes it in
more as long as that is faster: the better of two further steps each way. Then all take so many
turns; before each third one, the ordinary steps and ours take one without the others. The order is
shuffled anew for every turn, by its number, so that nobody always comes after the same one. A ratio
is a method's time to the reference's in the same turn.
"""

import math
import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from step.methods import ORDINARY, OURS, Method
from step.models import Setting
from step.steps import Step

Row = dict[str, Any]


def measure(setting: Setting, chosen: Mapping[str, Method], rounds: int) -> list[Row]:
    """One record for each method that runs; the ordinary ones must be among them."""
    steps: dict[str, Step] = {}
    pieces: dict[str, int] = {}
    expected: torch.Tensor | None = None
    for name, method in sorted(chosen.items(), key=lambda item: not _is_in_every_turn(item[0])):
        try:
            pieces[name], steps[name], found = _fastest(method)
        except Exception as problem:
            if _is_in_every_turn(name):
                raise
            print(f"{setting.name} K={setting.draws} {name} does not run: {problem!s:.200}")
            continue
        expected = found if name == OURS else expected
        if method.folds or setting.draws == 1:
            _check(name, found, expected)
    seconds = _turns(steps, rounds)
    wall = {
        name: {turn: both[0] for turn, both in taken.items()} for name, taken in seconds.items()
    }
    cpu = {name: {turn: both[1] for turn, both in taken.items()} for name, taken in seconds.items()}
    reference = min(ORDINARY, key=lambda name: statistics.median(wall[name].values()))
    rows = []
    for name in steps:
        ratios = [taken / wall[reference][turn] for turn, taken in wall[name].items()]
        cpu_ratios = [taken / cpu[reference][turn] for turn, taken in cpu[name].items()]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append(
            {
                "model": setting.name,
                "examples": setting.examples,
                "draws": setting.draws,
                "threads": torch.get_num_threads(),
                "method": name,
                "micro_batch": setting.examples // pieces[name],
                "ratio": round(middle, 3),
                "ratio_low": round(low, 3),
                "ratio_high": round(high, 3),
                "pairs": len(ratios),
                "cpu_ratio": round(statistics.median(cpu_ratios), 3),
                "reference": reference,
                "reference_ms": round(1e3 * statistics.median(wall[reference].values()), 1),
            }
        )
    return rows


def _is_in_every_turn(name: str) -> bool:
    return name in ORDINARY or name.startswith(OURS)


def _fastest(method: Method) -> tuple[int, Step, torch.Tensor | None]:
    """The number of pieces that it is fastest in, its step, and its first sum if it has one."""
    best: tuple[float, int, Step] | None = None
    for pieces in method.pieces:
        step = method.build(pieces)
        found = step.gradient()
        summed = None if step.summed is None else step.summed(found)
        step.update(found)
        tries = 2 if len(method.pieces) > 1 else 0
        seconds = min((_seconds(step)[0] for _ in range(tries)), default=0.0)
        if best is not None and seconds >= best[0]:
            break
        best = seconds, pieces, step
    return best[1], best[2], summed


def _check(name: str, found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    """Correctness before timing: the sums of all private methods are those of ours."""
    if found is None or expected is None:
        return
    tolerance = 5e-2 if found.is_cuda else 1e-3  # There activations are bfloat16.
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= tolerance:
        raise SystemExit(f"{name} computes something else: {difference:.1e} from {OURS}'s sum")


def _turns(steps: Mapping[str, Step], rounds: int) -> dict[str, dict[int, tuple[float, float]]]:
    """Seconds of the clock and of the cores, by method and turn."""
    taken: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in steps}
    for turn in range(math.ceil(rounds * 4 / 3)):
        names = [name for name in steps if turn % 4 != 0 or _is_in_every_turn(name)]
        random.Random(turn).shuffle(names)
        for name in names:
            taken[name][turn] = _seconds(steps[name])
    return taken


def _seconds(step: Step) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    step()
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began[0], time.process_time() - began[1]
