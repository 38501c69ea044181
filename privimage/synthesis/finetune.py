"""DP fine-tuning as far as the ledger's budget goes: reservations, steps, checkpoints."""

from pathlib import Path

import torch
from torch import nn

from privimage.checkpoint import Checkpoint, Checkpoints
from privimage.data import ImageSet
from privimage.dp import Ledger
from privimage.errors import UserError
from privimage.progress import Reporter, Stopped
from privimage.synthesis.finetuner import Finetuner, FinetuneSettings
from privimage.threads import Workers


def finetune(
    ledger: Ledger,
    sensitive: ImageSet,
    network: nn.Module,
    settings: FinetuneSettings,
    public_size: int,
    folder: Path,
    workers: Workers,
    reporter: Reporter,
    max_memory: float | None = None,
) -> tuple[torch.Tensor, int]:
    """Fine-tunes `network` on the sensitive images, as far as the ledger's budget goes.

    Formal guarantee: under add/remove-one adjacency by privacy unit (image or person), with
    `public_size` taken as public, everything this writes or returns is a function of at most as
    many Poisson-subsampled Gaussian releases, with the planned rate and noise multiplier, as the
    ledger has reserved
    (tests/synthesis/test_finetune.py::test_one_image_moves_a_step_by_at_most_the_clip,
    tests/synthesis/test_finetune.py::test_one_person_moves_a_step_by_at_most_the_clip,
    tests/synthesis/test_finetune.py::test_reserved_steps_cover_the_steps_taken).

    Args:
        ledger: with a plan whose fine-tuning part has this rate.
        sensitive: the sensitive images.
        network: starts from its present weights.
        settings: hyper-parameters.
        public_size: number of privacy units, as declared public.
        folder: for checkpoints.
        workers: cores for the micro-batches.
        reporter: for progress; asks the loop to stop.
        max_memory: bytes by which a worker's micro-batch may grow the process; by default half
            of what a GPU has free, 1 GiB on a CPU.

    Returns:
        The averaged weights [parameters] in the order of `network.parameters()`, and the number of
        steps taken: fewer than planned where a crash wasted reserved ones.

    Raises:
        UserError: the budget pays for no step, the ledger is for another unit than the images, or
            a checkpoint is not of this ledger.
        Stopped: at the end of a reservation, because the reporter asked for it.
    """
    ledger.check_unit(sensitive.unit)
    noise_multiplier = ledger.plan_in_force().finetune.noise_multiplier
    if next(network.parameters()).is_cuda:
        reporter.say("  on a GPU the step is measured and compiled first, for a minute or so")
    tuner = Finetuner(
        sensitive, network, settings, noise_multiplier, public_size, workers, max_memory
    )
    if not tuner.is_secret:
        ledger.mark_not_private("test key")
    checkpoints = Checkpoints(folder, reporter.warn)
    done = 0
    if (checkpoint := checkpoints.load()) is not None:
        _check_head(ledger, checkpoint, folder)
        tuner.restore(checkpoint.tensors)
        done = checkpoint.step
    budget = ledger.step_budget(settings.steps - done, first_step=done)
    total = done + budget.left
    if total == 0:
        raise UserError(f"{ledger.path}: the budget pays for no step; raise --epsilon")
    if total < settings.steps:
        reporter.say(f"DP fine-tuning: {total} of {settings.steps} steps; a crash spent the others")
    reserved = done
    for step in reporter.steps("DP fine-tuning", total, done):
        if step == reserved:
            budget.reserve(min(settings.reservation, total - step))
            reserved = min(step + settings.reservation, total)
        tuner.step()
        if step + 1 == reserved:
            checkpoints.save(reserved, tuner.tensors(), {"ledger_head": ledger.head})
            if reporter.must_stop and reserved < total:
                raise Stopped(f"DP fine-tuning stopped after {reserved} of {total} steps")
    return tuner.released(), total


def _check_head(ledger: Ledger, checkpoint: Checkpoint, folder: Path) -> None:
    """Raises UserError unless the steps of a checkpoint are in this ledger."""
    if not ledger.knows(checkpoint.state.get("ledger_head")):
        raise UserError(
            f"{ledger.path} is older than the checkpoints in {folder} or is another run's, "
            "so ε can't be stated; restore it from a backup"
        )
