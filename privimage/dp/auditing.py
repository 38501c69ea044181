"""Lower bounds on ε from one run with many canaries: what an attacker who guesses could prove.

Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run", arXiv 2305.08846, and, for a
Gaussian mechanism, Mahloujifar, Melis, Chaudhuri, "Auditing f-differential privacy in one run",
arXiv 2410.22235. A bound above the ε that is claimed proves a bug; one below it proves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import optimize, special, stats

from privimage.dp.accounting.accountant import check_delta
from privimage.dp.accounting.mechanisms import gaussian_delta
from privimage.errors import UserError, check_count

_LARGEST_EPSILON = 50.0
_LARGEST_MU = 50.0


@dataclass(frozen=True)
class Guesses:
    """What an attacker guessed about canaries, each of which was included with probability 1/2.

    Attributes:
        canaries: how many there were, m.
        made: of how many it was guessed whether they were included; of the others, nothing.
        right: how many of these guesses are right.
    """

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        check_count("canaries", self.canaries)
        if not 0 <= self.right <= self.made <= self.canaries:
            raise UserError(
                f"of {self.canaries} canaries {self.right} of {self.made} guesses can't be right"
            )


def guess(scores: torch.Tensor, included: torch.Tensor, count: int) -> Guesses:
    """Guesses that the canaries with the highest scores were included, those with the lowest not.

    Args:
        scores: float [canaries], each higher the more the run's result looks as if it had seen the
            canary.
        included: bool [canaries], whether it had; drawn by fair coins that nothing else depends on.
        count: how many guesses to make, half of them each way; to be chosen before looking.

    Raises:
        UserError: fewer canaries than guesses.
    """
    if count > len(scores):
        raise UserError(f"{count} guesses about {len(scores)} canaries are too many")
    order = scores.argsort(descending=True)
    highest, lowest = order[: (count + 1) // 2], order[len(order) - count // 2 :]
    right = int(included[highest].sum()) + int((~included[lowest]).sum())
    return Guesses(len(scores), count, right)


def epsilon_lower_bound(guesses: Guesses, delta: float, alpha: float) -> float:
    """ε below which no (ε, `delta`)-DP mechanism allows so many right guesses.

    Whatever the mechanism is, the bound is above its true ε with a probability of at most `alpha`
    (arXiv 2305.08846, theorem 5.2). It levels off at about ln(guesses) and is far from tight.

    Raises:
        UserError: δ is out of range.
    """
    check_delta(delta)
    return _last_refuted(
        lambda epsilon: _chance(guesses, epsilon, delta) <= alpha, _LARGEST_EPSILON
    )


def gaussian_epsilon_lower_bound(guesses: Guesses, delta: float, alpha: float) -> float:
    """ε at `delta` of the noisiest Gaussian mechanism that allows so many right guesses.

    Tighter than `epsilon_lower_bound`, but for mechanisms whose trade-off curve is that of a
    Gaussian: DP-SGD that takes every example in every step, or in the limit of many steps. For
    these the bound is above the true ε with a probability of at most `alpha`.

    Raises:
        UserError: δ is out of range.
    """
    check_delta(delta)
    mu = _last_refuted(lambda mu: _is_unlikely(guesses, mu, alpha), _LARGEST_MU)
    return gaussian_epsilon(mu, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε at `delta` of a Gaussian mechanism with μ = L2 sensitivity / noise std, in closed form.

    The inverse of `gaussian_delta`. T steps that take every example have μ = √T / σ.
    """
    if mu == 0:
        return 0.0

    def excess(epsilon: float) -> float:
        return gaussian_delta(mu, epsilon) - delta

    if excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, mu * mu / 2 + 40 * mu))


def _chance(guesses: Guesses, epsilon: float, delta: float) -> float:
    """A bound on the probability of so many right guesses under (ε, δ)-DP."""
    right, probability = guesses.right, special.expit(epsilon)
    # In excess of a binomial, as if each guess were randomised response, δ allows a little more.
    more, slope, mass = stats.binom.sf(right - 1, guesses.made, probability), 0.0, 0.0
    for fewer in range(1, right + 1):
        mass += float(stats.binom.pmf(right - fewer, guesses.made, probability))
        slope = max(slope, mass / fewer)
    return float(more) + 2 * guesses.canaries * delta * slope


def _is_unlikely(guesses: Guesses, mu: float, alpha: float) -> bool:
    """Whether so many right guesses have a probability below `alpha` under μ-Gaussian DP.

    Suppose they had probability `alpha`. For a canary drawn at random let `right` and `wrong` be
    the probability that it is guessed rightly (wrongly) and at least i guesses are right in all.
    From i + 1 to i: turning over that canary's coin makes a right guess wrong and leaves i of the
    others right, so μ-Gaussian DP makes `wrong` at least Φ(Φ⁻¹(right) - μ); and where exactly i
    guesses are right, right and wrong ones stand as i to made - i. If at i = 0 both add up to more
    than the probability of being guessed at all, the supposition was false (arXiv 2410.22235,
    algorithm 3).
    """
    share = alpha / guesses.canaries
    right, wrong = share * guesses.right, share * (guesses.made - guesses.right)
    for i in range(guesses.right - 1, -1, -1):
        least = max(wrong, float(special.ndtr(special.ndtri(right) - mu)))
        right += i / (guesses.made - i) * (least - wrong)
        wrong = least
    return right + wrong > guesses.made / guesses.canaries


def _last_refuted(is_refuted: Callable[[float], bool], largest: float) -> float:
    """The largest number that is refuted, from below to 1e-3; 0 if none is."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, largest
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
