"""What the two accountants compose: subsampled steps and one Gaussian, merged from any list."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """`count` Gaussian releases, each on a Poisson sample drawn with rate `sample_rate`."""

    sample_rate: float
    noise_multiplier: float
    count: int

    @property
    def gaussian_mu(self) -> float:
        """μ of one release if it were not subsampled."""
        return 1 / self.noise_multiplier


@dataclass(frozen=True)
class Composition:
    """Steps with equal rate and noise are one term, un-subsampled Gaussians are one release.

    So a run that was killed and resumed needs no more terms than an unbroken one. The Gaussians'
    μ = 1 / noise_multiplier add in squares, exactly (Dong, Roth, Su, arXiv 1905.02383,
    corollary 3.3).
    """

    steps: tuple[Steps, ...]
    gaussian_mu: float

    @property
    def count(self) -> int:
        """How many releases are composed."""
        return sum(steps.count for steps in self.steps) + (self.gaussian_mu > 0)

    @property
    def total_gaussian_mu(self) -> float:
        """μ of everything that is not subsampled, steps with rate 1 among it."""
        whole = (steps for steps in self.steps if steps.sample_rate == 1)
        squares = (steps.count * steps.gaussian_mu * steps.gaussian_mu for steps in whole)
        return math.sqrt(self.gaussian_mu * self.gaussian_mu + sum(squares))

    @property
    def subsampled(self) -> tuple[Steps, ...]:
        """The steps with a rate below 1."""
        return tuple(steps for steps in self.steps if steps.sample_rate < 1)
