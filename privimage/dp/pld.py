"""ε by privacy loss distributions: a second opinion, and other neighbours (package dp-accounting).

Every value is an upper bound: losses are rounded pessimistically (Doroshenko, Ghazi, Kamath, Kumar,
Manurangsi, "Connect the dots", arXiv 2207.04380).
"""

import functools
from collections.abc import Callable

import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as losses
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy.stats import binom

from privimage.dp.composition import Composition, Steps
from privimage.errors import UserError

_MESH = 1e-4
# Mixtures of many Gaussians are slow to invert; this mesh adds 0.002 to ε over 10,000 steps.
_GROUP_MESH = 1e-3
_LARGEST_GRID = 2**24


@functools.lru_cache(maxsize=256)
def add_or_remove(composition: Composition, delta: float) -> float:
    """ε at `delta` when one record is added or removed.

    Raises:
        UserError: the losses are too large for a grid.
    """

    def step(steps: Steps) -> PrivacyLossDistribution:
        return _step(steps, NeighboringRelation.ADD_OR_REMOVE_ONE)

    return _epsilon(composition, delta, 1, _MESH, step)


@functools.lru_cache(maxsize=256)
def replace_one(composition: Composition, delta: float) -> float:
    """ε at `delta` when one record is replaced: every sum moves by up to twice its sensitivity.

    Raises:
        UserError: the losses are too large for a grid.
    """

    def step(steps: Steps) -> PrivacyLossDistribution:
        return _step(steps, NeighboringRelation.REPLACE_ONE)

    return _epsilon(composition, delta, 2, _MESH, step)


@functools.lru_cache(maxsize=256)
def add_or_remove_group(composition: Composition, delta: float, group_size: int) -> float:
    """ε at `delta` when up to `group_size` records are added or removed together.

    A Poisson sample holds a binomial number of the group, so that a step is a mixture of Gaussians
    (Ganesh, arXiv 2401.10294): tight but for the grid. What is not subsampled has `group_size`
    times its sensitivity.

    Raises:
        UserError: the losses are too large for a grid.
    """
    sizes = range(group_size + 1)

    def step(steps: Steps) -> PrivacyLossDistribution:
        return losses.from_mixture_gaussian_mechanism(
            steps.noise_multiplier,
            sizes,
            binom.pmf(sizes, group_size, steps.sample_rate),
            value_discretization_interval=_GROUP_MESH,
        )

    return _epsilon(composition, delta, group_size, _GROUP_MESH, step)


def _epsilon(
    composition: Composition,
    delta: float,
    sensitivity: int,
    mesh: float,
    step: Callable[[Steps], PrivacyLossDistribution],
) -> float:
    """Composes the un-subsampled Gaussians, moved by `sensitivity`, with every `step`."""
    mu = sensitivity * composition.total_gaussian_mu
    total = losses.identity(value_discretization_interval=mesh)
    # Tails overflow and vanish, rightly.
    with np.errstate(all="ignore"):
        if mu:
            _check_grid(mu, mesh)
            total = losses.from_gaussian_mechanism(1 / mu, value_discretization_interval=mesh)
        for steps in composition.subsampled:
            _check_grid(sensitivity / steps.noise_multiplier, mesh)
            total = total.compose(step(steps).self_compose(steps.count))
        return float(total.get_epsilon_for_delta(delta))


def _step(steps: Steps, relation: NeighboringRelation) -> PrivacyLossDistribution:
    return losses.from_gaussian_mechanism(
        steps.noise_multiplier,
        sampling_prob=steps.sample_rate,
        value_discretization_interval=_MESH,
        neighboring_relation=relation,
    )


def _check_grid(mu: float, mesh: float) -> None:
    """Refuses a release whose losses, up to μ²/2 and ten deviations of μ, fill the memory."""
    if not mu**2 / 2 + 10 * mu <= _LARGEST_GRID * mesh:
        raise UserError(
            f"a release moves by {mu:g} times its own noise, which protects nobody and is too much "
            "for the accountant; add noise or take a smaller group"
        )
