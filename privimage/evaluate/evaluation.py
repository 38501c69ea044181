"""Measures synthetic images by everything that the settings ask for."""

from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

from privimage.data import ImageSet, subsample
from privimage.evaluate import scores as scoring
from privimage.evaluate.classifiers import Resources, accuracies
from privimage.evaluate.duplicates import MOST_AMONG, near_duplicates
from privimage.evaluate.features import FeatureNetwork, compute_features
from privimage.evaluate.parts import Parts, digest
from privimage.evaluate.result import (
    Accuracy,
    Evaluation,
    FeatureFacts,
    NearDuplicates,
    Score,
    SetScores,
)
from privimage.evaluate.settings import EvaluationSettings
from privimage.progress import Reporter

_SCORED = "scored images"
_TITLES = {"synthetic": "synthetic images", "pretrained": "images before fine-tuning"}
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
    material: Material,
    settings: EvaluationSettings,
    seed: int,
    resources: Resources,
    parts: Parts,
) -> Evaluation:
    """Accuracies, scores and near duplicates, and null for what can't be had.

    Args:
        material: what is measured, and on what.
        settings: what is asked for.
        seed: decides every random choice.
        resources: device, cores, terminal.
        parts: keeps each score and accuracy as soon as it is had, but for what is computed on
            sensitive images.

    Raises:
        UserError: the test images have other labels, or the features can't be had.
        Stopped: the reporter asked for it; what `parts` has got is kept.
    """
    sets = {"synthetic": material.synthetic}
    if material.pretrained is not None:
        sets["pretrained"] = material.pretrained
    found, facts, caveats = _scores(sets, material, settings, seed, resources.reporter, parts)
    trained = _accuracies([*sets.values()], material.test, settings, seed, resources, parts)
    if material.test is not None and (damaged := material.test.damaged):
        caveats.append(
            f"{damaged} of {damaged + len(material.test)} test images can't be decoded: left out"
        )
    if material.test is None:
        caveats.append("there is no test set: neither accuracy nor scores")
    elif not material.synthetic.names:
        caveats.append("the images have no labels: no accuracy")
    elif others := int((material.test.labels == len(material.test.names)).sum()):
        caveats.append(
            f"{others} of {len(material.test)} test images have a label that the synthetic images "
            "don't have: accuracy leaves them out"
        )
    near = _near_duplicates(sets, material, settings, seed, parts)
    results = [SetScores(*three) for three in zip(trained, found, near, strict=True)]
    sensitive, ceiling, duplicates = material.sensitive, None, None
    if sensitive is not None:
        caveats.append(_OUTSIDE_EPSILON)
        if settings.ceiling:
            (ceiling,) = _accuracies([sensitive], material.test, settings, seed, resources, Parts())
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
        synthetic=results[0],
        pretrained=results[1] if len(results) > 1 else None,
        ceiling=ceiling,
        sensitive_duplicates=duplicates,
    )


def _accuracies(
    sets: list[ImageSet],
    test: ImageSet | None,
    settings: EvaluationSettings,
    seed: int,
    resources: Resources,
    parts: Parts,
) -> list[dict[str, Accuracy]] | list[None]:
    """Those of each set, where there is something to learn and to be tested on."""
    if test is None or not sets[0].names or not settings.classifiers:
        return [None for _ in sets]
    return accuracies(sets, test, settings, seed, resources, parts)


def _scores(
    sets: dict[str, ImageSet],
    material: Material,
    settings: EvaluationSettings,
    seed: int,
    reporter: Reporter,
    parts: Parts,
) -> tuple[list[dict[str, Score]] | list[None], FeatureFacts | None, list[str]]:
    """The scores of each set, on which features, and what has to be said beside them."""
    test, network = material.test, material.features
    if test is None or network is None:
        return [None for _ in sets], None, []
    real = subsample(test, settings.most_images, seed, _SCORED)
    chosen = {
        name: subsample(set_, settings.most_images, seed, _SCORED) for name, set_ in sets.items()
    }
    fewest = min(len(images) for images in (real, *chosen.values()))
    if fewest < (least := scoring.LEAST_IMAGES):
        too_few = f"scores need at least {least} images on either side, there are {fewest}"
        return [None for _ in sets], None, [too_few]
    # Not before one of the scores has to be computed, and then once.
    reference = cache(lambda: compute_features(network, real.images, "test images", reporter))

    def about(name: str) -> dict[str, Any]:
        return {
            "images": digest(chosen[name]),
            "test": digest(real),
            "features": asdict(network.facts),
            "splits": settings.splits,
            "seed": seed,
        }

    def scored(name: str) -> dict[str, Score]:
        outputs = compute_features(network, chosen[name].images, _TITLES[name], reporter)
        return scoring.scores(outputs, reference(), network.facts, settings.splits, seed, reporter)

    form = dict[str, Score]
    found = [
        parts.result(f"scores-{name}", form, partial(about, name), partial(scored, name))
        for name in chosen
    ]
    caveats = scoring.caveats(len(chosen["synthetic"]), len(real), network.facts)
    return found, network.facts, caveats


def _near_duplicates(
    sets: dict[str, ImageSet],
    material: Material,
    settings: EvaluationSettings,
    seed: int,
    parts: Parts,
) -> list[NearDuplicates] | list[None]:
    """Those of each set among the public images."""
    if material.public is None or not settings.near_duplicates:
        return [None for _ in sets]
    test, public = material.test, subsample(material.public, MOST_AMONG, seed, "public images")

    def about(images: ImageSet) -> dict[str, Any]:
        return {
            "images": digest(images),
            "test": None if test is None else digest(test),
            "public": digest(public),
            "seed": seed,
        }

    return [
        parts.result(
            f"near-duplicates-{name}",
            NearDuplicates,
            partial(about, images),
            partial(near_duplicates, images, test, public, "public", seed),
        )
        for name, images in sets.items()
    ]
