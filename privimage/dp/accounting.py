"""From a list of mechanisms to bounds on ε, and from a target ε to a noise multiplier.

Numerical composition by privacy loss random variables (Gopi, Lee, Wutschitz, arXiv 2106.02848;
package prv-accountant), under add/remove-one adjacency. The upper bound is what is published.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import scipy.optimize
import scipy.stats
from prv_accountant import (
    GaussianMechanism,
    PoissonSubsampledGaussianMechanism,
    PRVAccountant,
)

from privimage.errors import UserError, check_count, check_non_negative, check_probability

ADJACENCY = "add_remove_one_image"
DELTA_RANGE = (1e-9, 1e-2)
_EPSILON_ERROR = 0.01
_NOISE_STEP = 1e-4
_BRACKET_STEP = 1.1
_LARGEST_NOISE = 2.0**16
# Below this noise the accountant's grid takes gigabytes, and no useful ε lies there.
_SMALLEST_NOISE = 0.3


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


Mechanism = Gaussian | SubsampledGaussian


@dataclass(frozen=True)
class Epsilon:
    """Bounds on ε at one δ; publish `upper`."""

    lower: float
    estimate: float
    upper: float


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> Epsilon:
    """ε of all `mechanisms` composed, in any order and chosen adaptively, at `delta`.

    A mechanism without noise gives infinity, an empty list gives 0.

    Raises:
        UserError: δ is outside [1e-9, 1e-2], where the accountant's bound does not hold, or the
            accountant fails (far too little noise).
    """
    check_delta(delta)
    if not mechanisms:
        return Epsilon(0.0, 0.0, 0.0)
    if any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return Epsilon(math.inf, math.inf, math.inf)
    terms = _terms(mechanisms)
    counts = list(terms.values())
    try:
        accountant = PRVAccountant(
            prvs=list(terms),
            max_self_compositions=counts,
            eps_error=_EPSILON_ERROR,
            delta_error=delta / 1000,
        )
        bounds = accountant.compute_epsilon(delta=delta, num_self_compositions=counts)
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"the accountant can't bound ε for {list(mechanisms)}: {error}") from error
    if not all(math.isfinite(bound) for bound in bounds):
        raise UserError(f"the accountant returned {bounds} for {list(mechanisms)}")
    lower, estimate, upper = (max(0.0, float(bound)) for bound in bounds)
    return Epsilon(lower, estimate, upper)


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    already_spent: Sequence[Mechanism] = (),
) -> float:
    """The smallest noise multiplier, rounded up to 4 decimals, that keeps everything within target.

    Everything is `already_spent` and `steps` Poisson-subsampled Gaussian releases; the upper bound
    of their joint ε at `delta` is at most `target_epsilon`. An infinite target gives 0.

    Raises:
        UserError: what is already spent leaves nothing, or δ, rate or steps are out of range.
    """
    check_delta(delta)
    if not target_epsilon > 0:
        raise UserError(f"epsilon must be above 0, got {target_epsilon}")
    if math.isinf(target_epsilon):
        return 0.0

    @functools.cache
    def excess(noise_multiplier: float) -> float:
        plan = SubsampledGaussian(sample_rate, noise_multiplier, steps)
        return epsilon([*already_spent, plan], delta).upper - target_epsilon

    if excess(_LARGEST_NOISE) > 0:
        raise UserError(
            f"epsilon {target_epsilon:g} leaves no budget for {steps} steps: the accountant's own "
            "margin and what these images already answered cost as much; raise --epsilon"
        )
    low = high = _central_limit_guess(target_epsilon, delta, sample_rate, steps)
    while high < _LARGEST_NOISE and excess(high) > 0:
        low, high = high, high * _BRACKET_STEP
    while low > _SMALLEST_NOISE and excess(low) <= 0:
        low, high = low / _BRACKET_STEP, low
    if low <= _SMALLEST_NOISE:
        return high
    root = float(scipy.optimize.brentq(excess, low, high, xtol=_NOISE_STEP / 4))
    grid_point = math.ceil(root / _NOISE_STEP)
    while excess(grid_point * _NOISE_STEP) > 0:
        grid_point += 1
    return round(grid_point * _NOISE_STEP, 4)


def affordable_steps(
    target_epsilon: float,
    delta: float,
    plan: SubsampledGaussian,
    already_spent: Sequence[Mechanism] = (),
) -> int:
    """How many of `plan.steps` may still be taken so that ε stays within target; 0 if none.

    The answer is what a run that was killed goes on with: reserved steps are spent whether or not
    they were taken, and their cost stands in `already_spent`.
    """

    def fits(steps: int) -> bool:
        mechanisms = [*already_spent, replace(plan, steps=steps)] if steps else already_spent
        return epsilon(mechanisms, delta).upper <= target_epsilon

    if fits(plan.steps):
        return plan.steps
    low, high = 0, plan.steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_delta(delta: float) -> None:
    """Raises UserError unless δ lies where the accountant's upper bound was found to hold."""
    low, high = DELTA_RANGE
    if not low <= delta <= high:
        raise UserError(f"delta must lie in [{low:g}, {high:g}], got {delta:g}")


def _central_limit_guess(
    target_epsilon: float, delta: float, sample_rate: float, steps: int
) -> float:
    """A noise multiplier near the one asked for: q √(T (exp(1/σ²) - 1)) = μ (arXiv 1911.11607)."""

    def delta_of(mu: float) -> float:
        tail = scipy.stats.norm.cdf(-target_epsilon / mu - mu / 2)
        head = scipy.stats.norm.cdf(-target_epsilon / mu + mu / 2)
        return float(head - math.exp(target_epsilon) * tail)

    # Above ε = 30 the guess is of no use, and exp(ε) would overflow.
    if target_epsilon > 30:
        return 1.0
    mu = scipy.optimize.brentq(lambda mu: delta_of(mu) - delta, 1e-6, 40.0)
    return max(_SMALLEST_NOISE, 1 / math.sqrt(math.log1p(mu**2 / (sample_rate**2 * steps))))


def _terms(mechanisms: Sequence[Mechanism]) -> dict[object, int]:
    """The accountant's own terms with their counts.

    Un-subsampled Gaussians are merged into one, exactly: their μ = 1/noise_multiplier add in
    squares. Steps with equal rate and noise are one term, so that a killed and resumed run needs
    no more terms than an unbroken one.
    """
    steps: dict[tuple[float, float], int] = {}
    for mechanism in mechanisms:
        if isinstance(mechanism, SubsampledGaussian):
            key = (mechanism.sample_rate, mechanism.noise_multiplier)
            steps[key] = steps.get(key, 0) + mechanism.steps
    terms: dict[object, int] = {
        PoissonSubsampledGaussianMechanism(
            sampling_probability=sample_rate, noise_multiplier=noise_multiplier
        ): count
        for (sample_rate, noise_multiplier), count in steps.items()
    }
    precision = sum(
        mechanism.noise_multiplier**-2
        for mechanism in mechanisms
        if isinstance(mechanism, Gaussian)
    )
    if precision:
        terms[GaussianMechanism(noise_multiplier=precision**-0.5)] = 1
    return terms
