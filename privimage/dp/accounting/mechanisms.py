"""What touches sensitive data, and how the accountants compose a list of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from privimage.errors import check_count, check_non_negative, check_probability


@dataclass(frozen=True)
class Gaussian:
    """One release of a query plus Gaussian noise; `noise_multiplier` = std / L2 sensitivity."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        check_non_negative("noise_multiplier", self.noise_multiplier)


@dataclass(frozen=True)
class SubsampledGaussian:
    """`steps` Gaussian releases, each on a Poisson sample drawn with rate `sample_rate`."""

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        check_probability("sample_rate", self.sample_rate)
        check_non_negative("noise_multiplier", self.noise_multiplier)
        check_count("steps", self.steps)

    @property
    def gaussian_mu(self) -> float:
        """μ of one release if it were not subsampled."""
        return 1 / self.noise_multiplier


Mechanism = Gaussian | SubsampledGaussian
"""What touches sensitive data, and is paid for."""


@dataclass(frozen=True)
class Epsilon:
    """Bounds on ε at one δ; publish `upper`."""

    lower: float
    estimate: float
    upper: float


@dataclass(frozen=True)
class Composition:
    """Steps with equal rate and noise are one term, un-subsampled Gaussians are one release.

    So a run that was killed and resumed needs no more terms than an unbroken one. The Gaussians'
    μ = 1 / noise_multiplier add in squares, exactly (Dong, Roth, Su, arXiv 1905.02383,
    corollary 3.3).
    """

    steps: tuple[SubsampledGaussian, ...]
    gaussian_mu: float

    @property
    def count(self) -> int:
        """How many releases are composed."""
        return sum(part.steps for part in self.steps) + (self.gaussian_mu > 0)

    @property
    def total_gaussian_mu(self) -> float:
        """μ of everything that is not subsampled, steps with rate 1 among it."""
        whole = (part for part in self.steps if part.sample_rate == 1)
        squares = (part.steps * part.gaussian_mu * part.gaussian_mu for part in whole)
        return math.sqrt(self.gaussian_mu * self.gaussian_mu + sum(squares))

    @property
    def subsampled(self) -> tuple[SubsampledGaussian, ...]:
        """The steps with a rate below 1."""
        return tuple(part for part in self.steps if part.sample_rate < 1)


def composed(mechanisms: Sequence[Mechanism]) -> Composition:
    """The mechanisms merged, in the order of their first mention."""
    steps: dict[tuple[float, float], int] = {}
    precision = 0.0
    for mechanism in mechanisms:
        if isinstance(mechanism, Gaussian):
            mu = 1 / mechanism.noise_multiplier
            precision += mu * mu
        else:
            key = (mechanism.sample_rate, mechanism.noise_multiplier)
            steps[key] = steps.get(key, 0) + mechanism.steps
    terms = tuple(SubsampledGaussian(*key, count) for key, count in steps.items())
    return Composition(terms, math.sqrt(precision))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """δ at `epsilon` of a Gaussian mechanism with μ = L2 sensitivity / noise std, in closed form.

    Balle, Wang, arXiv 1805.06530, theorem 8.
    """
    tail = special.log_ndtr(-mu / 2 - epsilon / mu)
    return float(special.ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + tail))
