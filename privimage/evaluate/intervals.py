"""Intervals of 95 % around what was measured, by scipy's distributions."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from scipy import stats

from privimage.evaluate.result import Estimate

_LEVEL = 0.95


def over_repeats(values: Sequence[float], what: str) -> Estimate:
    """The mean and Student's t-interval of `values`, which are `what` ("trainings", "splits")."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, f"one of {what}: no interval")
    half = stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1)
    half = float(half) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half, f"Student's t over {len(values)} {what}")


def over_images(fraction: float, images: int) -> Estimate:
    """The Clopper-Pearson interval of a `fraction` of `images`, which are a sample of all."""
    found = stats.binomtest(round(fraction * images), images).proportion_ci(_LEVEL, "exact")
    method = f"Clopper-Pearson over {images} test images"
    return Estimate(fraction, float(found.low), float(found.high), method)
