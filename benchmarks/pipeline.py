"""How long does each stage of a run take, and how much memory does the run need?

    python benchmarks/pipeline.py [--out DIR] [--json FILE] [ARGUMENTS OF privimage train …]

Runs `privimage train` in a process of its own, with the digits preset unless the arguments say
otherwise, and prints seconds by stage and the process's peak memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import records

from privimage.pipeline.schedule import STAGES


def main() -> None:
    """Runs the pipeline and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--out", type=Path, help="run folder; default a temporary one")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options, train_arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary) / "run"
        began = time.monotonic()
        command = [sys.executable, "-m", "privimage", "train", "--out", str(out), *train_arguments]
        subprocess.run(command, check=True)
        wall = time.monotonic() - began
        figures = {
            "command": ["privimage", "train", *train_arguments],
            "seconds": stage_seconds(out),
            "wall_seconds": round(wall, 1),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        }
    for stage, seconds in figures["seconds"].items():
        print(f"{stage:<12} {seconds:8.1f} s")
    print(f"{'whole run':<12} {figures['wall_seconds']:8.1f} s, {figures['peak_memory_mb']} MB")
    if options.json:
        records.write(options.json, **figures)


def stage_seconds(run: Path) -> dict[str, float]:
    """Seconds by stage, in the order of the stages, from their own records."""
    seconds = {}
    for stage in STAGES:
        record = run / stage.name / "stage.json"
        if record.exists():
            seconds[stage.name] = json.loads(record.read_text())["seconds"]
    return seconds


if __name__ == "__main__":
    main()
