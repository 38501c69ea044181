"""A training loop that goes on from its last checkpoint and stops at a step boundary when asked."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from privimage.checkpoint import Checkpoints
from privimage.progress import Reporter, Stopped

_CHECKPOINT_INTERVAL_S = 10.0


class Trainee(Protocol):
    """What a loop saves and restores."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and JSON values that the steps so far have left behind."""

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """The inverse of `state`."""


def resumable_steps(
    trainee: Trainee, total: int, folder: Path, label: str, reporter: Reporter
) -> Iterator[int]:
    """Yields the steps that are still to do, saving `trainee` to `folder` in between.

    Raises:
        Stopped: the reporter asked for it; the checkpoint is saved.
    """
    checkpoints = Checkpoints(folder, reporter.warn)
    start = 0
    if (checkpoint := checkpoints.load()) is not None:
        trainee.restore(checkpoint.tensors, checkpoint.state)
        start = checkpoint.step
        reporter.say(f"{label}: goes on from step {start}")
    saved = time.monotonic()
    for step in reporter.steps(label, total, start):
        yield step
        done = step + 1
        if reporter.must_stop and done < total:
            checkpoints.save(done, *trainee.state())
            raise Stopped(f"{label} stopped after {done} of {total} steps")
        if time.monotonic() - saved >= _CHECKPOINT_INTERVAL_S and done < total:
            checkpoints.save(done, *trainee.state())
            saved = time.monotonic()
