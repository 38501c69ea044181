r"""What does the engine change in a run: fine-tuning with it, and with plain autograd instead?

    python benchmarks/engine.py --out DIR [--json FILE] [ARGUMENTS OF privimage train …]

Runs `privimage train` up to fine-tuning twice from the same start, with the same test key: as it
is, and with `torch.autograd.grad` one image at a time in the engine's place, each in a process of
its own. Prints the median time of a step and the seconds of the stages both ways, and whether the
ledger (with ε; but for times and random names) and the integers of all noise are the same. The
stages before fine-tuning run once. The embedded run and the CIFAR-10 preset, cut down:

    python benchmarks/engine.py --out DIR1 --selection none --set finetune.steps=20
    python benchmarks/engine.py --out DIR2 --preset cifar10 --sensitive cifar10-train.parquet \
        --selection none --set finetune.sample_rate=0.0005 --set finetune.steps=2

Seen on a busy 2-core Xeon (results/engine-*.json): of the embedded run (287 images x 4 draws a
step) 2.36 s a step with plain autograd, 0.236 s with the engine, and 0.210 s with 50 steps, when it
is recorded; of the preset (25 images x 8) 3.22 and 2.79 s; ledger and noise the same both times.
Predicted of the embedded run: at most 0.217 s, 1.8 times faster than hooks on a core (0.39 s).
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import records
import torch
from pipeline import stage_seconds

import privimage.cli
from privimage import ops
from privimage.acceleration import in_turns
from privimage.dp import ClipRule, ExampleGradients, StepPlan
from privimage.synthesis import finetuner

WAYS = ("plain", "engine")
SEEN = "seen.json"
TEST_KEY = {"PRIVIMAGE_TEST_KEY": "any"}


def main() -> None:
    """Runs both and prints what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the two runs")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options, arguments = parser.parse_known_args()
    if options.way:
        run(options.out, options.way, arguments)
        return
    start, rows = options.out / "start", []
    if "none" not in arguments:  # otherwise there is no stage before fine-tuning
        command = [sys.executable, "-m", "privimage", "train", "--out", str(start)]
        command += [*arguments, "--until", "pretrain"]
        subprocess.run(command, env=os.environ | TEST_KEY, check=True)
    for way in WAYS:
        folder = options.out / way
        if start.exists() and not folder.exists():
            shutil.copytree(start, folder)
        if not (folder / SEEN).exists():
            command = [sys.executable, __file__, "--out", str(folder), "--way", way, *arguments]
            subprocess.run(command, env=os.environ | TEST_KEY, check=True)
        seen = json.loads((folder / SEEN).read_text())
        rows.append({"way": way, "seconds": stage_seconds(folder), **seen})
    ledgers = [ledger(options.out / way) for way in WAYS]
    same = {"ledger": ledgers[0] == ledgers[1]}
    same |= {"noise": rows[0]["noise_sha256"] == rows[1]["noise_sha256"]}
    for row in rows:
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row["seconds"].items())
        print(f"{row['way']:<7} {row['step_seconds']:.3f} s a private step; {stages}")
    print(f"the same either way: {same}")
    if options.json:
        records.write(options.json, rows[0]["device"], arguments=arguments, same=same, rows=rows)


def run(folder: Path, way: str, arguments: list[str]) -> None:
    """One run up to fine-tuning, in this process; beside it what was seen of noise and steps."""
    digest, update = hashlib.sha256(), ops.private_update
    times, devices, step_of = [], set[str](), finetuner.Finetuner.step

    def timed(tuner: finetuner.Finetuner) -> None:
        began = time.perf_counter()
        step_of(tuner)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)

    def noted(total: torch.Tensor, key: torch.Tensor, step: torch.Tensor, *rest: Any) -> None:
        integers = ops.gaussian_integers(key, int(step), 0, len(total), float(ops.LARGEST_STD))
        digest.update(integers.numpy().tobytes())
        devices.add(total.device.type)
        update(total, key, step, *rest)

    ops.private_update, finetuner.Finetuner.step = noted, timed
    if way == "plain":
        finetuner.planned_clipped_sum = one_image_at_a_time
        finetuner.record = lambda function, *made_up: function
        finetuner.accelerated = in_turns
    sys.argv = ["privimage", "train", "--out", str(folder), *arguments, "--until", "finetune"]
    try:
        privimage.cli.main()
    finally:
        seen = {"noise_sha256": digest.hexdigest(), "step_seconds": statistics.median(times)}
        (folder / SEEN).write_text(json.dumps(seen | {"device": devices.pop()}))


def one_image_at_a_time(
    gradients: ExampleGradients,
    losses: Any,
    *batch: torch.Tensor,
    plan: StepPlan,
    rule: ClipRule,
    examples: torch.Tensor,
) -> torch.Tensor:
    """What `planned_clipped_sum` does, by ordinary autograd."""
    network = gradients.model
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = torch.zeros(gradients.size, dtype=torch.int64, device=gradients.device)
    for example in list(zip(*(t.split(plan.draws) for t in batch), strict=True))[: int(examples)]:
        parts = torch.autograd.grad(losses(network, *example).mean(), parameters)
        row = torch.cat([part.flatten() for part in parts])[None]
        total += rule.sum(row, gradients.module_sizes)
    return total


def ledger(folder: Path) -> list[dict[str, Any]]:
    """Its entries but for times and random names, and for hashes, which follow from them."""
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    drop = ("time", "nonce", "hash", "previous", "artifact_sha256")
    return [{k: v for k, v in json.loads(line).items() if k not in drop} for line in lines]


if __name__ == "__main__":
    main()
