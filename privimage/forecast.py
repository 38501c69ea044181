"""What a run will take, from seconds of measurement on random images: no data of anybody's."""

import resource
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import torch

from privimage.context import Run
from privimage.data import ImageSet
from privimage.diffusion.denoiser import Denoiser
from privimage.diffusion.pretrain import Pretraining
from privimage.diffusion.samplers import SamplerSettings, sample
from privimage.semantics import classifier
from privimage.semantics.classifier import ClassifierTraining

# Of as many pixels are the pieces that pre-training gives to a core.
_PIXELS = 8192
# A private step costs up to so much more than an ordinary one (benchmarks/dp_step.py).
_PRIVATE = 1.2
_SECONDS = 1.2


@dataclass(frozen=True)
class Forecast:
    """Seconds by stage, as far as they can be told, and bytes that the process has needed so far.

    The evaluation is left out: it depends on classifiers of its own.
    """

    seconds: dict[str, float]
    memory: int


def forecast(run: Run, missing: Collection[str]) -> Forecast:
    """Measures steps of classifier, pre-training and sampling on the run's networks; scales them.

    Args:
        run: its recipe, networks and cores; no image is looked at.
        missing: names of the stages that are to be done.
    """
    recipe, found = run.recipe, dict[str, float]()
    if "classifier" in missing:
        found["classifier"] = recipe.classifier.steps * _seconds_a_classifier_step(run)
    row = _seconds_a_row(run) if {"pretrain", "finetune"} & {*missing} else 0.0
    if "pretrain" in missing:
        found["pretrain"] = recipe.pretrain.steps * recipe.pretrain.batch_size * row
    if "finetune" in missing:
        fine = recipe.finetune
        rows = fine.steps * fine.sample_rate * run.public_size * fine.draws
        found["finetune"] = _PRIVATE * rows * row
    if "synthetic" in missing:
        made = max(len(run.names), 1) * recipe.synthesis.images_per_label
        found["synthetic"] = made * _seconds_a_made_image(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Forecast(found, peak)


def in_words(found: Forecast) -> Iterator[str]:
    """The lines of a plan."""
    for stage, seconds in found.seconds.items():
        yield f"{stage:<12} about {_duration(seconds)}"
    if len(found.seconds) > 1:
        total = _duration(sum(found.seconds.values()))
        yield f"together     about {total}, without the evaluation"
    yield f"memory       at least {found.memory / 2**30:.1f} GiB (what it took to plan)"


def _seconds_a_classifier_step(run: Run) -> float:
    settings, classes = run.recipe.classifier, len(run.public.names)
    rows = settings.batch_size
    labels = torch.arange(rows) % classes
    images = ImageSet(_random_images(run, rows), labels, run.public.names)
    model = classifier.build(settings, run.shape.channels, classes, 0).to(run.device)
    training = ClassifierTraining(model, images, torch.arange(rows), settings, 0)
    return _seconds(run, lambda: training.step(0))


def _seconds_a_row(run: Run) -> float:
    """Forward and backward of one image, on all cores."""
    settings, rows = run.recipe.pretrain, _rows_a_core(run) * run.workers.threads
    settings = replace(settings, batch_size=min(rows, settings.batch_size))
    images, labels = _random_images(run, rows), torch.zeros(rows, dtype=torch.int64)
    training = Pretraining(run.network(), images, labels, settings, 0, run.workers)
    return _seconds(run, lambda: training.step(0)) / settings.batch_size


def _seconds_a_made_image(run: Run) -> float:
    """The whole sampling of one image, on all cores."""
    settings, sampler = run.recipe.synthesis, run.recipe.synthesis.sampler
    short = replace(sampler, steps=2)
    rows = min(_rows_a_core(run), settings.batch_size)
    denoise = Denoiser(run.network().eval())
    labels = torch.zeros(rows, dtype=torch.int64, device=run.device)
    latents = torch.randn((rows, *_image_shape(run)), device=run.device)

    def make(_: int) -> None:
        sample(denoise, latents, labels, short, torch.Generator(), len(run.names))

    seconds = _seconds(run, lambda: run.workers.map(make, range(run.workers.threads)))
    share = _evaluations(sampler) / _evaluations(short)
    return seconds * share / (rows * run.workers.threads)


def _rows_a_core(run: Run) -> int:
    return max(_PIXELS // run.shape.size**2, 8)


def _image_shape(run: Run) -> tuple[int, int, int]:
    return run.shape.channels, run.shape.size, run.shape.size


def _random_images(run: Run, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *_image_shape(run)), dtype=torch.uint8)


def _seconds(run: Run, step: Callable[[], object]) -> float:
    """The mean of a second or so of steps, after a first one."""
    step()
    began, steps = time.monotonic(), 0
    while steps < 1 or time.monotonic() - began < _SECONDS:
        step()
        steps += 1
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - began) / steps


def _evaluations(sampler: SamplerSettings) -> int:
    """How often the sampler calls the network for an image."""
    calls = 2 * sampler.steps - 1 if sampler.name == "heun" else sampler.steps
    return calls * (1 if sampler.guidance == 0 else 2)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
