"""Times the methods against each other: in one process, turn by turn, by fixed rules.

Every method takes one step that warms up. One that may take the micro-batch in pieces takes it in
more as long as that is faster: the better of two further steps each way. Then all take so many
turns; before each third one, the ordinary steps and ours take one without the others. The order is
shuffled anew for every turn, by its number, so that nobody always comes after the same one. A ratio
is a method's time to the reference's in the same turn: the fastest ordinary step. On a GPU that may
be a compiled or a captured one, and a second ratio is to the faster of those that are neither; a
third figure is the most memory that the method had there beside the others' weights.

The sums of private methods must agree, or nobody's time means anything. A row says whether its sum
was that of something else than another recorded step of ours, which may go wrong in the same way.
"""

import contextlib
import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from step.methods import CAPTURED, COMPILED, ORDINARY, OURS, UNRECORDED, Method
from step.models import Setting
from step.steps import Step

Row = dict[str, Any]


def measure(
    setting: Setting, chosen: Mapping[str, Method], rounds: int, budget: float = math.inf
) -> list[Row]:
    """One record for each method that runs; the ordinary ones must be among them.

    The ordinary ones and ours are built first. After five sixths of `budget` seconds no other
    one is, and what is not ready then is given up; but not ours call by call, which takes no
    compiler's time and can check ours. After all no further turn is taken, but for the first three.
    """
    torch.compiler.reset()  # Else other shapes than the last setting's are compiled for any shape.
    began = time.perf_counter()
    steps: dict[str, Step] = {}
    pieces: dict[str, int] = {}
    peaks: dict[str, dict[str, int]] = {}
    agreeing: list[str] = []  # whose sums are the expected one
    expected: torch.Tensor | None = None
    references = (*ORDINARY, CAPTURED, COMPILED) if setting.on_gpu else ORDINARY

    def is_in_every_turn(name: str) -> bool:
        return name in references or name.startswith(OURS)

    def is_needed(name: str) -> bool:
        return name in (*ORDINARY, OURS)

    def place(name: str) -> tuple[bool, bool, bool]:
        return not is_needed(name), not is_in_every_turn(name), name != UNRECORDED

    for name in sorted(chosen, key=place):
        has_time = is_needed(name) or name == UNRECORDED
        left = math.inf if has_time else began + budget * 5 / 6 - time.perf_counter()
        try:
            with _within(left):
                method = chosen[name]
                found = _fastest(method, setting.on_gpu)
                summed = found[2]
                if expected is None and name in (OURS, UNRECORDED):
                    expected, agreeing = summed, [name]
                elif (method.folds or setting.draws == 1) and _agree(summed, expected):
                    agreeing.append(name)
        except Exception as problem:
            if is_needed(name):
                raise
            print(f"{setting.name} K={setting.draws} {name} does not run: {problem!s:.200}")
            continue
        pieces[name], steps[name], _, peaks[name] = found
    is_checked = len(agreeing) > 1 and not all(chosen[name].is_recorded for name in agreeing)
    always = [name for name in steps if is_in_every_turn(name)]
    seconds = _turns(steps, always, rounds, setting.on_gpu, began + budget)
    wall = {
        name: {turn: both[0] for turn, both in taken.items()} for name, taken in seconds.items()
    }
    cpu = {name: {turn: both[1] for turn, both in taken.items()} for name, taken in seconds.items()}

    def median(name: str) -> float:
        return statistics.median(wall[name].values())

    eager = min(ORDINARY, key=median)
    reference = min((name for name in steps if name in references), key=median)
    rows = []
    for name in steps:
        ratios = [taken / wall[reference][turn] for turn, taken in wall[name].items()]
        cpu_ratios = [taken / cpu[reference][turn] for turn, taken in cpu[name].items()]
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
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
                "reference_ms": round(1e3 * median(reference), 2),
                **peaks[name],
            }
        )
        if steps[name].summed is not None:
            rows[-1]["checked"] = is_checked and name in agreeing
        if setting.on_gpu:
            to_eager = [taken / wall[eager][turn] for turn, taken in wall[name].items()]
            rows[-1]["eager_ratio"] = round(statistics.median(to_eager), 3)
    return rows


def _peak_on_gpu() -> Callable[[], dict[str, int]]:
    """Says, when called, how many megabytes more than now there were at most.

    Replays of a captured step take what its capture took: that counts, too.
    """
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def peak() -> dict[str, int]:
        return {"peak_mb": round((torch.cuda.max_memory_allocated() - before) / 1e6)}

    return peak


def _fastest(method: Method, on_gpu: bool) -> tuple[int, Step, torch.Tensor | None, dict[str, int]]:
    """The number of pieces that it is fastest in, its step, its first sum if any, its peak."""
    best: tuple[float, int, Step, dict[str, int]] | None = None
    for pieces in method.pieces:
        peak = _peak_on_gpu() if on_gpu else dict
        try:
            step = method.build(pieces)
            found = step.gradient()
        except torch.OutOfMemoryError:
            if pieces == method.pieces[-1] and best is None:
                raise
            continue
        summed = None if step.summed is None else step.summed(found)
        step.update(found)
        tries = 2 if len(method.pieces) > 1 else 0
        seconds = min((_seconds(step, on_gpu)[0] for _ in range(tries)), default=0.0)
        if best is not None and seconds >= best[0]:
            break
        best = seconds, pieces, step, peak()
    return best[1], best[2], summed, best[3]


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """TimeoutError inside after so long; at once where there is no time."""

    def give_up(*_: object) -> None:
        raise TimeoutError("no time left")

    if seconds == math.inf:
        yield
        return
    if seconds <= 0:
        give_up()
    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again: a compiler may take the first one for its own problem.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _agree(found: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    """Correctness before timing: whether there are two sums; an error if they are not the same."""
    if found is None or expected is None:
        return False
    tolerance = 5e-2 if found.is_cuda else 1e-3  # There activations are bfloat16.
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= tolerance:
        raise ArithmeticError(f"computes something else: {difference:.1e} from {OURS}'s sum")
    return True


def _turns(
    steps: Mapping[str, Step], always: Sequence[str], rounds: int, on_gpu: bool, until: float
) -> dict[str, dict[int, tuple[float, float]]]:
    """Seconds of the clock and of the cores, by method and turn."""
    taken: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in steps}
    for turn in range(math.ceil(rounds * 4 / 3)):
        if turn > 2 and time.perf_counter() > until:
            break
        names = [name for name in steps if turn % 4 != 0 or name in always]
        random.Random(turn).shuffle(names)
        for name in names:
            taken[name][turn] = _seconds(steps[name], on_gpu)
    return taken


def _seconds(step: Step, on_gpu: bool) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    step()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began[0], time.process_time() - began[1]
