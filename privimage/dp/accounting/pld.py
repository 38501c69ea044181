"""ε by privacy loss distributions: a second opinion, and other neighbours (package dp-accounting).

Every value is an upper bound: losses are rounded pessimistically (Doroshenko, Ghazi, Kamath, Kumar,
Manurangsi, "Connect the dots", arXiv 2207.04380).
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as losses
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from scipy.stats import binom

from privimage.dp.accounting.mechanisms import Composition, SubsampledGaussian
from privimage.errors import UserError

# The package inverts the loss point by point, in Python: a few seconds for so many points. Where
# losses reach further than that the mesh grows with them.
_FINEST_MESH, _COARSEST_MESH, _MOST_POINTS = 1e-4, 1e-3, 2**19
# Mixtures of Gaussians take fifty times as long; this mesh adds 0.002 to ε over 10,000 steps.
_GROUP_MESH, _MOST_GROUP_POINTS = 1e-3, 2**14
_LARGEST_LOSS = 5_000.0


@functools.lru_cache(maxsize=256)
def add_or_remove(composition: Composition, delta: float) -> float:
    """ε at `delta` when one record is added or removed.

    Raises:
        UserError: the losses are too large, or the accountant fails.
    """
    mesh = _mesh(composition, 1)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    return _epsilon(composition, delta, 1, mesh, _one_step(relation, mesh))


@functools.lru_cache(maxsize=256)
def replace_one(composition: Composition, delta: float) -> float:
    """ε at `delta` when one record is replaced: every sum moves by up to twice its sensitivity.

    Raises:
        UserError: the losses are too large, or the accountant fails.
    """
    mesh = _mesh(composition, 2)
    return _epsilon(composition, delta, 2, mesh, _one_step(NeighboringRelation.REPLACE_ONE, mesh))


@functools.lru_cache(maxsize=256)
def add_or_remove_group(composition: Composition, delta: float, group_size: int) -> float:
    """ε at `delta` when up to `group_size` records are added or removed together.

    A Poisson sample holds a binomial number of the group, so that a step is a mixture of Gaussians
    (Ganesh, arXiv 2401.10294): tight but for the mesh. What is not subsampled has `group_size`
    times its sensitivity.

    Raises:
        UserError: the losses are too large, or the accountant fails.
    """
    mesh = max(_GROUP_MESH, _largest_loss(composition, group_size) / _MOST_GROUP_POINTS)
    sizes = range(group_size + 1)

    def step(part: SubsampledGaussian) -> PrivacyLossDistribution:
        return losses.from_mixture_gaussian_mechanism(
            part.noise_multiplier,
            sizes,
            binom.pmf(sizes, group_size, part.sample_rate),
            value_discretization_interval=mesh,
        )

    return _epsilon(composition, delta, group_size, mesh, step)


def _epsilon(
    composition: Composition,
    delta: float,
    sensitivity: int,
    mesh: float,
    step: Callable[[SubsampledGaussian], PrivacyLossDistribution],
) -> float:
    """Composes the un-subsampled Gaussians, moved by `sensitivity`, with every `step`."""
    mu = sensitivity * composition.total_gaussian_mu
    total = losses.identity(value_discretization_interval=mesh)
    try:
        # Tails overflow and vanish, rightly.
        with np.errstate(all="ignore"):
            if mu:
                total = losses.from_gaussian_mechanism(1 / mu, value_discretization_interval=mesh)
            for part in composition.subsampled:
                total = total.compose(step(part).self_compose(part.steps))
            return float(total.get_epsilon_for_delta(delta))
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise UserError(
            f"the accountant of privacy loss distributions fails ({error}); add noise or take a "
            "smaller group"
        ) from error


def _one_step(
    relation: NeighboringRelation, mesh: float
) -> Callable[[SubsampledGaussian], PrivacyLossDistribution]:
    return lambda part: _losses_of_a_step(part.noise_multiplier, part.sample_rate, relation, mesh)


# Kept, for training states ε again and again over more of the same steps; composing them is quick.
@functools.lru_cache(maxsize=8)
def _losses_of_a_step(
    noise_multiplier: float, sample_rate: float, relation: NeighboringRelation, mesh: float
) -> PrivacyLossDistribution:
    return losses.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=mesh,
        neighboring_relation=relation,
    )


def _mesh(composition: Composition, sensitivity: int) -> float:
    """As fine as the number of releases asks for: what a mesh adds to ε grows as mesh² · releases.

    Powers of two apart, so that growing compositions share the losses of their steps.
    """
    halvings = math.ceil(math.log2(max(composition.count, 1)) / 2)
    fine_enough = min(_COARSEST_MESH, max(_FINEST_MESH, 2.0**-halvings / 100))
    return max(fine_enough, _largest_loss(composition, sensitivity) / _MOST_POINTS)


def _largest_loss(composition: Composition, sensitivity: int) -> float:
    """The largest loss of a single release: μ²/2 and ten deviations of μ."""
    alone = [sensitivity * part.gaussian_mu for part in composition.subsampled]
    mu = max([sensitivity * composition.total_gaussian_mu, *alone])
    loss = mu * mu / 2 + 10 * mu
    if not loss <= _LARGEST_LOSS:
        raise UserError(
            f"a single release moves by {mu:g} times its own noise, which protects nobody and is "
            "too much for the accountant; add noise or take a smaller group"
        )
    return loss
