"""From a target ε to a noise multiplier or to a number of steps."""

import math
from collections.abc import Sequence
from dataclasses import replace

import scipy.optimize

from privimage.dp.accounting.accountant import (
    EPSILON_ERROR,
    bounds,
    check_delta,
    cost,
    epsilon,
)
from privimage.dp.accounting.mechanisms import (
    Mechanism,
    SubsampledGaussian,
    composed,
    gaussian_delta,
)
from privimage.dp.accounting.prv import LARGEST_GRID
from privimage.dp.accounting.search import COARSE_ERROR, Crossing
from privimage.errors import UserError

# Noise multipliers have four decimals; below the smallest no useful ε lies and the accountant
# begins to fail.
_DECIMALS = 10_000
_SMALLEST_NOISE = 3_000
_LARGEST_NOISE = 2**16 * _DECIMALS


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    already_spent: Sequence[Mechanism] = (),
) -> float:
    """The smallest noise multiplier, rounded up to 4 decimals, that keeps everything within target.

    Everything is `already_spent` and `steps` Poisson-subsampled Gaussian releases; the upper bound
    of their joint ε at `delta` is at most `target_epsilon`. An infinite target gives 0, a finite
    one never less than 0.3.

    Raises:
        UserError: what is already spent leaves nothing, δ, rate or steps are out of range, the
            accountants disagree, or the search would take minutes.
    """
    _check_target(target_epsilon, delta)
    plan = SubsampledGaussian(sample_rate, 1.0, steps)
    if math.isinf(target_epsilon):
        return 0.0
    meter = _Meter(delta)
    if meter.upper(already_spent) >= target_epsilon:
        raise _no_budget(target_epsilon, steps)
    search = _over_noise(target_epsilon, meter, plan, already_spent)
    found = search.last_within(_noise_guess(target_epsilon, delta, plan, already_spent))
    plan = replace(plan, noise_multiplier=found / _DECIMALS)
    if not epsilon([plan, *already_spent], delta).upper <= target_epsilon:
        raise _no_budget(target_epsilon, steps)
    return plan.noise_multiplier


def estimate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    already_spent: Sequence[Mechanism] = (),
) -> float:
    """About what `calibrate_noise_multiplier` finds, in a tenth of its time; infinite if nothing.

    For comparing plans, not for running one: ε is met to about 1e-3.

    Raises:
        UserError: target, δ, rate or steps are out of range, or the search would take minutes.
    """
    _check_target(target_epsilon, delta)
    plan = SubsampledGaussian(sample_rate, 1.0, steps)
    if math.isinf(target_epsilon):
        return 0.0
    meter = _Meter(delta)
    if meter.upper(already_spent) >= target_epsilon:
        return math.inf
    search = _over_noise(target_epsilon, meter, plan, already_spent)
    root, _ = search.estimate(_noise_guess(target_epsilon, delta, plan, already_spent))
    return root / _DECIMALS if root < _LARGEST_NOISE else math.inf


def affordable_steps(
    target_epsilon: float,
    delta: float,
    plan: SubsampledGaussian,
    already_spent: Sequence[Mechanism] = (),
) -> int:
    """How many of `plan.steps` may still be taken so that ε stays within target; 0 if none.

    The answer is what a run that was killed goes on with: reserved steps are spent whether or not
    they were taken, and their cost stands in `already_spent`.

    Raises:
        UserError: the target is not above 0, δ is out of range, the accountants disagree, or the
            search would take minutes.
    """
    _check_target(target_epsilon, delta)
    if math.isinf(target_epsilon):
        return plan.steps

    meter = _Meter(delta)

    def upper_bound(steps: int, error: float = EPSILON_ERROR) -> float:
        return meter.upper([replace(plan, steps=steps), *already_spent], error)

    found = plan.steps
    # A plan far beyond the target would take long to bound finely.
    far = upper_bound(found, COARSE_ERROR) > target_epsilon + 1.5 * COARSE_ERROR
    if far or upper_bound(found) > target_epsilon:
        if plan.noise_multiplier == 0 or meter.upper(already_spent) > target_epsilon:
            return 0
        mu = _remaining_mu(target_epsilon, delta, already_spent)
        guess = (mu / _step_mu(plan.sample_rate, plan.noise_multiplier)) ** 2
        found = Crossing(upper_bound, target_epsilon, 0, found).last_within(guess)
    if found:
        epsilon([replace(plan, steps=found), *already_spent], delta)  # the accountants must agree
    return found


class _Meter:
    """The upper bound on ε at one δ, for one search that must end within half a minute.

    The work is counted in grid points, which are known beforehand, and not in seconds: so the same
    question has the same answer on every machine.
    """

    def __init__(self, delta: float) -> None:
        self._delta = delta
        self._points_left = float(LARGEST_GRID)

    def upper(self, mechanisms: Sequence[Mechanism], epsilon_error: float = EPSILON_ERROR) -> float:
        """The upper bound, infinite where the accountant refuses.

        Raises:
            UserError: the search has asked for too much.
        """
        points = cost(mechanisms, self._delta, epsilon_error)
        if not points <= LARGEST_GRID:
            return math.inf
        self._points_left -= points
        if self._points_left < 0:
            raise UserError(
                "finding what this budget pays for would take the accountant minutes; ask for a "
                "smaller ε, more noise or fewer steps"
            )
        try:
            return bounds(mechanisms, self._delta, epsilon_error).upper
        except UserError:
            return math.inf


def _over_noise(
    target_epsilon: float, meter: _Meter, plan: SubsampledGaussian, spent: Sequence[Mechanism]
) -> Crossing:
    """The search over `plan`'s noise multiplier, counted in units of its last decimal."""

    def upper_bound(noise: int, error: float) -> float:
        return meter.upper([replace(plan, noise_multiplier=noise / _DECIMALS), *spent], error)

    return Crossing(upper_bound, target_epsilon, _LARGEST_NOISE, _SMALLEST_NOISE - 1)


def _noise_guess(
    target_epsilon: float, delta: float, plan: SubsampledGaussian, spent: Sequence[Mechanism]
) -> float:
    mu = _remaining_mu(target_epsilon, delta, spent) / plan.sample_rate
    return _DECIMALS / math.sqrt(math.log1p(mu**2 / plan.steps))


def _remaining_mu(target_epsilon: float, delta: float, spent: Sequence[Mechanism]) -> float:
    """About the μ of a Gaussian that may come on top of what is `spent`.

    In the central limit T subsampled steps are one Gaussian with μ² = q² T (exp(1/σ²) - 1)
    (Bu, Dong, Long, Su, arXiv 1911.11607), whose ε and δ are tied by a closed form.
    """

    def excess(log_mu: float) -> float:
        return gaussian_delta(math.exp(log_mu), target_epsilon) - delta

    total = math.exp(scipy.optimize.brentq(excess, -20.0, 20.0))
    composition = composed(spent)
    used = composition.gaussian_mu**2 + sum(
        part.steps * _step_mu(part.sample_rate, part.noise_multiplier) ** 2
        for part in composition.steps
    )
    return math.sqrt(max(total**2 - used, 1e-4 * total**2))


def _step_mu(sample_rate: float, noise_multiplier: float) -> float:
    """μ of one subsampled step in the central limit, huge instead of infinite."""
    mu = 1 / noise_multiplier
    return sample_rate * math.sqrt(math.expm1(min(mu * mu, 300.0)))


def _check_target(target_epsilon: float, delta: float) -> None:
    check_delta(delta)
    if not target_epsilon > 0:
        raise UserError(f"epsilon must be above 0, got {target_epsilon}")


def _no_budget(target_epsilon: float, steps: int) -> UserError:
    return UserError(
        f"epsilon {target_epsilon:g} leaves no budget for {steps} steps: the accountant's own "
        "margin, and what was released before, cost as much; raise epsilon or take fewer steps"
    )
