"""ε for other neighbours than one record more or less: replaced records and whole groups."""

import math

import pytest
import scipy.optimize
import scipy.stats

from privimage.dp import Gaussian, SubsampledGaussian, epsilon, group_epsilon, replace_one_epsilon
from privimage.errors import UserError

STEPS = SubsampledGaussian(0.2, 5.0, 100)


def gaussian_epsilon(mu, delta):
    """ε of one Gaussian release, in closed form (Balle, Wang, arXiv 1805.06530, theorem 8)."""

    def excess(target):
        tail = math.exp(target) * scipy.stats.norm.cdf(-mu / 2 - target / mu)
        return scipy.stats.norm.cdf(mu / 2 - target / mu) - tail - delta

    return scipy.optimize.brentq(excess, 0.0, 100.0)


# dp-accounting 0.6.0 at a mesh of 1e-4, for rate, noise, steps, query and δ.
@pytest.mark.parametrize(
    ("rate", "noise", "steps", "query", "delta", "expected"),
    [
        (0.08192, 10.0, 10000, 50.0, 1e-5, 7.839449174574357),
        (1 / 3, 8.0, 150, 484.0, 1e-5, 4.473348502368395),
        (1.0, 20.0, 100, 2.0, 1e-6, 7.286080973285206),
        (0.08192, 20.0, 2000, 20.0, 1e-5, 1.467953243289982),
    ],
)
def test_known_values_for_a_replaced_record(rate, noise, steps, query, delta, expected):
    mechanisms = [SubsampledGaussian(rate, noise, steps), Gaussian(query)]
    assert expected - 1e-6 <= replace_one_epsilon(mechanisms, delta) <= expected + 1e-4


def test_what_is_not_subsampled_has_its_closed_form():
    mechanisms = [Gaussian(4.0), SubsampledGaussian(1.0, 10.0, 6)]
    mu = math.sqrt(1 / 16 + 6 / 100)
    replaced = replace_one_epsilon(mechanisms, 1e-5)
    assert gaussian_epsilon(2 * mu, 1e-5) <= replaced + 1e-9
    assert replaced == pytest.approx(gaussian_epsilon(2 * mu, 1e-5), abs=1e-4)
    for size in (2, 3, 7):
        grouped = group_epsilon(mechanisms, 1e-5, size)
        assert gaussian_epsilon(size * mu, 1e-5) <= grouped + 1e-9
        assert grouped == pytest.approx(gaussian_epsilon(size * mu, 1e-5), abs=1e-3)


def test_a_group_lies_between_its_parts_and_the_general_bound():
    single = epsilon([STEPS], 1e-9).upper
    assert group_epsilon([STEPS], 1e-9, 1) == single
    # (ε, δ) for one record is (2 ε, (1 + exp(ε)) δ) for two, whatever the mechanism.
    delta = 1e-9 * (1 + math.exp(single))
    pair = group_epsilon([STEPS], delta, 2)
    assert 2 * epsilon([STEPS], delta).lower < pair < 2 * single
    # A record that is replaced is one that is removed and one that is added.
    assert epsilon([STEPS], delta).upper < replace_one_epsilon([STEPS], delta) < pair


def test_a_group_at_a_rate_near_one_is_sampled_as_a_whole():
    near_one = group_epsilon([SubsampledGaussian(1 - 1e-9, 20.0, 30)], 1e-5, 2)
    at_one = group_epsilon([SubsampledGaussian(1.0, 20.0, 30)], 1e-5, 2)
    assert near_one == pytest.approx(at_one, abs=2e-3)


def test_no_noise_protects_nobody():
    assert replace_one_epsilon([Gaussian(0.0)], 1e-5) == math.inf
    assert group_epsilon([Gaussian(0.0)], 1e-5, 2) == math.inf


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: group_epsilon([STEPS], 1e-5, 0), "group_size"),
        (lambda: group_epsilon([STEPS], 1e-5, 1.5), "group_size"),
        (lambda: group_epsilon([STEPS], 0.1, 2), "delta must lie in"),
        (lambda: replace_one_epsilon([STEPS], 1e-10), "delta must lie in"),
        (lambda: group_epsilon([STEPS], 1e-5, 10**6), "protects nobody"),
        (lambda: replace_one_epsilon([Gaussian(1e-200)], 1e-5), "protects nobody"),
    ],
)
def test_what_cannot_be_stated_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()
