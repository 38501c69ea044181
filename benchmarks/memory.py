"""What a step of one method takes in memory, stage by stage, in a process of its own.

A process that has run a tiny network before, so that what the libraries take once does not count,
builds network and optimiser and takes three steps. That is done with the allocator that timings
have, which keeps what is freed, for the peak, the median of some processes: what lies where is
partly chance; and with one that returns every large block at once, for the stages of the third
step.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from step.methods import methods
from step.models import Setting, settings

# Otherwise glibc returns large blocks at each free and gets them again, at a tenth of every step.
KEEPING = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_PROCESSES = 3  # of which a peak is the median


def peak(setting: Setting, method: str, limits: list[int], threads: int) -> dict[str, float]:
    """Megabytes by which the process grows, for ours with the plan's prediction of the sum.

    Returns:
        peak_mb: the most, at any time. built_mb: network and optimiser after a step. gradient_mb,
        update_mb: the most during either stage, of which built_mb is a part. Of ours also sum_mb
        and predicted_mb: what the gradient stage adds to what was there, seen and predicted.
    """
    arguments = [setting.name, str(setting.draws), method, json.dumps(limits), str(threads)]
    found = {}
    for allocator, processes in ((KEEPING, _PROCESSES), (RETURNING, 1)):
        command = [sys.executable, __file__, *arguments]
        environment = os.environ | allocator
        seen = []
        for _ in range(processes):
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            seen.append(json.loads(done.stdout.splitlines()[-1]))
        found |= {key: statistics.median(each[key] for each in seen) for key in seen[0]}
    return found


def main() -> None:
    """What `peak` starts."""
    name, draws, method, limits, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    (setting,) = settings([name], [int(draws)])
    (tiny,) = settings(["digits"], [1])
    tiny = dataclasses.replace(tiny, examples=2)
    within = json.loads(limits)
    methods(tiny, within)[method].build(1)()
    before = _resident_mb()
    step = methods(setting, within)[method].build(1)
    built = _resident_mb()
    if os.environ.items() >= KEEPING.items():
        found = {}
        if step.predicted is not None:
            for _ in range(3):
                step.gradient()
            found["sum_mb"] = _peak_mb() - built
            found["predicted_mb"] = step.predicted / 1e6
        for _ in range(3):
            step()
        found["peak_mb"] = _peak_mb() - before
    else:
        step(), step()
        found = {"built_mb": _resident_mb() - before}
        _forget_peak()
        gradient = step.gradient()
        found["gradient_mb"] = _peak_mb() - before
        _forget_peak()
        step.update(gradient)
        found["update_mb"] = _peak_mb() - before
    print(json.dumps({key: round(value) for key, value in found.items()}))


def _resident_mb() -> float:
    """What the process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak_mb() -> float:
    """The most that it had; `ru_maxrss` would be that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def _forget_peak() -> None:
    """From now on (see proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
