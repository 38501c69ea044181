"""Accuracy on real test images of classifiers that were trained on synthetic ones."""

import copy
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from privimage.data import ImageSet, to_unit_range
from privimage.errors import UserError
from privimage.progress import Reporter
from privimage.seeds import generator
from privimage.threads import Workers

_EPOCHS = 30
_BATCH_SIZE = 128
_LEARNING_RATE = 3e-3
_HELD_OUT = 0.1
# Fewer images of a label leave none to hold out.
_LEAST_TO_STOP_EARLY = 20
_LARGEST_SHIFT = 1
_NOISE = 0.1


def accuracies(
    training_sets: Sequence[ImageSet],
    test: ImageSet,
    seed: int,
    workers: Workers,
    reporter: Reporter,
) -> list[dict[str, float]]:
    """The fraction of `test` that each classifier gets right after training on one set alone.

    Nothing is chosen on the test images: the CNN keeps the epoch that is best on a tenth of the
    training images, the other two run until they converge.

    Args:
        training_sets: synthetic images, all with the same labels.
        test: real images, declared public.
        seed: decides every random choice.
        workers: train on several sets at a time.
        reporter: for progress.

    Returns:
        For each training set fractions for "cnn", "mlp" and "logistic".

    Raises:
        UserError: the test images have other labels.
    """
    check_test_set(test, training_sets[0].names)
    # Built here, because initialisation draws from a generator that threads would share.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        start = _cnn(test.images.shape[1], len(test.names))
    trials: list[tuple[str, Callable[[ImageSet], float]]] = [
        ("cnn", lambda images: _cnn_accuracy(copy.deepcopy(start), images, test, seed)),
        ("mlp", lambda images: _sklearn_accuracy(_mlp(images, seed), images, test)),
        ("logistic", lambda images: _sklearn_accuracy(_logistic(), images, test)),
    ]
    results: list[dict[str, float]] = [{} for _ in training_sets]
    with warnings.catch_warnings():
        # A limit of iterations bounds the time; what it costs shows in the accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for index in reporter.steps("training classifiers", len(trials)):
            kind, trial = trials[index]
            for result, accuracy in zip(results, workers.map(trial, training_sets), strict=True):
                result[kind] = accuracy
    return results


def check_test_set(test: ImageSet, names: tuple[str, ...]) -> None:
    """Raises UserError if synthetic images have the labels `names` and `test` has others."""
    if names and test.names != names:
        raise UserError(
            f"--test: its labels must be those of the synthetic images ({', '.join(names)}), "
            f"but it has {', '.join(test.names) or 'none'}"
        )


def _logistic() -> LogisticRegression:
    return LogisticRegression(max_iter=300, tol=1e-3)


def _mlp(training: ImageSet, seed: int) -> MLPClassifier:
    rarest = int(training.labels.unique(return_counts=True)[1].min())
    early = rarest >= _LEAST_TO_STOP_EARLY
    return MLPClassifier((128,), early_stopping=early, n_iter_no_change=10, random_state=seed)


def _sklearn_accuracy(
    classifier: LogisticRegression | MLPClassifier, training: ImageSet, test: ImageSet
) -> float:
    if len(training.labels.unique()) < 2:
        return float((test.labels == training.labels[0]).float().mean())
    model = make_pipeline(StandardScaler(), classifier)
    model.fit(_flat(training), training.labels.numpy())
    return float(model.score(_flat(test), test.labels.numpy()))


def _flat(images: ImageSet) -> np.ndarray:
    flat: np.ndarray = to_unit_range(images.images).flatten(1).numpy()
    return flat


def _cnn_accuracy(model: nn.Module, training: ImageSet, test: ImageSet, seed: int) -> float:
    random = generator(seed, "evaluation")
    order = torch.randperm(len(training), generator=random)
    held_out, kept = order[: int(_HELD_OUT * len(order))], order[int(_HELD_OUT * len(order)) :]
    images, labels = to_unit_range(training.images), training.labels
    best, best_score = model, -1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=1e-2)
    total = _EPOCHS * -(-len(kept) // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total)
    for _ in range(_EPOCHS):
        model.train()
        for rows in kept[torch.randperm(len(kept), generator=random)].split(_BATCH_SIZE):
            optimizer.zero_grad()
            batch = _augmented(images[rows], random)
            F.cross_entropy(model(batch), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        score = _score(model, images[held_out], labels[held_out])
        if score >= best_score:
            best, best_score = copy.deepcopy(model), score
    return _score(best, to_unit_range(test.images), test.labels)


def _augmented(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Shifts by up to a pixel and a little noise: synthetic images are too clean otherwise."""
    down, right = torch.randint(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (2,), generator=random)
    padded = F.pad(images, (_LARGEST_SHIFT,) * 4, value=-1.0)
    height, width = images.shape[2:]
    top, left = _LARGEST_SHIFT + int(down), _LARGEST_SHIFT + int(right)
    shifted = padded[:, :, top : top + height, left : left + width]
    return shifted + _NOISE * torch.randn(shifted.shape, generator=random)


@torch.no_grad()
def _score(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    if not len(images):
        return 0.0
    model.eval()
    found = torch.cat([model(piece).argmax(dim=1) for piece in images.split(500)])
    return float((found == labels).float().mean())


def _cnn(channels: int, classes: int) -> nn.Sequential:
    """Three convolutions and a hidden layer; for images from 8×8."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
