import json
import math
from pathlib import Path

import pytest

from privimage.dp import (
    Gaussian,
    SubsampledGaussian,
    affordable_steps,
    calibrate_noise_multiplier,
    epsilon,
)
from privimage.errors import UserError

# id, sample rate, noise multiplier, steps, query's noise multiplier, δ, lower, upper:
# computed with prv-accountant 0.2.0 at an ε error of 0.01 and a δ error of δ / 1000.
SETTINGS = [
    ("A", 0.08192, 10.0, 10000, 50.0, 1e-5, 3.486389328239575, 3.5067769237140842),
    ("B", 1 / 3, 8.0, 150, 484.0, 1e-5, 2.0620974890888677, 2.082349139957358),
    ("C", 0.01, 1.0, 10000, None, 1e-5, 6.177385882745976, 6.198041573748162),
    ("D", 0.02516434232352399, 3.0, 20000, 5.0, 1e-6, 6.248535732890916, 6.26905776840349),
    ("E", 0.001, 0.6, 10000, 2.0, 1e-5, 3.026939031134517, 3.0474816167637244),
    ("F", 1.0, 20.0, 100, 2.0, 1e-6, 3.297452845695545, 3.317753238176413),
    ("G", 0.08192, 20.0, 2000, 20.0, 1e-5, 0.677031725075479, 0.6971274555222023),
    ("H", 0.004266666666666667, 1.1, 14062, None, 1e-5, 2.3714555066103227, 2.391743703695017),
]


def _mechanisms(rate, noise, steps, query):
    queries = [] if query is None else [Gaussian(query)]
    return [SubsampledGaussian(rate, noise, steps), *queries]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_known_settings(setting):
    _, rate, noise, steps, query, delta, lower, upper = setting
    bounds = epsilon(_mechanisms(rate, noise, steps, query), delta)
    assert bounds.lower == pytest.approx(lower, abs=1e-6)
    assert bounds.upper == pytest.approx(upper, abs=1e-6)
    assert bounds.lower <= bounds.estimate <= bounds.upper


def test_closed_form_lies_inside_the_bounds():
    # Setting F has no sub-sampling: one Gaussian with μ² = 100 / 20² + 1 / 2², solved exactly.
    bounds = epsilon(_mechanisms(1.0, 20.0, 100, 2.0), 1e-6)
    assert bounds.lower <= 3.3076007226126483 <= bounds.upper


def test_gaussians_are_merged_exactly():
    split = epsilon([Gaussian(10.0)] * 4, 1e-5)
    assert split == epsilon([Gaussian(5.0)], 1e-5)


def test_equal_steps_are_one_term_however_they_were_reserved():
    whole = epsilon([SubsampledGaussian(0.1, 2.0, 60)], 1e-5)
    assert epsilon([SubsampledGaussian(0.1, 2.0, 20)] * 3, 1e-5) == whole


def test_every_mechanism_counts():
    steps = SubsampledGaussian(0.2, 5.0, 100)
    assert epsilon([steps, Gaussian(5.0)], 1e-5).upper > epsilon([steps], 1e-5).upper + 0.01


def test_nothing_and_no_noise():
    assert epsilon([], 1e-5).upper == 0
    assert epsilon([Gaussian(5.0), SubsampledGaussian(0.1, 0.0, 1)], 1e-5).upper == math.inf


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps", "query", "expected"),
    [
        (10.0, 1e-4, 0.2, 300, 5.0, 1.7464),
        (1.0, 1e-4, 0.2, 300, 10.0, 11.8385),
        (10.0, 1e-5, 1 / 3, 150, None, 2.1920),
        (1.0, 1e-5, 1 / 3, 150, None, 15.4755),
    ],
)
def test_calibration(target, delta, rate, steps, query, expected):
    spent = [] if query is None else [Gaussian(query)]
    noise = calibrate_noise_multiplier(target, delta, rate, steps, spent)
    assert noise == pytest.approx(expected, abs=1e-3)
    upper = epsilon([*spent, SubsampledGaussian(rate, noise, steps)], delta).upper
    assert target - 0.03 < upper <= target


def test_affordable_steps_are_all_or_fewer_but_never_over_budget():
    plan = SubsampledGaussian(0.2, 11.8386, 300)
    assert affordable_steps(1.0, 1e-4, plan, [Gaussian(10.0)]) == 300
    spent = [Gaussian(10.0), Gaussian(10.0)]
    steps = affordable_steps(1.0, 1e-4, plan, spent)
    assert 200 < steps < 300
    assert epsilon([*spent, SubsampledGaussian(0.2, 11.8386, steps)], 1e-4).upper <= 1.0
    assert epsilon([*spent, SubsampledGaussian(0.2, 11.8386, steps + 1)], 1e-4).upper > 1.0
    assert affordable_steps(1.0, 1e-4, plan, [Gaussian(0.5)]) == 0


def test_an_infinite_target_needs_no_noise():
    assert calibrate_noise_multiplier(math.inf, 1e-5, 0.1, 10) == 0


@pytest.mark.parametrize("delta", [0.0, -1.0, 1e-10, 0.5, math.nan])
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
        lambda: SubsampledGaussian(0.1, math.inf, 10),
        lambda: SubsampledGaussian(0.1, 1.0, -1),
        lambda: SubsampledGaussian(0.1, 1.0, 2.5),
        lambda: calibrate_noise_multiplier(-1.0, 1e-5, 0.1, 10),
        lambda: calibrate_noise_multiplier(1.0, 1e-5, 0.1, 10, [Gaussian(0.5)]),
    ],
)
def test_bad_input_is_refused_before_the_accountant_sees_it(wrong):
    with pytest.raises(UserError):
        wrong()


def test_settings_are_those_of_the_shared_fixture():
    fixture = Path(__file__).parents[3] / "shared/fixtures/epsilon.json"
    if not fixture.exists():
        pytest.skip("no ../shared/data")
    kept = {setting[0]: setting[-2:] for setting in SETTINGS}
    for setting in json.loads(fixture.read_text())["settings"]:
        assert kept[setting["id"]] == (setting["prv"]["low"], setting["prv"]["up"])
