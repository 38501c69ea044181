import math
import time

import pytest

from privimage.dp import Gaussian, SubsampledGaussian, epsilon, epsilon_over_steps
from privimage.dp.accounting import accountant, pld
from privimage.dp.accounting.mechanisms import composed
from privimage.dp.accounting.prv import LARGEST_GRID
from privimage.errors import UserError

# Settings of the size of real runs with what the accountants of record gave for them:
# prv-accountant 0.2.0 at an ε error of 0.01 and a δ error of δ / 1000, dp-accounting 0.6.0 at 1e-4.
# id, sample rate, noise multiplier, steps, query's noise multiplier, δ, lower, upper, PLD.
SETTINGS = [
    ("A", 0.08192, 10.0, 10000, 50.0, 1e-5, 3.486389328239575, 3.5067769237140842, 3.496630325),
    ("B", 1 / 3, 8.0, 150, 484.0, 1e-5, 2.0620974890888677, 2.082349139957358, 2.072221324),
    ("C", 0.01, 1.0, 10000, None, 1e-5, 6.177385882745976, 6.198041573748162, 6.187744976),
    ("D", 4096 / 162770, 3.0, 20000, 5.0, 1e-6, 6.248535732890916, 6.26905776840349, 6.258877323),
    ("E", 0.001, 0.6, 10000, 2.0, 1e-5, 3.026939031134517, 3.0474816167637244, 3.037248363),
    ("F", 1.0, 20.0, 100, 2.0, 1e-6, 3.297452845695545, 3.317753238176413, 3.307600729),
    ("G", 0.08192, 20.0, 2000, 20.0, 1e-5, 0.677031725075479, 0.6971274555222023, 0.687106231),
    ("H", 256 / 60000, 1.1, 14062, None, 1e-5, 2.3714555066103227, 2.391743703695017, 2.381686002),
]
PLAN = SubsampledGaussian(0.2, 5.0, 100)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_known_settings(setting):
    _, rate, noise, steps, query, delta, lower, upper, loss_distribution = setting
    mechanisms = [SubsampledGaussian(rate, noise, steps)]
    mechanisms += [] if query is None else [Gaussian(query)]
    bounds = epsilon(mechanisms, delta)
    assert bounds.lower == pytest.approx(lower, abs=1e-6)
    assert bounds.upper == pytest.approx(upper, abs=1e-6)
    other = pld.add_or_remove(composed(mechanisms), delta)
    # A mesh that is coarser, for fewer steps, may add a little and take nothing.
    assert loss_distribution - 1e-6 <= other <= loss_distribution + 1e-4
    assert bounds.lower <= bounds.estimate <= bounds.upper
    assert bounds.lower <= other <= bounds.upper


def test_closed_form_lies_inside_the_bounds():
    # Setting F has no sub-sampling: one Gaussian with μ² = 100 / 20² + 1 / 2², solved exactly.
    bounds = epsilon([SubsampledGaussian(1.0, 20.0, 100), Gaussian(2.0)], 1e-6)
    assert bounds.lower <= 3.3076007226126483 <= bounds.upper
    assert bounds.estimate == pytest.approx(3.3076007226126483, abs=1e-5)


def test_gaussians_are_merged_exactly():
    split = epsilon([Gaussian(10.0)] * 4, 1e-5)
    assert split == epsilon([Gaussian(5.0)], 1e-5)


def test_equal_steps_are_one_term_however_they_were_reserved():
    whole = epsilon([SubsampledGaussian(0.1, 2.0, 60)], 1e-5)
    assert epsilon([SubsampledGaussian(0.1, 2.0, 20)] * 3, 1e-5) == whole


def test_every_mechanism_counts():
    assert epsilon([PLAN, Gaussian(5.0)], 1e-5).upper > epsilon([PLAN], 1e-5).upper + 0.01


def test_nothing_and_no_noise():
    assert epsilon([], 1e-5).upper == 0
    assert epsilon([Gaussian(5.0), SubsampledGaussian(0.1, 0.0, 1)], 1e-5).upper == math.inf


@pytest.mark.parametrize(
    "base", [(0.001, 1.0, 50, 1e-9), (0.05, 3.0, 200, 1e-5), (0.9, 20.0, 1, 1e-3)]
)
def test_the_upper_bound_falls_with_noise_and_delta_and_rises_with_rate_and_steps(base):
    rate, noise, steps, delta = base

    def upper(rate=rate, noise=noise, steps=steps, delta=delta):
        return accountant.bounds([SubsampledGaussian(rate, noise, steps)], delta).upper

    assert upper(noise=1.02 * noise) < upper()
    assert upper(rate=1.02 * rate) > upper()
    assert upper(steps=steps + max(1, steps // 50)) > upper()
    assert upper(delta=2 * delta) < upper()


def test_epsilon_over_steps_ends_where_the_plan_does():
    query = [Gaussian(5.0), SubsampledGaussian(0.2, 5.0, 7)]
    points = epsilon_over_steps(PLAN, [1, 50, 100], 1e-5, query)
    uppers = [point.upper for point in points]
    assert uppers == sorted(uppers)
    assert points[-1] == epsilon([PLAN, *query], 1e-5)
    half = epsilon([SubsampledGaussian(0.2, 5.0, 50), *query], 1e-5)
    assert points[1].upper == pytest.approx(half.upper, abs=1e-3)
    with pytest.raises(UserError, match="has 100 steps"):
        epsilon_over_steps(PLAN, [101], 1e-5)


def test_steps_without_noise_have_no_epsilon():
    (point,) = epsilon_over_steps(SubsampledGaussian(0.2, 0.0, 100), [50], 1e-5)
    assert (point.lower, point.upper) == (math.inf, math.inf)


@pytest.mark.parametrize("other", [0.0, 100.0, math.nan, math.inf])
def test_no_epsilon_is_stated_when_the_accountants_disagree(monkeypatch, other):
    honest = pld.add_or_remove(composed([PLAN]), 1e-5)
    assert epsilon([PLAN], 1e-5).upper > honest
    monkeypatch.setattr(pld, "add_or_remove", lambda *_: other)
    with pytest.raises(UserError, match="two accountants disagree"):
        epsilon([PLAN], 1e-5)


def test_a_small_disagreement_is_seen(monkeypatch):
    bounds = epsilon([PLAN], 1e-5)
    for other, agrees in [
        (bounds.upper + 0.9e-3, True),
        (bounds.upper + 1.1e-3, False),
        (bounds.lower - 0.9e-3, True),
        (bounds.lower - 1.1e-3, False),
    ]:
        monkeypatch.setattr(pld, "add_or_remove", lambda *_, other=other: other)
        if agrees:
            assert epsilon([PLAN], 1e-5) == bounds
        else:
            with pytest.raises(UserError, match="disagree"):
                epsilon([PLAN], 1e-5)


@pytest.mark.parametrize("delta", [0.0, -1.0, 9e-10, 0.011, 0.5, math.nan, math.inf])
def test_delta_is_refused_where_the_bound_does_not_hold(delta):
    with pytest.raises(UserError, match="delta must lie in"):
        epsilon([Gaussian(5.0)], delta)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Gaussian(-1.0),
        lambda: Gaussian(math.nan),
        lambda: SubsampledGaussian(0.0, 1.0, 10),
        lambda: SubsampledGaussian(1.5, 1.0, 10),
        lambda: SubsampledGaussian(math.nan, 1.0, 10),
        lambda: SubsampledGaussian(0.1, math.inf, 10),
        lambda: SubsampledGaussian(0.1, math.nan, 10),
        lambda: SubsampledGaussian(0.1, 1.0, -1),
        lambda: SubsampledGaussian(0.1, 1.0, 2.5),
    ],
)
def test_bad_input_is_refused_before_the_accountant_sees_it(wrong):
    with pytest.raises(UserError):
        wrong()


@pytest.mark.parametrize(
    "mechanism",
    [
        SubsampledGaussian(0.5, 1e-3, 10),  # the series of the package hardly converges
        SubsampledGaussian(0.08192, 0.5, 10_000),  # 7.5 GB
        SubsampledGaussian(0.01, 2.0, 10**9),
        SubsampledGaussian(0.5, 1e-300, 10**18),
        Gaussian(1e-3),
        Gaussian(1e-200),
        SubsampledGaussian(1e-9, 0.05, 10_000),
    ],
)
def test_what_would_take_minutes_is_refused_at_once(mechanism):
    begin = time.monotonic()
    with pytest.raises(UserError, match="can't bound ε for"):
        epsilon([mechanism], 1e-5)
    assert time.monotonic() - begin < 20


def test_many_answers_from_one_grid_are_refused_before_they_take_minutes():
    plan = SubsampledGaussian(0.08192, 2.0, 10_000)
    assert accountant.cost([plan], 1e-5, 0.01) < LARGEST_GRID
    with pytest.raises(UserError, match="can't bound ε for"):
        epsilon_over_steps(plan, range(400, 10_001, 400), 1e-5)
