"""Scores of synthetic images on features, beside what real images score at the same N."""

from dataclasses import asdict

import torch

from privimage.evaluate import intervals
from privimage.evaluate.features import Outputs
from privimage.evaluate.metrics import fid, inception_score, kid
from privimage.evaluate.neighbours import COVERAGE_NEIGHBOURS, manifold
from privimage.evaluate.result import FeatureFacts, Floor, Score
from privimage.progress import Reporter
from privimage.seeds import generator

NAMES = {
    "fid": "FID",
    "kid": "KID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
"""Every score, and what to call it (IS is the Inception Score)."""

_LOWER_IS_BETTER = ("fid", "kid")
LEAST_IMAGES = COVERAGE_NEIGHBOURS + 1


def scores(
    synthetic: Outputs,
    real: Outputs,
    facts: FeatureFacts,
    splits: int,
    seed: int,
    reporter: Reporter,
) -> dict[str, Score]:
    """Every score of the synthetic images, with the floor of real images against real ones.

    Args:
        synthetic: their features and logits, at least `LEAST_IMAGES`.
        real: of the test images, as many or more.
        facts: of the features.
        splits: how often the test images are split in two.
        seed: decides order, splits and choices.
        reporter: shows the progress, and may ask to stop.

    Raises:
        Stopped: the reporter asked for it.
    """
    random = generator(seed, "scores")
    n = min(len(real[0]) // 2, len(synthetic[0]))
    floors: list[dict[str, float]] = []
    beside: list[dict[str, float]] = []
    for step in reporter.stoppable_steps("scores", 1 + (splits if n >= LEAST_IMAGES else 0)):
        if step == 0:
            values = every_score(_taken(synthetic, random), real)
            continue
        order = torch.randperm(len(real[0]), generator=random)
        half, other = ([part[rows] for part in real] for rows in (order[:n], order[n : 2 * n]))
        floors.append(every_score(half, other))
        beside.append(every_score(_taken(synthetic, random, n), other))

    def floor(name: str) -> Floor | None:
        if not floors:
            return None
        of_real, of_synthetic = (
            intervals.over_repeats([values[name] for values in repeats], "splits of the test set")
            for repeats in (floors, beside)
        )
        return Floor(n, of_real, of_synthetic)

    return {
        name: Score(
            label=f"{title} ({facts.label})",
            lower_is_better=name in _LOWER_IS_BETTER,
            value=values[name],
            n_synthetic=len(synthetic[0]),
            n_real=len(real[0]),
            floor=floor(name),
        )
        for name, title in NAMES.items()
    }


def caveats(n_synthetic: int, n_real: int, facts: FeatureFacts) -> list[str]:
    """What must be said beside scores of so many images."""
    said = []
    fewest = min(n_synthetic, n_real)
    if fewest <= facts.dimensions:
        said.append(
            f"FID from {n_synthetic} synthetic and {n_real} real images with {facts.dimensions} "
            "features each: no more images than features leave a covariance rank-deficient, and "
            "FID far too high; only beside the real/real floor at the same N has it a meaning"
        )
    if facts.name != "inception":
        said.append(
            f"the scores are on features of {facts.label}: not to be compared with those of "
            "papers, which are on Inception-v3"
        )
    if n_real // 2 < LEAST_IMAGES:
        said.append(f"a test set of {n_real} images is too small to be split for a real/real floor")
    return said


def every_score(
    synthetic: list[torch.Tensor], real: Outputs | list[torch.Tensor]
) -> dict[str, float]:
    """The scores of one set of outputs against another, by the names of `NAMES`."""
    return {
        "fid": fid(synthetic[0], real[0]),
        "kid": kid(synthetic[0], real[0]),
        "inception_score": inception_score(synthetic[1]),
        **asdict(manifold(synthetic[0], real[0])),
    }


def _taken(outputs: Outputs, random: torch.Generator, n: int | None = None) -> list[torch.Tensor]:
    """`n` of the images, or all, in an order by chance."""
    rows = torch.randperm(len(outputs[0]), generator=random)[:n]
    return [part[rows] for part in outputs]
