"""Bounds on ε by privacy loss random variables, add/remove adjacency (package prv-accountant).

Gopi, Lee, Wutschitz, "Numerical composition of differential privacy", arXiv 2106.02848.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from prv_accountant import GaussianMechanism, PoissonSubsampledGaussianMechanism, PRVAccountant
from prv_accountant.accountant import compute_safe_domain_size

from privimage.dp.accounting.mechanisms import Composition, Epsilon
from privimage.errors import UserError

LARGEST_GRID = 2**23
"""Grid points that are not too many: 200 bytes and, on a slow core, 4 µs each: half a minute."""

# What every further answer from the same grid costs of the first one's time.
_SHARE = 1 / 3


@functools.lru_cache(maxsize=1024)
def bounds(composition: Composition, delta: float, epsilon_error: float) -> Epsilon:
    """Bounds on ε at `delta`; the outer two lie about `epsilon_error` off.

    Raises:
        UserError: the accountant would take too much time or memory, or it fails.
    """
    counts = [part.steps for part in composition.steps]
    return bounds_over_steps(composition, delta, epsilon_error, [counts])[0]


def bounds_over_steps(
    composition: Composition,
    delta: float,
    epsilon_error: float,
    counts: Sequence[Sequence[int]],
) -> list[Epsilon]:
    """`bounds` of shorter compositions, all from the grid of the whole one.

    Args:
        composition: the whole.
        delta: δ.
        epsilon_error: half the distance between lower and upper bound, about.
        counts: for each answer the counts of `composition.steps`, none above its own.

    Raises:
        UserError: the accountant would take too much time or memory, or it fails.
    """
    errors = {"eps_error": epsilon_error, "delta_error": delta / 1000}
    try:
        terms, whole = _terms(composition)
        # Tails overflow to infinity, rightly; whatever else is not finite is refused below.
        with np.errstate(all="ignore"):
            _check_grid(_points(terms, whole, **errors) * (1 + _SHARE * (len(counts) - 1)))
            accountant = PRVAccountant(prvs=terms, max_self_compositions=whole, **errors)
            found = [
                accountant.compute_epsilon(delta, [*part, *whole[len(part) :]]) for part in counts
            ]
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        raise UserError(
            f"the accountant can't bound ε for {_named(composition)} ({error}); more noise or "
            "fewer steps bring it into reach"
        ) from error
    if not all(math.isfinite(bound) for three in found for bound in three):
        raise UserError(f"the accountant returned {found} for {_named(composition)}")
    return [Epsilon(*(max(0.0, float(bound)) for bound in three)) for three in found]


def grid_points(composition: Composition, delta: float, epsilon_error: float) -> float:
    """What `bounds` costs, in points of its grid; infinite or not a number where it must fail."""
    terms, counts = _terms(composition)
    try:
        with np.errstate(all="ignore"):
            return _points(terms, counts, epsilon_error, delta / 1000)
    except (RuntimeError, ValueError, ArithmeticError):
        return math.inf


class _Steps(PoissonSubsampledGaussianMechanism):  # type: ignore[misc]
    """The accountant's subsampled Gaussian, with Rényi divergences that are always finite sums.

    The package sums a series at fractional orders, which can go on for ever. (α - 1) D_α is
    convex in α, so a chord between whole orders lies above it. The divergence only decides how
    wide the grid is: too wide costs time, not truth.
    """

    def probability(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # The cells of the grid share their borders: one evaluation each, not two.
        return np.diff(self.cdf(np.append(a, b[-1:])))

    def rdp(self, alpha: float) -> float:
        return _renyi(float(self.p), float(self.sigma), float(alpha))


@functools.lru_cache(maxsize=65536)
def _renyi(sample_rate: float, noise_multiplier: float, alpha: float) -> float:
    """An upper bound on D_α of one step, exact at whole orders."""
    below = math.floor(alpha)
    if below == alpha:
        exact = PoissonSubsampledGaussianMechanism(sample_rate, noise_multiplier)
        return float(exact.rdp(below))
    left = (below - 1) * _renyi(sample_rate, noise_multiplier, below) if below > 1 else 0.0
    right = below * _renyi(sample_rate, noise_multiplier, below + 1)
    share = alpha - below
    return ((1 - share) * left + share * right) / (alpha - 1)


def _terms(composition: Composition) -> tuple[list[object], list[int]]:
    """The accountant's own terms and how often each is composed."""
    terms: list[object] = [
        _Steps(part.sample_rate, part.noise_multiplier) for part in composition.steps
    ]
    counts = [part.steps for part in composition.steps]
    if composition.gaussian_mu:
        terms.append(GaussianMechanism(noise_multiplier=1 / composition.gaussian_mu))
        counts.append(1)
    return terms, counts


def _points(
    terms: Sequence[object], counts: Sequence[int], eps_error: float, delta_error: float
) -> float:
    """How many points the accountant's grid would have, known before any is computed.

    The grid reaches from -width to width, its mesh is that of theorem 5.5 of the paper.
    """
    width = compute_safe_domain_size(terms, counts, eps_error=eps_error, delta_error=delta_error)
    mesh = eps_error / math.sqrt(sum(counts) / 2 * math.log(12 / delta_error))
    return float(2 * width / mesh)


def _check_grid(points: float) -> None:
    """Refuses what would run for minutes or fill the memory, before it starts."""
    if not points <= LARGEST_GRID:
        raise ValueError(f"it would need {points:.1g} grid points")


def _named(composition: Composition) -> str:
    """The composition in words."""
    parts = [
        f"{part.steps} steps at sample rate {part.sample_rate:g} and noise multiplier "
        f"{part.noise_multiplier:g}"
        for part in composition.steps
    ]
    if composition.gaussian_mu:
        parts.append(f"a release at noise multiplier {1 / composition.gaussian_mu:g}")
    return " and ".join(parts)
