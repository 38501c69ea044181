import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privimage.dp import (
    Epsilon,
    Gaussian,
    SubsampledGaussian,
    affordable_steps,
    calibrate_noise_multiplier,
    epsilon,
    estimate_noise_multiplier,
)
from privimage.dp.accounting import prv
from privimage.errors import UserError


def upper(rate, noise, steps, spent=(), delta=1e-5):
    return epsilon([*spent, SubsampledGaussian(rate, noise, steps)], delta).upper


@pytest.fixture
def fine_calls(monkeypatch):
    """How often the fine accountant is asked something new."""
    asked = set()
    bounds = prv.bounds

    def counted(composition, delta, epsilon_error):
        if epsilon_error == 0.01:
            asked.add((composition, delta))
        return bounds(composition, delta, epsilon_error)

    monkeypatch.setattr(prv, "bounds", counted)
    return asked


# The digits recipe at ε = 10 and 1 and PrivImage's CIFAR-10 recipe without its query: 1.7464,
# 11.8385, 2.1920 and 15.4755, each found to ± 0.001.
@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps", "query", "expected"),
    [
        (10.0, 1e-4, 0.2, 300, 5.0, 1.7464),
        (1.0, 1e-4, 0.2, 300, 10.0, 11.8386),
        (10.0, 1e-5, 1 / 3, 150, None, 2.1921),
        (1.0, 1e-5, 1 / 3, 150, None, 15.4758),
    ],
)
def test_known_noise_multipliers_in_few_calls(
    fine_calls, target, delta, rate, steps, query, expected
):
    spent = [] if query is None else [Gaussian(query)]
    noise = calibrate_noise_multiplier(target, delta, rate, steps, spent)
    assert noise == expected
    assert len(fine_calls) <= 4
    assert target - 0.03 < upper(rate, noise, steps, spent, delta) <= target
    assert upper(rate, noise - 1e-4, steps, spent, delta) > target


@settings(max_examples=3)
@given(
    target=st.floats(0.3, 8.0),
    delta=st.sampled_from([1e-9, 1e-6, 1e-3]),
    rate=st.floats(0.001, 1.0),
    steps=st.integers(1, 200),
)
def test_any_target_is_met_from_below_by_the_smallest_noise(target, delta, rate, steps):
    noise = calibrate_noise_multiplier(target, delta, rate, steps)
    assert upper(rate, noise, steps, (), delta) <= target
    assert noise == round(noise, 4)
    if noise > 0.3:
        assert upper(rate, noise, steps, (), delta) >= target - 0.03
        assert upper(rate, noise - 1e-4, steps, (), delta) > target
        estimate = estimate_noise_multiplier(target, delta, rate, steps)
        assert estimate == pytest.approx(noise, rel=0.05)


def test_affordable_steps_are_all_or_fewer_but_never_over_budget(fine_calls):
    plan = SubsampledGaussian(0.2, 11.8386, 300)
    assert affordable_steps(1.0, 1e-4, plan, [Gaussian(10.0)]) == 300
    spent = [Gaussian(10.0), Gaussian(10.0)]
    fine_calls.clear()
    steps = affordable_steps(1.0, 1e-4, plan, spent)
    assert len(fine_calls) <= 5
    assert 200 < steps < 300
    assert upper(0.2, 11.8386, steps, spent, 1e-4) <= 1.0
    assert upper(0.2, 11.8386, steps + 1, spent, 1e-4) > 1.0
    assert affordable_steps(1.0, 1e-4, plan, [Gaussian(0.5)]) == 0
    assert affordable_steps(math.inf, 1e-4, plan, [Gaussian(0.5)]) == 300


def test_a_resumed_run_is_paid_for_what_is_left_and_no_more():
    plan = SubsampledGaussian(0.2, 11.8386, 300)
    spent = [Gaussian(10.0), SubsampledGaussian(0.2, 11.8386, 120)]
    assert affordable_steps(1.0, 1e-4, plan, spent) == 180


def test_steps_without_end_are_cut_to_the_target():
    steps = affordable_steps(2.0, 1e-5, SubsampledGaussian(0.02, 1.5, 10**9))
    assert upper(0.02, 1.5, steps) <= 2.0 < upper(0.02, 1.5, steps + 1)


def test_steps_without_noise_are_paid_for_by_no_finite_target():
    plan = SubsampledGaussian(0.2, 0.0, 10)
    assert affordable_steps(1.0, 1e-5, plan) == 0
    assert affordable_steps(math.inf, 1e-5, plan) == 10
    assert calibrate_noise_multiplier(math.inf, 1e-5, 0.1, 10) == 0


def test_an_estimate_knows_when_nothing_is_left():
    assert estimate_noise_multiplier(1.0, 1e-5, 0.1, 10, [Gaussian(0.5)]) == math.inf


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: calibrate_noise_multiplier(-1.0, 1e-5, 0.1, 10), "epsilon must be above 0"),
        (lambda: calibrate_noise_multiplier(math.nan, 1e-5, 0.1, 10), "epsilon must be above 0"),
        (lambda: calibrate_noise_multiplier(1.0, 1e-12, 0.1, 10), "delta must lie in"),
        (lambda: calibrate_noise_multiplier(1.0, 1e-5, 0.1, 2.5), "steps"),
        (lambda: calibrate_noise_multiplier(1.0, 1e-5, 1.1, 10), "sample_rate"),
        (lambda: calibrate_noise_multiplier(1.0, 1e-5, 0.1, 10, [Gaussian(0.5)]), "no budget"),
        (lambda: calibrate_noise_multiplier(0.005, 1e-5, 0.1, 10), "no budget"),
        (lambda: affordable_steps(0.0, 1e-5, SubsampledGaussian(0.1, 1.0, 5)), "above 0"),
        (lambda: affordable_steps(1.0, 0.5, SubsampledGaussian(0.1, 1.0, 5)), "delta must lie"),
    ],
)
def test_what_cannot_be_met_is_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()


def test_a_search_that_would_take_minutes_ends_with_one_line(monkeypatch):
    asked = []

    def counted(composition, delta, epsilon_error):
        asked.append(prv.grid_points(composition, delta, epsilon_error))
        return Epsilon(0.1, 0.1, 0.1)

    # What the accountant would answer does not matter here, nor how long it would take.
    monkeypatch.setattr(prv, "bounds", counted)
    with pytest.raises(UserError, match="would take the accountant minutes") as caught:
        affordable_steps(1.0, 1e-5, SubsampledGaussian(1e-9, 0.05, 10**6))
    assert "\n" not in str(caught.value)
    assert 1e6 < sum(asked) <= prv.LARGEST_GRID


def test_a_plan_on_which_the_accountants_disagree_is_not_made(monkeypatch):
    monkeypatch.setattr("privimage.dp.accounting.pld.add_or_remove", lambda *_: 50.0)
    with pytest.raises(UserError, match="disagree"):
        calibrate_noise_multiplier(1.0, 1e-5, 0.01, 10)
    with pytest.raises(UserError, match="disagree"):
        affordable_steps(1.0, 1e-5, SubsampledGaussian(0.01, 2.0, 5))
