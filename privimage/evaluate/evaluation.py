"""Measures synthetic images by everything that the settings ask for."""

from dataclasses import dataclass

import torch

from privimage.data import ImageSet
from privimage.evaluate import scores as scoring
from privimage.evaluate.classifiers import Resources, accuracies
from privimage.evaluate.duplicates import near_duplicates
from privimage.evaluate.features import FeatureNetwork, extract
from privimage.evaluate.result import Accuracy, Evaluation, FeatureFacts, Score, SetScores
from privimage.evaluate.settings import EvaluationSettings
from privimage.progress import Reporter
from privimage.seeds import generator

_OUTSIDE_EPSILON = (
    "the train-on-real ceiling and near duplicates of sensitive images are computed on the "
    "sensitive images without noise: no ε covers them"
)


@dataclass(frozen=True)
class Material:
    """The image sets of an evaluation.

    Attributes:
        synthetic: what is measured.
        test: real images, declared public; None for what can be had without.
        pretrained: images from before DP fine-tuning, to compare with.
        public: the public images, for near duplicates.
        sensitive: the sensitive images, only where the settings ask for what lies outside ε; the
            caller has recorded it.
        features: what the scores are on; None for no scores.
    """

    synthetic: ImageSet
    test: ImageSet | None = None
    pretrained: ImageSet | None = None
    public: ImageSet | None = None
    sensitive: ImageSet | None = None
    features: FeatureNetwork | None = None


def evaluate(
    material: Material, settings: EvaluationSettings, seed: int, resources: Resources
) -> Evaluation:
    """Accuracies, scores and near duplicates, and null for what can't be had.

    Raises:
        UserError: the test images have other labels, or the features can't be had.
        Stopped: the reporter asked for it.
    """
    sets = [material.synthetic]
    if material.pretrained is not None:
        sets.append(material.pretrained)
    caveats: list[str] = []
    found, facts = _scores(sets, material, settings, seed, resources.reporter, caveats)
    trained = _accuracies(sets, material.test, settings, seed, resources, caveats)
    public = material.public if settings.near_duplicates else None
    parts = [
        SetScores(
            accuracy,
            score,
            None
            if public is None
            else near_duplicates(images, material.test, public, "public", seed),
        )
        for images, accuracy, score in zip(sets, trained, found, strict=True)
    ]
    sensitive, ceiling, duplicates = material.sensitive, None, None
    if sensitive is not None:
        caveats.append(_OUTSIDE_EPSILON)
        if settings.ceiling:
            (ceiling,) = _accuracies([sensitive], material.test, settings, seed, resources, [])
        if settings.sensitive_duplicates:
            duplicates = near_duplicates(
                material.synthetic, material.test, sensitive, "sensitive", seed
            )
    return Evaluation(
        seed=seed,
        repeats=settings.repeats,
        splits=settings.splits,
        features=facts,
        caveats=tuple(caveats),
        synthetic=parts[0],
        pretrained=parts[1] if len(parts) > 1 else None,
        ceiling=ceiling,
        sensitive_duplicates=duplicates,
    )


def _accuracies(
    sets: list[ImageSet],
    test: ImageSet | None,
    settings: EvaluationSettings,
    seed: int,
    resources: Resources,
    caveats: list[str],
) -> list[dict[str, Accuracy]] | list[None]:
    if test is None:
        caveats.append("there is no test set: neither accuracy nor scores")
    elif not sets[0].names:
        caveats.append("the images have no labels: no accuracy")
    elif settings.classifiers:
        return accuracies(sets, test, settings, seed, resources)
    return [None for _ in sets]


def _scores(
    sets: list[ImageSet],
    material: Material,
    settings: EvaluationSettings,
    seed: int,
    reporter: Reporter,
    caveats: list[str],
) -> tuple[list[dict[str, Score]] | list[None], FeatureFacts | None]:
    """The scores of each set, and on which features."""
    test, network = material.test, material.features
    if test is None or network is None:
        return [None for _ in sets], None
    real = _some(test, settings.most_images, seed)
    chosen = [_some(images, settings.most_images, seed) for images in sets]
    fewest = min(len(images) for images in (real, *chosen))
    if fewest < scoring.LEAST_IMAGES:
        caveats.append(
            f"scores need at least {scoring.LEAST_IMAGES} images on either side, there are {fewest}"
        )
        return [None for _ in sets], None
    reference = extract(network, real.images, "test images", reporter)
    titles = ("synthetic images", "images before fine-tuning")
    found = []
    for images, title in zip(chosen, titles, strict=False):
        outputs = extract(network, images.images, title, reporter)
        found.append(
            scoring.scores(outputs, reference, network.facts, settings.splits, seed, reporter)
        )
    caveats += scoring.caveats(len(chosen[0]), len(real), network.facts)
    return found, network.facts


def _some(images: ImageSet, most: int, seed: int) -> ImageSet:
    """`most` of the images by chance, or all."""
    if len(images) <= most:
        return images
    rows = torch.randperm(len(images), generator=generator(seed, "scored images"))[:most]
    return ImageSet(images.images[rows], images.labels[rows], images.names)
