"""Puts what `gpu_check.sh` measured into one file, as it is kept in results/.

    python benchmarks/gpu_result.py FOLDER

Reads dp_step.json, peers.json and kernels.json there, those that exist, and writes e.g.
h200-2026-01-31.json: rows with model, draws, method and ratio beside machine, driver and versions.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from privimage import ops


def main(folder: Path) -> None:
    """Writes the file and says where."""
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for name in ("peers", "dp_step"):  # what both measured, the latter measured in peace
        for row in read(folder / f"{name}.json").get("rows", []):
            rows[row["model"], row["draws"], row["method"]] = row
    kernels = read(folder / "kernels.json")
    figures = {
        **machine(),
        "rows": list(rows.values()),
        "peak_gflops": kernels.get("peak_gflops"),
        "copy_gbytes": kernels.get("peak_gbytes"),
        "kernels": kernels.get("rows", []),
    }
    short = figures["machine"].split()[1].lower() if " " in figures["machine"] else "gpu"
    path = folder / f"{short}-{datetime.date.today()}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(f"{path}\n")


def machine() -> dict[str, Any]:
    """What the figures are of."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.check_output(query, text=True).splitlines()[0].split(", ")
    versions = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "build": ops.describe_build(),
    }
    return {"machine": name, "driver": driver, **versions}


def read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where the step that writes it failed."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
