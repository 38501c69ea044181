"""How long an evaluation will take, from a little of each of its parts on random images."""

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning

from privimage.data import ImageSet
from privimage.evaluate.classifiers import Resources, fit
from privimage.evaluate.duplicates import MOST_AMONG, MOST_LOOKED_UP
from privimage.evaluate.epochs import Training
from privimage.evaluate.features import FeatureNetwork
from privimage.evaluate.neighbours import nearest_distances
from privimage.evaluate.scores import LEAST_IMAGES, every_score
from privimage.evaluate.settings import EvaluationSettings
from privimage.networks import NETWORKS, build_network
from privimage.pace import Step, Stopwatch

_ROWS, _FEATURE_ROWS, _SCORED, _AMONG = 1000, 32, 200, 1000
# More than a measurement comes to.
_EPOCHS = 10_000
# They end when they have converged, usually after about so many iterations.
_ITERATIONS = {"mlp": 20, "logistic": 80}


@dataclass(frozen=True)
class Workload:
    """Numbers of images: of each measured set, of how many such sets, test and public ones.

    `names` are the labels, `shape` (channels, height, width).
    """

    images: int
    sets: int
    test: int
    public: int
    names: tuple[str, ...]
    shape: tuple[int, int, int]


def evaluation_seconds(
    load: Workload,
    settings: EvaluationSettings,
    network: FeatureNetwork | None,
    resources: Resources,
    watch: Stopwatch,
) -> float:
    """Seconds of `evaluate`, but for what `ceiling` and `sensitive_duplicates` add.

    Args:
        load: how much there is to measure.
        settings: what is asked for.
        network: what the scores are on; None for none.
        resources: device and cores.
        watch: measures.
    """
    total = 0.0
    if load.test and network is not None:
        total += _scores(load, settings, network, watch)
    if load.public and settings.near_duplicates:
        total += _near_duplicates(load, watch)
    if load.test and load.names:
        total += sum(
            _accuracy(kind, load, settings, resources, watch) for kind in settings.classifiers
        )
    return total


def _scores(
    load: Workload, settings: EvaluationSettings, network: FeatureNetwork, watch: Stopwatch
) -> float:
    made, real = (min(count, settings.most_images) for count in (load.images, load.test))
    if min(made, real) < LEAST_IMAGES:
        return 0.0

    def features(rows: int) -> Step:
        images = _random(load, rows).images.expand(-1, 3, -1, -1).to(network.device)

        def step() -> None:
            with torch.inference_mode():
                network.apply(images)

        return step

    rows = real + load.sets * made
    found = rows * watch.a_row(features, _FEATURE_ROWS, rows)
    half = min(real // 2, made)
    # Pairs of images: all against all, and two halves of the test set or as many of either.
    pairs = load.sets * (made * real + 2 * settings.splits * half**2)
    size = min(half, _SCORED)
    outputs = [torch.randn(size, network.facts.dimensions), torch.randn(size, 10)]
    return found + pairs * watch.a_row(lambda _: lambda: every_score(outputs, outputs), 1) / size**2


def _near_duplicates(load: Workload, watch: Stopwatch) -> float:
    looked_up, among = min(load.images, MOST_LOOKED_UP), min(load.public, MOST_AMONG)
    others = _random(load, min(among, _AMONG)).images
    rows = load.sets * (looked_up + min(load.test, MOST_LOOKED_UP))

    def search(rows: int) -> Step:
        images = _random(load, rows).images
        return lambda: nearest_distances(images, others)

    return rows * among / len(others) * watch.a_row(search, _ROWS, rows)


def _accuracy(
    kind: str, load: Workload, settings: EvaluationSettings, resources: Resources, watch: Stopwatch
) -> float:
    """Of one kind of classifier, on all sets, as often as it is trained."""
    images, workers = min(load.images, settings.most_training_images), resources.workers
    trials = load.sets * (1 if kind == "logistic" else settings.repeats)
    begun, passes = (_network, settings.epochs) if kind in NETWORKS else (_by_sklearn, 1)

    def side_by_side(rows: int) -> Step:
        """A pass over so many images on each core, or for each trial if they are fewer."""
        few = _random(load, rows)
        steps = [begun(kind, few, resources) for _ in range(min(trials, workers.threads))]

        def step() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                workers.map(lambda one: one(), steps)

        return step

    rows = -(-trials // workers.threads) * passes * images
    return rows * watch.a_row(side_by_side, min(images, _ROWS), rows)


def _network(kind: str, images: ImageSet, resources: Resources) -> Step:
    """An epoch of a network."""
    model = build_network(kind, images.images.shape[1], len(images.names)).to(resources.device)
    training = Training(model, images, _EPOCHS, False, torch.Generator())
    return lambda: training.epoch(resources.reporter)


def _by_sklearn(kind: str, images: ImageSet, _: Resources) -> Step:
    """A training of one of scikit-learn's classifiers, cut off where it usually ends."""
    return lambda: fit(kind, images, early=False, seed=0, most_iterations=_ITERATIONS[kind])


def _random(load: Workload, rows: int) -> ImageSet:
    images = torch.randint(0, 256, (rows, *load.shape), dtype=torch.uint8)
    return ImageSet(images, torch.arange(rows) % max(len(load.names), 1), load.names)
