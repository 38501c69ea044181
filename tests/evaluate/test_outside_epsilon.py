"""What is computed on sensitive images outside ε: off by default, and in the ledger before."""

import json
import shutil

import pytest
from tiny import TINY

from privimage import assessment, audit, pipeline, recipe, stages
from privimage.dp import History
from privimage.errors import UserError
from privimage.evaluate import evaluation
from privimage.pipeline import Machine
from privimage.progress import Reporter

QUICK = TINY | {"evaluation.features": "", "evaluation.classifiers": ("logistic",)}
CEILING = "accuracy of classifiers trained on the sensitive images, and their number"
DISTANCES = "distances of synthetic images to the nearest sensitive ones"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; tests that use it leave it as it is."""
    path = tmp_path_factory.mktemp("outside") / "run"
    pipeline.train(recipe.preset("digits", QUICK), path, Machine("cpu", 2), Reporter(quiet=True))
    return path


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _assess(path, result=None, **overrides):
    overrides = {f"evaluation.{name}": value for name, value in overrides.items()}
    assessment.assess(path, overrides, Machine("cpu", 2), Reporter(quiet=True), result)


def test_by_default_nothing_looks_at_the_sensitive_images(monkeypatch, copied):
    ledger = (copied / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(stages.Run, "sensitive", property(lambda _: pytest.fail("touched")))
    _assess(copied, copied.parent / "found.json")
    assert (copied / "ledger.jsonl").read_bytes() == ledger
    found = json.loads((copied.parent / "found.json").read_text())
    assert (found["ceiling"], found["sensitive_duplicates"], found["nonprivate"]) == (None,) * 2 + (
        [],
    )


@pytest.mark.parametrize(
    ("asked", "recorded"), [("ceiling", CEILING), ("sensitive_duplicates", DISTANCES)]
)
def test_the_ledger_says_it_before_the_images_are_touched(monkeypatch, copied, asked, recorded):
    seen = []

    def sensitive(_):
        seen.extend(History.read(copied / "ledger.jsonl").nonprivate)
        raise InterruptedError

    monkeypatch.setattr(stages.Run, "sensitive", property(sensitive))
    with pytest.raises(InterruptedError):
        _assess(copied, **{asked: True})
    assert seen == [recorded]
    result = audit.verify(copied)
    assert (result["problems"], list(result["nonprivate"])) == ([], [recorded])


def test_both_are_labelled_in_the_figures(copied):
    path = copied.parent / "found.json"
    _assess(copied, path, ceiling=True, sensitive_duplicates=True)
    found = json.loads(path.read_text())
    assert found["nonprivate"] == [CEILING, DISTANCES]
    assert any("no ε covers them" in caveat for caveat in found["caveats"])
    # Real digits teach more than those of a network that took six steps.
    ceiling, synthetic = (
        accuracy["logistic"]["over_test_images"]["value"]
        for accuracy in (found["ceiling"], found["synthetic"]["accuracy"])
    )
    assert ceiling > 0.9 > synthetic
    assert found["sensitive_duplicates"]["against"] == "sensitive"
    assert found["sensitive_duplicates"]["n_against"] == 1437
    assert found["private"] is True


def test_a_run_can_be_asked_for_it_from_the_start(tiny, train, copied):
    changed = recipe.preset("digits", QUICK | {"evaluation.ceiling": True})
    train(changed, copied, from_stage="evaluation")
    found = json.loads((copied / "evaluation/metrics.json").read_text())
    assert found["nonprivate"] == [CEILING]
    assert found["ceiling"]["logistic"]["n_training"] == 1437
    assert audit.verify(copied)["problems"] == []


def test_without_a_ledger_nothing_of_it_can_be_had(monkeypatch, finished):
    monkeypatch.setattr(evaluation, "accuracies", lambda *_: pytest.fail("touched"))
    target, overrides = finished / "synthetic/images.parquet", {"data.test": "builtin:digits-test"}
    for asked in ("ceiling", "sensitive_duplicates"):
        with pytest.raises(UserError, match="must stand in a run's ledger"):
            assessment.assess(
                target,
                overrides | {f"evaluation.{asked}": True, "evaluation.features": ""},
                Machine("cpu", 2),
                Reporter(quiet=True),
            )
