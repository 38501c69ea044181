"""The self-test of a user's own machine: it passes here, and a broken build fails it."""

import json
import re
import time

import pytest
import torch
from planted_bugs import finetuning
from typer.testing import CliRunner

from privimage import cli, doctor, ops, selftest
from privimage.dp import History, Ledger, Plan, SubsampledGaussian
from privimage.recipe import preset
from privimage.run.folder import RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has a plan and no result yet."""
    folder = RunFolder(tmp_path)
    folder.write_recipe(preset("digits", {}))
    with Ledger(folder.ledger) as ledger:
        ledger.set_plan(Plan(10.0, 1e-4, None, SubsampledGaussian(0.2, 2.0, 10)))
    return folder


def _privimage(*arguments):
    return CliRunner().invoke(cli.app, arguments)


def test_it_passes_within_half_a_minute_and_the_ledger_says_so(run):
    began = time.monotonic()
    result = _privimage("selftest", "--privacy", "--device", "cpu", "--run", str(run.path))
    assert time.monotonic() - began < 30
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) == len(selftest.CHECKS)
    history = History.read(run.ledger)
    (record,) = history.selftests
    assert (record.failed, record.build) == ((), ops.describe_build())
    assert history.spent() == []
    shown = _privimage("ledger", "show", str(run.path)).output
    assert "tested    noise, sampling and clipping on cpu" in shown
    verified = json.loads(_privimage("ledger", "verify", str(run.path)).output)
    assert verified["selftests"][0]["failed"] == []
    assert not any("self-test" in problem for problem in verified["problems"])


# The planted bug, and the checks that a build which has it must fail.
@pytest.mark.parametrize(
    ("bug", "failed"),
    [
        ("no noise", {"operators", "noise", "empty batches", "side channels", "secrecy"}),
        ("5 % less noise", {"noise"}),
        ("the same noise in every step", {"noise", "secrecy"}),
        ("a public key", {"secrecy"}),
        ("no clipping", {"clipping", "one image"}),
        ("truncated batches", {"sampling", "one image", "secrecy"}),
        ("empty batches skipped", {"noise", "empty batches", "secrecy"}),
    ],
)
def test_a_broken_build_fails_it(monkeypatch, bug, failed):
    places, attribute, change, _ = finetuning.BUGS[bug]
    for place in places if isinstance(places, tuple) else (places,):
        monkeypatch.setattr(place, attribute, change)
    found = {outcome.name for outcome in selftest.run(CPU) if outcome.problem}
    assert found
    assert found <= failed
    assert found & (failed - {"operators"})


@pytest.mark.parametrize("operator", ["random_words", "gaussian_integers", "clipped_sum"])
def test_an_operator_that_differs_from_its_formula_fails_it(monkeypatch, operator):
    right = getattr(ops, operator)

    def wrong(*arguments):
        result = right(*arguments).clone()
        result[0] += 100
        return result

    monkeypatch.setattr(ops, operator, wrong)
    with pytest.raises(selftest.Broken):
        selftest.check_operators(CPU)


def test_a_failure_is_status_1_and_a_problem_of_the_run(monkeypatch, run):
    places, attribute, change, _ = finetuning.BUGS["5 % less noise"]
    monkeypatch.setattr(places, attribute, change)
    arguments = ("selftest", "--privacy", "--json", "--device", "cpu", "--run", str(run.path))
    result = _privimage(*arguments)
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert found["failed"] == ["noise"]
    assert [check["name"] for check in found["checks"] if check["problem"]] == ["noise"]
    monkeypatch.undo()
    result = _privimage("ledger", "verify", str(run.path))
    assert result.exit_code == 1
    assert any("failed: noise" in problem for problem in json.loads(result.output)["problems"])
    assert "FAILED: noise" in _privimage("ledger", "show", str(run.path)).output


def test_a_test_key_of_the_environment_is_found(monkeypatch):
    monkeypatch.setenv("PRIVIMAGE_TEST_KEY", "x")
    with pytest.raises(selftest.Broken, match="the same"):
        selftest.CHECKS["secrecy"](CPU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --privacy"),
        (("--privacy", "--run", "/no/such"), "no run in this folder"),
        (("--privacy", "--device", "tpu"), "--device"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(arguments, message):
    result = _privimage("selftest", *arguments)
    assert message in str(result.exception)


def test_the_doctor_looks_at_every_operator_and_finds_them_right():
    result = _privimage("doctor")
    assert result.exit_code == 0
    assert "native build" in result.output
    looked_at = re.findall(r"self-test cpu +(\w+) +agrees, .* as the reference", result.output)
    assert sorted(looked_at) == sorted(ops._library._SCHEMAS)


@pytest.mark.parametrize(("speedup", "words"), [(3.14, "3.1x as fast"), (0.04, "takes 25.0x as")])
def test_the_doctor_never_says_that_something_is_0_times_as_fast(speedup, words):
    assert words in doctor.in_words("cpu", ops.Check("clipped_sum", True, 0.0, speedup))


def test_the_doctor_ends_with_status_1_and_a_line_where_an_operator_is_wrong(monkeypatch):
    checks = [ops.Check("clipped_sum", False, 0.5, 2.0), ops.Check("random_words", True, 0.0, 2.0)]
    monkeypatch.setattr(ops, "self_test", lambda _: iter(checks))
    result = _privimage("doctor")
    assert result.exit_code == 1
    assert f"{'clipped_sum':<24} DISAGREES by 0.5" in result.output
    (error,) = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert "clipped_sum on cpu disagrees with the reference" in error
    assert "random_words" not in error
