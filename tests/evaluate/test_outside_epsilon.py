"""What is computed on sensitive images outside ε: off by default, and in the ledger before."""

import json

import pytest

from privimage import assessment, audit, durable, recipe
from privimage.data import ImageSet, digits, image_files, write_parquet
from privimage.dp import History, Ledger, Plan, SubsampledGaussian
from privimage.errors import UserError
from privimage.evaluate import evaluation
from privimage.pipeline.training import Machine
from privimage.progress import Reporter
from privimage.run import context
from privimage.run.folder import RunFolder

CEILING = "accuracy of classifiers trained on the sensitive images, and their number"
DISTANCES = "distances of synthetic images to the nearest sensitive ones"
NO_SCORES = {"evaluation.features": "", "evaluation.classifiers": ("logistic",)}


@pytest.fixture
def run(tmp_path):
    """What is read of a run; its synthetic images are mirrored digits, mislabelled."""
    folder = RunFolder(tmp_path / "run")
    folder.stage("synthetic").mkdir(parents=True)
    folder.write_recipe(recipe.preset("digits", NO_SCORES | {"data.public": ""}))
    names = [str(digit) for digit in range(10)]
    folder.write_declared({"names": names, "public_size": 1437, "public_size_was_declared": False})
    with Ledger(folder.ledger) as ledger:
        ledger.set_plan(Plan(10.0, 1e-4, None, SubsampledGaussian(0.1, 2.0, 5)))
        ledger.step_budget(5).reserve(5)
    real = digits.train()
    wrong = ImageSet(real.images[:300].flip(3), (real.labels[:300] + 1) % 10, tuple(names))
    path = folder.stage("synthetic") / "images.parquet"
    write_parquet(path, image_files(wrong), wrong.names, {})
    folder.stage("evaluation").mkdir()
    for stage in ("synthetic", "evaluation"):
        durable.write_json(folder.stage(stage) / "stage.json", {"recipe": {}, "seconds": 1.0})
    return folder.path


def _assess(path, result=None, **overrides):
    overrides = {f"evaluation.{name}": value for name, value in overrides.items()}
    assessment.assess(path, overrides, Machine("cpu", 2), Reporter(quiet=True), result)


def test_by_default_nothing_looks_at_the_sensitive_images(monkeypatch, run):
    ledger = (run / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(context.Run, "sensitive", property(lambda _: pytest.fail("touched")))
    _assess(run, run.parent / "found.json")
    assert (run / "ledger.jsonl").read_bytes() == ledger
    found = json.loads((run.parent / "found.json").read_text())
    assert (found["ceiling"], found["sensitive_duplicates"], found["outside_epsilon"]) == (
        None,
    ) * 2 + ([],)


@pytest.mark.parametrize(
    ("asked", "recorded"), [("ceiling", CEILING), ("sensitive_duplicates", DISTANCES)]
)
def test_the_ledger_says_it_before_the_images_are_touched(monkeypatch, run, asked, recorded):
    seen = []

    def sensitive(_):
        seen.extend(History.read(run / "ledger.jsonl").outside_epsilon)
        raise InterruptedError

    monkeypatch.setattr(context.Run, "sensitive", property(sensitive))
    with pytest.raises(InterruptedError):
        _assess(run, **{asked: True})
    assert seen == [recorded]
    assert History.read(run / "ledger.jsonl").outside_epsilon == [recorded]


def test_no_report_goes_on_without_it(monkeypatch, run):
    report = run / "report.html"
    report.write_text("the report of before")

    def sensitive(_):
        # Whoever is killed here leaves none.
        assert not report.exists()
        raise InterruptedError

    monkeypatch.setattr(context.Run, "sensitive", property(sensitive))
    with pytest.raises(InterruptedError):
        _assess(run, ceiling=True)
    assert f"without noise: {CEILING}" in report.read_text()


def test_a_ledger_put_back_to_before_it_is_a_problem(run):
    before = (run / "ledger.jsonl").read_bytes()
    _assess(run, ceiling=True)
    newer = "report.html was made under a ledger that is newer"
    assert newer not in str(audit.verify(run)["problems"])
    (run / "ledger.jsonl").write_bytes(before)
    assert newer in str(audit.verify(run)["problems"])


def test_a_report_that_cannot_be_written_is_a_warning(capsys, run):
    (run / "evaluation/metrics.json").write_text('{"schema": "privimage-evaluation/1"}')
    (run / "report.html").write_text("the report of before")
    _assess(run, ceiling=True)
    assert "warning: no report was written: " in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_both_are_labelled_in_the_figures(run):
    path = run.parent / "found.json"
    _assess(run, path, ceiling=True, sensitive_duplicates=True)
    found = json.loads(path.read_text())
    assert found["outside_epsilon"] == [CEILING, DISTANCES]
    assert any("no ε covers them" in caveat for caveat in found["caveats"])
    ceiling, synthetic = (
        accuracy["logistic"]["over_test_images"]["value"]
        for accuracy in (found["ceiling"], found["synthetic"]["accuracy"])
    )
    assert ceiling > 0.9 > synthetic
    assert found["sensitive_duplicates"]["against"] == "sensitive"
    assert found["sensitive_duplicates"]["n_against"] == 1437
    assert found["private"] is True


def test_without_a_ledger_nothing_of_it_can_be_had(monkeypatch, run):
    monkeypatch.setattr(evaluation, "accuracies", lambda *_: pytest.fail("touched"))
    target, overrides = run / "synthetic/images.parquet", {"data.test": "builtin:digits-test"}
    for asked in ("ceiling", "sensitive_duplicates"):
        with pytest.raises(UserError, match="must stand in a run's ledger"):
            assessment.assess(
                target,
                overrides | {f"evaluation.{asked}": True, "evaluation.features": ""},
                Machine("cpu", 2),
                Reporter(quiet=True),
            )


@pytest.mark.parametrize("option", ["test", "public"])
def test_the_sensitive_set_is_not_measured_on_as_if_it_were_public(run, option):
    overrides = {f"data.{option}": "builtin:digits-train"}
    result = run.parent / "found.json"
    with pytest.raises(UserError, match=f"--{option}: .* is the sensitive set itself"):
        assessment.assess(run, overrides, Machine("cpu", 2), Reporter(quiet=True), result)
    assert not result.exists()
