"""Kills real DP fine-tuning with kill -9 at random moments, over and over, and counts the lies.

Each child is forked from this warm process and notes, in memory that survives it, every step just
before it is taken. After each kill the ledger must have reserved at least as many, and when a run
ends its ε must be within the budget. Prints one JSON object.
"""

import argparse
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from privimage.data import ImageSet
from privimage.diffusion.unet import UNet, UNetShape
from privimage.dp import History, Ledger, Plan, StepBudget, SubsampledGaussian, epsilon
from privimage.errors import UserError
from privimage.progress import Reporter
from privimage.synthesis.finetune import finetune
from privimage.synthesis.finetuner import Finetuner, FinetuneSettings
from privimage.threads import Workers

SHAPE = UNetShape(image_size=8, image_channels=1, channels=8, multipliers=(1,), classes=3)
STEPS = SubsampledGaussian(sample_rate=0.1, noise_multiplier=2.0, steps=60)
SETTINGS = FinetuneSettings(sample_rate=0.1, steps=60, draws=1, reservation=3)
DELTA = 1e-2


class Notes:
    """Steps begun, in memory shared by parent and child."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 8)

    @property
    def steps(self):
        return struct.unpack("q", self._memory[:8])[0]

    @steps.setter
    def steps(self, value):
        self._memory[:8] = struct.pack("q", value)


def work(folder, plan, images):
    """One start of fine-tuning, as the stage does it."""
    workers = Workers(1)
    torch.manual_seed(0)
    with Ledger(folder / "ledger.jsonl") as ledger:
        ledger.set_plan(plan)
        checkpoints, reporter = folder / "checkpoints", Reporter(quiet=True)
        finetune(ledger, images, UNet(SHAPE), SETTINGS, 60, checkpoints, workers, reporter)


def fork(function, *arguments):
    """The id of a child that calls `function` and ends: 0, 3 for a user's mistake, 1 else."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        function(*arguments)
        code = 0
    except UserError as error:
        code = 3 if "pays for no step" in str(error) else 1
        sys.stderr.write(f"{error}\n")
    finally:
        os._exit(code)


def reserved(folder):
    """Steps that the ledger of `folder` charges."""
    path = folder / "ledger.jsonl"
    if not path.exists() or not path.read_bytes():
        return 0
    return sum(part.steps for part in History.read(path).spent())


def trial(kills, seconds, images, plan):
    """Runs and kills until `kills` children were killed; what was found."""
    found = {"kills": 0, "runs": 0, "under_reports": 0, "begun": 0, "reserved": 0, "over_budget": 0}
    notes, real = Notes(), Finetuner.step

    def step(tuner):
        notes.steps += 1
        real(tuner)

    Finetuner.step = step
    while found["kills"] < kills:
        notes.steps = 0
        with tempfile.TemporaryDirectory() as name:
            run(Path(name), kills, seconds, plan, images, notes, found)
    return found


def run(folder, kills, seconds, plan, images, notes, found):
    """One run folder, started again after every kill until it ends."""
    status = None
    while status is None and found["kills"] < kills:
        before = notes.steps
        child = fork(work, folder, plan, images)
        if random.random() < 0.7:
            await_step(child, notes, before)
        time.sleep(random.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        _, code = os.waitpid(child, 0)
        if os.WIFSIGNALED(code):
            found["kills"] += 1
        else:
            status = os.waitstatus_to_exitcode(code)
            assert status in (0, 3), status
        found["under_reports"] += reserved(folder) < notes.steps
        sys.stderr.write(f"{json.dumps(found)}\n")
    found["runs"] += 1
    found["begun"] += notes.steps
    found["reserved"] += reserved(folder)
    if reserved(folder):
        spent = History.read(folder / "ledger.jsonl").epsilon(DELTA).upper
        found["over_budget"] += spent > plan.epsilon


def await_step(child, notes, before):
    """Waits until the child begins a step or ends: most of a life is start-up, and most kills
    should not fall into it."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while notes.steps == before and os.waitid(os.P_PID, child, options) is None:
        time.sleep(0.001)


def record_afterwards():
    """The mistake that the count must find: steps are taken first, and charged by the next call."""
    real, pending = StepBudget.reserve, []

    def reserve(budget, steps):
        if pending:
            real(budget, pending.pop())
        pending.append(steps)

    StepBudget.reserve = reserve


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.3, help="longest time to a kill")
    parser.add_argument("--record-afterwards", action="store_true", help="break the ledger")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # An optimiser's first use imports for seconds: once here, not once a child.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    if options.record_afterwards:
        record_afterwards()
    # A third more than the planned steps cost: crashes use it up, then the budget binds.
    budget = epsilon([SubsampledGaussian(0.1, 2.0, 80)], DELTA).upper
    plan = Plan(budget, DELTA, None, STEPS)
    images = ImageSet(
        torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8),
        torch.randint(0, 3, (60,)),
        ("a", "b", "c"),
    )
    found = trial(options.kills, options.seconds, images, plan)
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
