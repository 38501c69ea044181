"""From a list of mechanisms to bounds on ε, by two accountants that have to agree.

The bounds are those of privacy loss random variables (`prv`), the upper one is what is published; a
privacy loss distribution (`pld`) must lie between them.
"""

import math
from collections.abc import Sequence

from privimage.dp.accounting import pld, prv
from privimage.dp.accounting.mechanisms import Epsilon, Mechanism, SubsampledGaussian, composed
from privimage.errors import UserError, check_between, check_count

DELTA_RANGE = (1e-9, 1e-2)
"""The lowest and the highest δ that ε is stated at."""
EPSILON_ERROR = 0.01
_DISAGREEMENT = 1e-3


def epsilon(mechanisms: Sequence[Mechanism], delta: float) -> Epsilon:
    """ε of all `mechanisms` composed, in any order and chosen adaptively, at `delta`.

    Neighbours differ by one record added or removed. A mechanism without noise gives infinity, an
    empty list gives 0.

    Formal guarantee: the composition is (`upper`, `delta`)-differentially private (Gopi, Lee,
    Wutschitz, arXiv 2106.02848, theorem 5.5); two independent accountants agree on it
    (tests/dp/test_accounting.py).

    Raises:
        UserError: δ is outside [1e-9, 1e-2], where the bound was found to fail; the accountant
            fails or would take too much time or memory; the accountants disagree.
    """
    found = bounds(mechanisms, delta)
    if 0 < found.upper < math.inf:
        other = pld.add_or_remove(composed(mechanisms), delta)
        if not found.lower - _DISAGREEMENT <= other <= found.upper + _DISAGREEMENT:
            raise UserError(
                f"two accountants disagree on {list(mechanisms)} at delta {delta:g}: between "
                f"{found.lower:g} and {found.upper:g}, or {other:g}; no ε can be stated for this"
            )
    return found


def bounds(
    mechanisms: Sequence[Mechanism], delta: float, epsilon_error: float = EPSILON_ERROR
) -> Epsilon:
    """As `epsilon`, by one accountant and as coarsely as asked: for searching, not for publishing.

    Raises:
        UserError: δ is out of range, or the accountant fails or would take too long.
    """
    check_delta(delta)
    if not _has_noise(mechanisms):
        return Epsilon(math.inf, math.inf, math.inf)
    composition = composed(mechanisms)
    if not composition.count:
        return Epsilon(0.0, 0.0, 0.0)
    return prv.bounds(composition, delta, epsilon_error)


def cost(mechanisms: Sequence[Mechanism], delta: float, epsilon_error: float) -> float:
    """What `bounds` costs, in grid points; it refuses more than `prv.LARGEST_GRID`."""
    composition = composed(mechanisms) if _has_noise(mechanisms) else None
    if composition is None or not composition.count:
        return 0.0
    return prv.grid_points(composition, delta, epsilon_error)


def epsilon_over_steps(
    plan: SubsampledGaussian,
    counts: Sequence[int],
    delta: float,
    already_spent: Sequence[Mechanism] = (),
) -> list[Epsilon]:
    """Bounds on ε after each of `counts` steps of `plan`, on top of what is `already_spent`.

    Raises:
        UserError: a count is not between 1 and `plan.steps`, or as `bounds`.
    """
    check_delta(delta)
    for count in counts:
        check_count("steps", count)
        if count > plan.steps:
            raise UserError(f"the plan has {plan.steps} steps, so none can be stated for {count}")
    if not _has_noise([plan, *already_spent]):
        return [Epsilon(math.inf, math.inf, math.inf)] * len(counts)
    composition = composed([plan, *already_spent])
    first, *others = (part.steps for part in composition.steps)
    taken = [[first - plan.steps + count, *others] for count in counts]
    return prv.bounds_over_steps(composition, delta, EPSILON_ERROR, taken)


def replace_one_epsilon(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """An upper bound on ε at `delta` when one record is replaced by another.

    About twice the add/remove figure. A query whose answer moves by less than twice its
    sensitivity when a record is replaced does better than stated here.

    Raises:
        UserError: δ is out of range, or the losses are too large for a grid.
    """
    check_delta(delta)
    if not _has_noise(mechanisms):
        return math.inf
    return pld.replace_one(composed(mechanisms), delta)


def group_epsilon(mechanisms: Sequence[Mechanism], delta: float, group_size: int) -> float:
    """An upper bound on ε at `delta` when up to `group_size` records are added or removed.

    What a person with so many images is promised. The bound is that of the privacy loss
    distribution of a group, tight for this use (`pld.add_or_remove_group`), and not the general
    one, which multiplies ε by `group_size` and δ by up to exp(`group_size` ε).

    Raises:
        UserError: δ or the size is out of range, or the losses are too large for a grid.
    """
    check_delta(delta)
    check_count("group_size", group_size)
    if not _has_noise(mechanisms):
        return math.inf
    if group_size == 1:
        return epsilon(mechanisms, delta).upper
    return pld.add_or_remove_group(composed(mechanisms), delta, group_size)


def check_delta(delta: float) -> None:
    """Raises UserError unless δ lies where the accountant's upper bound was found to hold."""
    check_between("delta", delta, *DELTA_RANGE)


def _has_noise(mechanisms: Sequence[Mechanism]) -> bool:
    return all(mechanism.noise_multiplier > 0 for mechanism in mechanisms)
