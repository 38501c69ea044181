"""Accuracy on real test images of classifiers that were trained on synthetic ones."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from privimage.data import ImageSet, subsample, to_unit_range
from privimage.errors import UserError
from privimage.evaluate import intervals
from privimage.evaluate.epochs import Training
from privimage.evaluate.parts import Parts, digest
from privimage.evaluate.result import Accuracy
from privimage.evaluate.settings import LABELS, EvaluationSettings
from privimage.networks import NETWORKS, build_network
from privimage.progress import Reporter
from privimage.seeds import generator, initialising
from privimage.threads import Workers

# Fewer images of a label leave none to hold out.
_LEAST_TO_STOP_EARLY = 20
_PREDICT_ROWS = 10_000
_MOST_ITERATIONS = {"mlp": 200, "logistic": 300}

Trial = tuple[ImageSet, int]
"""Images to train on, and which training on them it is."""


@dataclass(frozen=True)
class Prediction:
    """What one trained classifier says of the test images, int64 [images].

    `held_out` is its accuracy on the held-out training images; None if none were held out.
    """

    labels: torch.Tensor
    held_out: float | None


@dataclass(frozen=True)
class Resources:
    """Where and how fast classifiers are trained, and whom to tell."""

    device: torch.device
    workers: Workers
    reporter: Reporter


def accuracies(
    training_sets: Sequence[ImageSet],
    test: ImageSet,
    settings: EvaluationSettings,
    seed: int,
    resources: Resources,
    parts: Parts,
) -> list[dict[str, Accuracy]]:
    """The fraction of `test` that each classifier gets right after training on one set alone.

    Nothing is chosen on the test images: networks keep the epoch that is best on a tenth of the
    training images, an MLP stops by another tenth, a logistic regression runs until it converges.

    Args:
        training_sets: labelled images, all with the same labels; those without a declared label
            are left out.
        test: real images, declared public; those without a declared label are left out.
        settings: which classifiers, how often.
        seed: decides every random choice.
        resources: train on several sets at a time.
        parts: keeps the accuracies of one kind of classifier as soon as they are had.

    Returns:
        For each training set an accuracy by kind of classifier.

    Raises:
        UserError: the test images have other labels, or a set has no labelled image.
        Stopped: the reporter asked for it; what `parts` has got is kept.
    """
    check_test_set(test, training_sets[0].names)
    test = _labelled(test, "test")
    sets = [
        subsample(
            _labelled(images, "train"), settings.most_training_images, seed, "training images"
        )
        for images in training_sets
    ]

    @cache
    def about() -> dict[str, Any]:
        return {
            "sets": [digest(images) for images in sets],
            "test": digest(test),
            "settings": [settings.repeats, settings.epochs, settings.flip],
            "seed": seed,
        }

    found = {
        kind: parts.result(
            f"accuracy-{kind}",
            list[Accuracy],
            about,
            partial(_of_kind, kind, sets, test, settings, seed, resources),
        )
        for kind in settings.classifiers
    }
    return [{kind: found[kind][index] for kind in found} for index in range(len(sets))]


def check_test_set(test: ImageSet, names: tuple[str, ...]) -> None:
    """Raises UserError if synthetic images have the labels `names` and `test` has others."""
    if names and test.names != names:
        raise UserError(
            f"--test: its labels must be those of the synthetic images ({', '.join(names)}), "
            f"but it has {', '.join(test.names) or 'none'}"
        )


def _of_kind(
    kind: str,
    sets: list[ImageSet],
    test: ImageSet,
    settings: EvaluationSettings,
    seed: int,
    resources: Resources,
) -> list[Accuracy]:
    """The accuracies of one kind of classifier, one for each training set."""
    # Without coins of its own, it finds the same every time.
    repeats = 1 if kind == "logistic" else settings.repeats
    trials = [(images, repeat) for images in sets for repeat in range(repeats)]
    if kind in NETWORKS:
        found = _networks(kind, trials, test, settings, seed, resources)
    else:
        found = _by_sklearn(kind, trials, test, seed, resources)
    return [
        _accuracy(kind, found[index * repeats : (index + 1) * repeats], images, test)
        for index, images in enumerate(sets)
    ]


def _networks(
    kind: str,
    trials: list[Trial],
    test: ImageSet,
    settings: EvaluationSettings,
    seed: int,
    resources: Resources,
) -> list[Prediction]:
    """All trials of one network, epoch by epoch side by side."""

    def begun(trial: Trial) -> Training:
        images, repeat = trial
        with initialising(seed + repeat):
            model = build_network(kind, images.images.shape[1], len(images.names))
        random = generator(seed, "evaluation", kind, repeat)
        return Training(model.to(resources.device), images, settings.epochs, settings.flip, random)

    trainings = [begun(trial) for trial in trials]
    reporter, workers = resources.reporter, resources.workers
    for _ in reporter.stoppable_steps(f"training {LABELS[kind]}", settings.epochs):
        workers.map(lambda training: training.epoch(reporter), trainings)
    return workers.map(
        lambda training: Prediction(training.predict(test.images), training.held_out_accuracy),
        trainings,
    )


def _by_sklearn(
    kind: str, trials: list[Trial], test: ImageSet, seed: int, resources: Resources
) -> list[Prediction]:
    """All trials of one of scikit-learn's classifiers, as many at a time as there are workers."""

    def trained(trial: Trial) -> Prediction:
        images, repeat = trial
        return _fitted(kind, images, test, seed + repeat)

    size = resources.workers.threads
    groups = [trials[start : start + size] for start in range(0, len(trials), size)]
    found: list[Prediction] = []
    with warnings.catch_warnings():
        # A limit of iterations bounds the time; what it costs shows in the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for index in resources.reporter.stoppable_steps(f"training {LABELS[kind]}", len(groups)):
            found += resources.workers.map(trained, groups[index])
    return found


def _fitted(kind: str, training: ImageSet, test: ImageSet, seed: int) -> Prediction:
    present, counts = training.labels.unique(return_counts=True)
    if len(present) < 2:
        return Prediction(present.expand(len(test)), None)
    early = int(counts.min()) >= _LEAST_TO_STOP_EARLY
    model = fit(kind, training, early, seed)
    held_out = float(model[-1].best_validation_score_) if kind == "mlp" and early else None
    pieces = [model.predict(_flat(piece)) for piece in test.images.split(_PREDICT_ROWS)]
    return Prediction(torch.from_numpy(np.concatenate(pieces)), held_out)


def fit(
    kind: str, training: ImageSet, early: bool, seed: int, most_iterations: int | None = None
) -> Pipeline:
    """One of scikit-learn's classifiers, trained; an MLP stops `early` by a held-out tenth."""
    classifier = (
        MLPClassifier(
            (128,),
            early_stopping=early,
            n_iter_no_change=10,
            max_iter=most_iterations or _MOST_ITERATIONS[kind],
            random_state=seed,
        )
        if kind == "mlp"
        else LogisticRegression(max_iter=most_iterations or _MOST_ITERATIONS[kind], tol=1e-3)
    )
    # What it scales is a copy already.
    model = make_pipeline(StandardScaler(copy=False), classifier)
    return model.fit(_flat(training.images), training.labels.numpy())


def _flat(images: torch.Tensor) -> np.ndarray:
    flat: np.ndarray = to_unit_range(images).flatten(1).numpy()
    return flat


def _labelled(images: ImageSet, what_for: str) -> ImageSet:
    """The images that have one of the declared labels."""
    kept = images.labels < len(images.names)
    if not kept.any():
        raise UserError(f"accuracy needs labelled images to {what_for} on, and there are none")
    if kept.all():
        return images
    return ImageSet(images.images[kept], images.labels[kept], images.names)


def _accuracy(
    kind: str, predictions: list[Prediction], training: ImageSet, test: ImageSet
) -> Accuracy:
    """What the predictions of one kind's repeats come to."""
    right = torch.stack([prediction.labels == test.labels for prediction in predictions]).double()
    repeats = right.mean(dim=1).tolist()
    held_out = [p.held_out for p in predictions if p.held_out is not None]
    recall: dict[str, float | None] = {}
    for label, name in enumerate(test.names):
        of_label = right[:, test.labels == label]
        recall[name] = float(of_label.mean()) if of_label.numel() else None
    return Accuracy(
        label=LABELS[kind],
        over_test_images=intervals.over_images(fmean(repeats), len(test)),
        over_repeats=intervals.over_repeats(repeats, "trainings"),
        repeats=tuple(repeats),
        held_out=fmean(held_out) if held_out else None,
        recall=recall,
        n_training=len(training),
        n_test=len(test),
    )
