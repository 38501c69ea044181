"""Figures that are kept: with machine, versions and commit, and rows that replace older ones."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from privimage.machine import cores


def merge(
    path: Path, rows: Sequence[dict[str, Any]], identity: Sequence[str], device: str = "cpu"
) -> None:
    """Writes rows to a file of figures, in place of older ones that agree with them in `identity`.

    Rows are in the order in which they first came; each says at which commit it was measured. A
    file is of one machine: figures of another one are all replaced.
    """
    figures = json.loads(path.read_text()) if path.exists() else {}
    old = figures.get("rows", []) if figures.items() >= machine(device).items() else []
    kept = {tuple(row.get(key) for key in identity): row for row in old}
    here = commit()
    for row in rows:
        kept[tuple(row.get(key) for key in identity)] = {**row, "commit": here}
    write(path, device, rows=list(kept.values()))


def write(path: Path, device: str = "cpu", **figures: Any) -> None:
    """Writes figures and what they are of."""
    path.write_text(json.dumps({**machine(device), **figures}, indent=1) + "\n")


def machine(device: str = "cpu") -> dict[str, str]:
    """What the figures are of."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        name = torch.cuda.get_device_name()
        versions |= {"driver": driver(), "cuda": torch.version.cuda}
    else:
        name = f"{cores()} cores of {cpu_name()}, {platform.machine()}"
    return {"machine": name, **versions}


def driver() -> str:
    """Its version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.check_output(command, text=True).splitlines()[0]


def cpu_name() -> str:
    """The processor, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


def commit() -> str:
    """Of the sources beside this file, where they have a history; else what COMMIT says."""
    otherwise = os.environ.get("COMMIT", "unknown")
    if shutil.which("git") is None:
        return otherwise
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or otherwise
