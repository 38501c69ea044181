r"""What does the semantic selection buy, against all public classes (PDP) and none (DPDM)?

    python benchmarks/baselines.py --out DIR [--minutes M] [--json FILE] [ARGUMENTS OF train …]

Runs `privimage train` once for each selection, with the same arguments and so with the same number
of pre-training images, and prints accuracy, FID and time of each. With --minutes it stops after
about so long, at a step boundary; the same command goes on from there.

The paper's comparison on CIFAR-10 (expected: CNN accuracy semantic 0.69, all 0.30; FID 27.6, 66.8):

    python benchmarks/baselines.py --out runs/baselines --minutes 9 --json cifar10.json \
        --preset cifar10 --sensitive cifar10-train.parquet --public imagenet32-train.parquet \
        --test cifar10-test.parquet
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import records
import torch
from pipeline import stage_seconds

MODES = ("semantic", "all", "none")


def main() -> None:
    """Runs the three selections and prints a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the three runs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options, arguments = parser.parse_known_args()
    deadline = time.monotonic() + 60 * options.minutes
    for mode in MODES:
        if not train(options.out / mode, mode, arguments, deadline):
            print("out of time; run the same command again to go on")
            return
    rows = [{"selection": mode, **figures(options.out / mode)} for mode in MODES]
    for row in rows:
        print(f"{row['selection']:<9} ε {row['epsilon']}  {row['accuracy']}  FID {row['fid']}")
    if options.json:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        records.write(options.json, device, arguments=arguments, rows=rows)


def train(run: Path, mode: str, arguments: list[str], deadline: float) -> bool:
    """Goes on with one run until the deadline; whether it is finished."""
    left = (deadline - time.monotonic()) / 60
    if left <= 0:
        return (run / "evaluation").exists()
    limit = [] if left == float("inf") else ["--max-minutes", f"{left:.2f}"]
    command = ["train", "--out", str(run), "--selection", mode, *limit, *arguments]
    subprocess.run([sys.executable, "-m", "privimage", *command], check=True)
    return (run / "evaluation").exists()


def figures(run: Path) -> dict:
    """What a finished run measured, and the seconds of its stages."""
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    return {
        "epsilon": metrics["epsilon"],
        "accuracy": {
            kind: accuracy["over_test_images"]["value"]
            for kind, accuracy in metrics["synthetic"]["accuracy"].items()
        },
        "fid": metrics["synthetic"]["scores"]["fid"]["value"],
        "seconds": stage_seconds(run),
    }


if __name__ == "__main__":
    main()
