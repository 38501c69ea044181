import pytest

from privimage.dp import Gaussian, Ledger, Plan, SubsampledGaussian, compose, epsilon
from privimage.errors import UserError

STEPS = SubsampledGaussian(0.2, 3.0, 20)


def _run(path, name, delta=1e-4, unit="image"):
    with Ledger(str(path / name), unit) as ledger:
        ledger.set_plan(Plan(10.0, delta, 5.0, STEPS))
        ledger.reserve_query()
        ledger.step_budget(20).reserve(20)
    return path / name


def test_several_runs_are_accounted_for_together(tmp_path):
    first, second = _run(tmp_path, "first"), _run(tmp_path, "second", delta=1e-5)
    result = compose([first, second])
    assert compose([str(first), second]) == result
    both = [Gaussian(5.0), STEPS] * 2
    assert result.epsilon == epsilon(both, 1e-5).upper
    assert (result.delta, result.unit, result.adjacency) == (1e-5, "image", "add_remove_one_image")
    alone = epsilon([Gaussian(5.0), STEPS], 1e-5).upper
    assert result.epsilons == (alone, alone)
    # More than either, less than the sum.
    assert alone < result.epsilon < 2 * alone
    assert compose([first, second], 1e-4).epsilon == epsilon(both, 1e-4).upper
    with Ledger(second) as ledger:
        ledger.mark_not_private("test key")
    spoilt = compose([first, second])
    assert (spoilt.epsilon, spoilt.epsilons) == (None, (alone, None))
    assert spoilt.not_private_because == (f"{second}: test key",)


def test_what_can_not_be_composed_is_one_clear_line(tmp_path):
    first = tmp_path / "first"
    person = tmp_path / "person"
    for path, unit in ((first, "image"), (person, "person")):
        with Ledger(path, unit) as ledger:
            ledger.set_plan(Plan(10.0, 1e-4, None, STEPS))
    for paths, message in (
        ([first, tmp_path / "." / "first"], "name every run once"),
        ([], "name every run once"),
        ([first, person], "different units"),
        ([first, tmp_path / "missing"], "no readable ledger"),
    ):
        with pytest.raises(UserError, match=message):
            compose(paths)
    with pytest.raises(UserError, match="delta must lie"):
        compose([first], 0.5)
