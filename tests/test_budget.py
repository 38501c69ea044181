import json
import re
import sys

import pytest

from privimage import budget, cli
from privimage.budget import Question
from privimage.dp import Gaussian, SubsampledGaussian, epsilon, group_epsilon, replace_one_epsilon
from privimage.errors import UserError
from privimage.promise import rounded_up

STEPS = {"sample_rate": 0.05, "steps": 40, "noise_multiplier": 2.0}
PLAN = SubsampledGaussian(0.05, 2.0, 40)
MECHANISMS = [PLAN, Gaussian(5.0)]


@pytest.fixture
def privimage(monkeypatch, capsys):
    """Runs the command line and gives exit status, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["privimage", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def options(**values):
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def test_a_whole_plan_is_one_json_object_with_the_upper_bound(privimage):
    asked = options(**STEPS, query_noise=5, delta=1e-5)
    status, out, err = privimage("budget", "--json", *asked)
    bounds = epsilon(MECHANISMS, 1e-5)
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "epsilon": bounds.upper,
        "lower": bounds.lower,
        "estimate": bounds.estimate,
        "delta": 1e-5,
        "adjacency": "add_remove_one_image",
    }


def test_the_query_alone_can_be_asked_for(privimage):
    _, out, _ = privimage("budget", "--json", *options(query_noise=5, delta=1e-5))
    assert json.loads(out)["epsilon"] == epsilon([Gaussian(5.0)], 1e-5).upper


def test_a_target_finds_the_noise():
    answer = budget.answer(Question(1e-5, 0.05, 40, query_noise=5.0, target_epsilon=1.5))
    facts = budget.as_json(answer)
    assert 1.47 < facts["epsilon"] <= 1.5
    plan = SubsampledGaussian(0.05, facts["noise_multiplier"], 40)
    assert epsilon([plan, Gaussian(5.0)], 1e-5).upper == facts["epsilon"]


def test_a_target_and_a_noise_find_the_steps():
    question = Question(1e-5, 0.05, None, 2.0, query_noise=5.0, target_epsilon=1.5)
    facts = budget.as_json(budget.answer(question))
    one_more = SubsampledGaussian(0.05, 2.0, facts["steps"] + 1)
    assert facts["epsilon"] <= 1.5 < epsilon([one_more, Gaussian(5.0)], 1e-5).upper


def test_the_text_names_every_promise_and_what_a_query_is_worth(privimage):
    asked = options(**STEPS, query_noise=5, delta=1e-5, group_size=2)
    status, out, err = privimage("budget", *asked)
    assert (status, err) == (0, "")
    for promise in (
        epsilon(MECHANISMS, 1e-5).upper,
        replace_one_epsilon(MECHANISMS, 1e-5),
        group_epsilon(MECHANISMS, 1e-5, 2),
    ):
        assert f"ε ≤ {rounded_up(promise)}" in out
    table = [line.split() for line in out.splitlines() if "%)" in line or "too dear" in line]
    assert [float(row[0]) for row in table] == [2, 5, 10, 20, 50]
    own = next(row for row in table if row[0] == "5")
    assert float(own[1]) == pytest.approx(epsilon([Gaussian(5.0)], 1e-5).upper, abs=1e-3)
    # At its own query noise the plan needs the noise that it has.
    assert float(own[2]) == pytest.approx(2.0, abs=0.02)


def test_by_person_the_numbers_stay_and_the_words_say_so(privimage):
    asked = options(**STEPS, delta=1e-5, group_size=2)
    _, by_image, _ = privimage("budget", *asked)
    _, by_person, _ = privimage("budget", *asked, "--unit", "person")
    assert "one person added to or removed" in by_person
    assert "if one person is replaced by another" in by_person
    assert "for up to 2 persons together" in by_person
    numbers = [re.findall(r"\d+\.\d{4}", text) for text in (by_image, by_person)]
    assert numbers[0] == numbers[1]
    _, out, _ = privimage("budget", "--json", "--unit", "person", *options(**STEPS, delta=1e-5))
    assert json.loads(out)["adjacency"] == "add_remove_one_person"


def test_the_group_is_in_the_json_if_asked_for():
    answer = budget.answer(Question(1e-5, query_noise=5.0))
    facts = budget.as_json(answer, 3)
    assert facts["group_epsilon"] == group_epsilon([Gaussian(5.0)], 1e-5, 3)
    assert facts["group_size"] == 3


def test_the_plot_is_a_picture_and_json_stays_alone(privimage, tmp_path):
    path = tmp_path / "epsilon.png"
    asked = options(**STEPS, delta=1e-5, plot=path)
    status, out, _ = privimage("budget", "--json", *asked)
    assert status == 0
    assert json.loads(out)["epsilon"] > 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": 0}, "--sample-rate must lie in (0, 1]"),
        ({"sample_rate": 1.5}, "--sample-rate must lie in (0, 1]"),
        ({"sample_rate": "nan"}, "--sample-rate must lie in (0, 1]"),
        ({"steps": 0}, "--steps must be a whole number"),
        ({"steps": 1.5}, "--steps"),
        ({"noise_multiplier": 0}, "--noise-multiplier must be a finite number above 0"),
        ({"noise_multiplier": -1}, "--noise-multiplier must be a finite number above 0"),
        ({"noise_multiplier": "inf"}, "--noise-multiplier must be a finite number above 0"),
        ({"query_noise": 0}, "--query-noise must be a finite number above 0"),
        ({"target_epsilon": "nan"}, "--target-epsilon must be a finite number above 0"),
        ({"target_epsilon": 2}, "leave out just one"),
        ({"delta": 0.5}, "delta must lie in"),
        ({"delta": "x"}, "'--delta'"),
        ({"delta": None}, "Missing option '--delta'"),
        ({"sample_rate": None}, "--sample-rate is missing"),
        ({"steps": None}, "--target-epsilon"),
        ({"steps": None, "noise_multiplier": None, "target_epsilon": 1}, "leave out just one"),
        ({"steps": None, "target_epsilon": 0.02}, "does not pay for one step"),
        ({"noise_multiplier": None, "target_epsilon": 0.001}, "no budget for 40 steps"),
        (dict.fromkeys(STEPS), "what is planned?"),
        ({"unit": "family"}, "--unit: 'family' is not known"),
        ({"group_size": 0}, "group_size must be a whole number"),
        ({"plot": "/no/such/folder/x.png"}, "/no/such/folder"),
        ({"sample_rat": 1}, "--sample-rat"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(privimage, change, message):
    values = {**STEPS, "delta": 1e-5, **change}
    given = {name: value for name, value in values.items() if value is not None}
    status, out, err = privimage("budget", "--json", *options(**given))
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_plot_needs_steps(tmp_path):
    with pytest.raises(UserError, match="--plot shows ε over steps"):
        budget.plot(budget.answer(Question(1e-5, query_noise=5.0)), tmp_path / "x.png")
