"""What a run will take, from seconds of measurement on random images: no data of anybody's."""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from privimage.diffusion.pretrain import Pretraining
from privimage.stages import Run

# Of as many pixels are the pieces that pre-training gives to a core.
_PIXELS = 8192
# A private step costs up to so much more than an ordinary one (benchmarks/dp_step.py).
_PRIVATE = 1.2
# Forward alone is a third of forward and backward.
_FORWARD = 1 / 3


@dataclass(frozen=True)
class Forecast:
    """Seconds by stage, as far as they can be told, and bytes that the process has needed so far.

    The classifier and the evaluation are left out: they depend on networks of their own.
    """

    seconds: dict[str, float]
    memory: int


def forecast(run: Run, public_size: int) -> Forecast:
    """Measures one pre-training step on the run's network and scales it.

    Args:
        run: its recipe, network and cores; its images are not looked at.
        public_size: number of sensitive images, as a public number.
    """
    recipe, row = run.recipe, _seconds_a_row(run)
    fine, labels = recipe.finetune, max(len(run.names), 1)
    rows = fine.steps * fine.sample_rate * public_size * fine.draws
    made = labels * recipe.synthesis.images_per_label * _evaluations(run)
    found = {
        "pretrain": recipe.pretrain.steps * recipe.pretrain.batch_size * row,
        "finetune": _PRIVATE * rows * row,
        "synthetic": made * row * _FORWARD,
    }
    if recipe.selection.mode == "none":
        del found["pretrain"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Forecast(found, peak)


def in_words(found: Forecast) -> Iterator[str]:
    """The lines of a plan."""
    for stage, seconds in found.seconds.items():
        yield f"{stage:<12} about {_duration(seconds)}"
    total = _duration(sum(found.seconds.values()))
    yield f"together     about {total}, without classifier and evaluation"
    yield f"memory       at least {found.memory / 2**30:.1f} GiB (what it took to plan)"


def _seconds_a_row(run: Run) -> float:
    """Forward and backward of one image, on all cores."""
    settings, size = run.recipe.pretrain, run.shape.size
    rows = max(_PIXELS // size**2, 8) * run.workers.threads
    settings = replace(settings, batch_size=min(rows, settings.batch_size))
    images = torch.randint(0, 256, (rows, run.shape.channels, size, size), dtype=torch.uint8)
    labels = torch.zeros(rows, dtype=torch.int64)
    training = Pretraining(run.network(), images, labels, settings, 0, run.workers)
    training.step(0)
    began, steps = time.monotonic(), 0
    while steps < 1 or time.monotonic() - began < 1.5:
        training.step(0)
        steps += 1
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - began) / (steps * settings.batch_size)


def _evaluations(run: Run) -> int:
    """How often the sampler calls the network for an image."""
    sampler = run.recipe.synthesis.sampler
    calls = 2 * sampler.steps - 1 if sampler.name == "heun" else sampler.steps
    return calls * (1 if sampler.guidance == 0 else 2)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
