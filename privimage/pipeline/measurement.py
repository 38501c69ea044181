"""Measures synthetic images as a run's recipe says, and asks the ledger first where it must."""

from pathlib import Path

from privimage import data, evaluate
from privimage.data import ImageSet
from privimage.dp import Ledger
from privimage.errors import UserError
from privimage.evaluate import Evaluation, FeatureNetwork, Parts
from privimage.run.context import Run

SYNTHETIC_ROLE = "synthetic images"
"""What messages call them."""


def made_images(run: Run) -> ImageSet:
    """The synthetic images of a run whose stage 6 is done; of many, as many as are measured."""
    return load_synthetic(run, str(run.folder.release("synthetic")), run.names)


def load_synthetic(run: Run, source: str, names: tuple[str, ...] | None) -> ImageSet:
    """As many synthetic images as the evaluation looks at; None for the set's own names."""
    most, seed = run.recipe.evaluation.most, run.recipe.seed
    return data.load_sample(source, run.shape, names, SYNTHETIC_ROLE, most, seed)


def measure(
    run: Run, synthetic: ImageSet, before: ImageSet | None, ledger: Ledger | None, parts: Parts
) -> Evaluation:
    """Measures synthetic images, and as many from before DP fine-tuning, as the recipe says.

    What is finished of it is kept in `parts`, but for what is computed on sensitive images.

    Formal guarantee: the sensitive images are touched only where `evaluation.ceiling` or
    `evaluation.sensitive_duplicates` asks for it, both off by default; then the ledger says so, on
    disk, before they are (tests/evaluate/test_outside_epsilon.py).

    Raises:
        UserError: the recipe asks for what lies outside ε, and there is no ledger to say so.
        Stopped: the reporter asked for it.
    """
    recipe, settings = run.recipe, run.recipe.evaluation
    material = evaluate.Material(
        synthetic=synthetic,
        test=run.test if recipe.data.test else None,
        pretrained=before,
        public=run.public if recipe.data.public and settings.near_duplicates else None,
        features=load_features(run) if recipe.data.test and settings.features else None,
        # Last, when nothing else can be wrong any more.
        sensitive=_sensitive_outside_epsilon(run, ledger),
    )
    resources = evaluate.Resources(run.device, run.workers, run.reporter)
    return evaluate.evaluate(material, settings, recipe.seed, resources, parts)


def load_features(run: Run) -> FeatureNetwork:
    """The network whose features the recipe's scores are on.

    Raises:
        UserError: it is not known, or its weights are missing or others.
    """
    settings = run.recipe.evaluation
    weights = Path(settings.weights) if settings.weights else None
    return evaluate.load_features(settings.features, weights, settings.input_size, run.device)


def _sensitive_outside_epsilon(run: Run, ledger: Ledger | None) -> ImageSet | None:
    """The sensitive images, after the ledger has said what will be computed on them."""
    settings = run.recipe.evaluation
    asked = {
        "accuracy of classifiers trained on the sensitive images, and their number": (
            settings.ceiling
        ),
        "distances of synthetic images to the nearest sensitive ones": (
            settings.sensitive_duplicates
        ),
    }
    if not any(asked.values()):
        return None
    if ledger is None:
        raise UserError(
            "a ceiling or near duplicates of sensitive images lie outside ε and must stand in a "
            "run's ledger: name the folder of a run"
        )
    for what, is_asked in asked.items():
        if is_asked:
            ledger.record_outside_epsilon(what)
    return run.sensitive
