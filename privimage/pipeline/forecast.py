"""What a run will take, from seconds of measurement on random images: no data of anybody's."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch

from privimage import evaluate, machine
from privimage.data import ImageSet
from privimage.diffusion.denoiser import Denoiser
from privimage.diffusion.pretrain import PIECE_PIXELS, Pretraining
from privimage.diffusion.samplers import sample
from privimage.pace import Step, Stopwatch
from privimage.pipeline.measurement import load_features
from privimage.progress import Reporter
from privimage.run.context import Run
from privimage.semantics import classifier
from privimage.semantics.classifier import PREDICT_ROWS, ClassifierTraining

# A private step costs up to so much more than an ordinary one (benchmarks/dp_step.py).
_PRIVATE = 1.2
# For each of up to nine measurements, five in all.
_SECONDS = 0.6
_SOONEST, _LATEST = 0.7, 1.6
# So much of a core a thread works where it is alone; the rest is waiting for one another.
_BUSY = 0.6


@dataclass(frozen=True)
class Forecast:
    """What is to be expected.

    Attributes:
        seconds: by stage that has something to compute.
        memory: bytes that the process has needed so far.
        measured: seconds of measurement that `seconds` rest on.
        threads: on which it was measured.
        cores: how many cores worked on it meanwhile; fewer than threads if other programs did.
    """

    seconds: dict[str, float]
    memory: int
    measured: float
    threads: int
    cores: float


def forecast(run: Run, missing: Collection[str]) -> Forecast:
    """Measures a little of each stage on the run's networks and random images; scales it.

    Args:
        run: its recipe, networks and cores; of its images only the numbers are asked for.
        missing: names of the stages that are to be done.
    """
    recipe, found, watch = run.recipe, dict[str, float](), Stopwatch(run.device, _SECONDS)
    if "classifier" in missing:
        rows = recipe.classifier.steps * recipe.classifier.batch_size
        found["classifier"] = rows * watch.a_row(
            lambda size: _classifier_step(run, size), recipe.classifier.batch_size, rows
        )
    if "query" in missing:
        batches = -(-run.public_size // PREDICT_ROWS)
        found["query"] = batches * watch.a_row(lambda _: _query_step(run), 1, batches)
    trained = dict[str, float]()
    if "pretrain" in missing:
        trained["pretrain"] = recipe.pretrain.steps * recipe.pretrain.batch_size
    if "finetune" in missing:
        trained["finetune"] = _PRIVATE * _finetune_rows(run)
    if trained:
        most = _rows_a_core(run) * run.workers.threads
        row = watch.a_row(lambda size: _training_step(run, size), most, sum(trained.values()))
        found |= {stage: rows * row for stage, rows in trained.items()}
    if {"synthetic", "evaluation"} & {*missing}:
        images = recipe.synthesis.count(len(run.names))
        before = recipe.selection.mode != "none" and "evaluation" in missing
        again = min(images, recipe.evaluation.most) if before else 0
        rows = again + (images if "synthetic" in missing else 0)
        made = _seconds_a_made_image(run, watch, rows) if rows else 0.0
        if "synthetic" in missing:
            found["synthetic"] = images * made
        if "evaluation" in missing:
            found["evaluation"] = again * made + _measuring(run, watch, images, 1 + before)
    return Forecast(found, machine.peak_memory(), watch.spent, run.workers.threads, watch.cores)


def in_words(found: Forecast) -> Iterator[str]:
    """The lines of a plan."""
    for stage, seconds in found.seconds.items():
        yield f"{stage:<12} about {_duration(seconds)}"
    if found.seconds:
        total = sum(found.seconds.values())
        crowd = max(1.0, _BUSY * found.threads / found.cores)
        span = f"{_duration(_SOONEST * total / crowd)} to {_duration(_LATEST * total)}"
        yield (
            f"together     {span}, to judge by {found.measured:.0f} s of it on random images, "
            f"{found.threads} threads"
        )
        if crowd > 1:
            yield (
                f"             other programs left it {found.cores:.1f} cores: the shorter time is "
                "without them, the longer one with them"
            )
    yield f"memory       at least {found.memory / 2**30:.1f} GiB (what it took to plan)"


def _classifier_step(run: Run, rows: int) -> Step:
    settings, classes = run.recipe.classifier, len(run.public.names)
    settings = replace(settings, batch_size=rows)
    images = ImageSet(_random_images(run, rows), torch.arange(rows) % classes, run.public.names)
    model = classifier.build(settings, run.shape.channels, classes, 0).to(run.device)
    training = ClassifierTraining(model, images, torch.arange(rows), settings, 0)
    return lambda: training.step(0)


def _query_step(run: Run) -> Step:
    """What a batch of sensitive images takes."""
    classes = len(run.public_names)
    model = classifier.build(run.recipe.classifier, run.shape.channels, classes, 0)
    model.eval().to(run.device)
    images = _random_images(run, PREDICT_ROWS)
    return lambda: classifier.predict(model, images)


def _training_step(run: Run, rows: int) -> Step:
    """Forward and backward of so many images, on all cores."""
    settings = replace(run.recipe.pretrain, batch_size=rows)
    images, labels = _random_images(run, rows), torch.zeros(rows, dtype=torch.int64)
    training = Pretraining(run.network(), images, labels, settings, 0, run.workers)
    return lambda: training.step(0)


def _finetune_rows(run: Run) -> float:
    settings = run.recipe.finetune
    return settings.steps * settings.sample_rate * run.public_size * settings.draws


def _seconds_a_made_image(run: Run, watch: Stopwatch, count: int) -> float:
    """The whole sampling of one of `count` images, on all cores."""
    settings, sampler = run.recipe.synthesis, run.recipe.synthesis.sampler
    short, threads = replace(sampler, steps=2), run.workers.threads
    share = sampler.evaluations() / short.evaluations()
    denoise = Denoiser(run.network().eval())

    def step_of(rows: int) -> Step:
        labels = torch.zeros(rows, dtype=torch.int64, device=run.device)
        latents = torch.randn((rows, *_image_shape(run)), device=run.device)

        def make(_: int) -> None:
            sample(denoise, latents, labels, short, torch.Generator(), len(run.names))

        return lambda: run.workers.map(make, range(threads))

    rows = min(_rows_a_core(run), settings.batch_size)
    return share * watch.a_row(step_of, rows, share * count / threads) / threads


def _measuring(run: Run, watch: Stopwatch, images: int, sets: int) -> float:
    """The evaluation of so many sets of so many images."""
    recipe, settings = run.recipe, run.recipe.evaluation
    near = bool(recipe.data.public) and settings.near_duplicates
    load = evaluate.Workload(
        images=images,
        sets=sets,
        test=len(run.test) if recipe.data.test else 0,
        public=len(run.public) if near else 0,
        names=run.names,
        shape=_image_shape(run),
    )
    network = load_features(run) if load.test and settings.features else None
    resources = evaluate.Resources(run.device, run.workers, Reporter(quiet=True))
    return evaluate.evaluation_seconds(load, settings, network, resources, watch)


def _rows_a_core(run: Run) -> int:
    return max(PIECE_PIXELS // run.shape.size**2, 8)


def _image_shape(run: Run) -> tuple[int, int, int]:
    return run.shape.channels, run.shape.size, run.shape.size


def _random_images(run: Run, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *_image_shape(run)), dtype=torch.uint8)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
