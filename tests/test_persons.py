"""A run whose unit of privacy is a person: every statement says so, and it stays so."""

import html
import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import TINY

from privimage import audit, pipeline, recipe
from privimage.dp import Ledger, Plan, SubsampledGaussian
from privimage.errors import UserError
from privimage.pipeline.schedule import Scope
from privimage.pipeline.training import Machine
from privimage.progress import Reporter

PERSONS = 30


class Listener(Reporter):
    """A reporter whose lines are kept."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text="", style=None):
        self.lines.append(str(text))


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """A recipe for a few random images of 30 persons, of whom some have one and one has 40."""
    path = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(0)
    sizes = [*[1, 2, 5] * 9, 1, 1, 40]
    persons = random.permutation(np.repeat(np.arange(PERSONS), sizes))
    for name, labels, extra in (
        ("sensitive", np.arange(len(persons)) % 2, {"names": ["a", "b"], "patient": persons}),
        ("public", np.arange(200) % 10, {}),
    ):
        images = random.integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
        np.savez(path / f"{name}.npz", images=images, labels=labels, **extra)
    return TINY | {
        "data.sensitive": str(path / "sensitive.npz"),
        "data.public": str(path / "public.npz"),
        "data.test": "",
        "data.person": "column:patient",
        "privacy.unit": "person",
        "privacy.delta": 1e-3,
        "finetune.sample_rate": 0.2,
    }


def _train(values, path, from_stage=None, **changes):
    listener = Listener()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    chosen = recipe.preset("digits", values | changes)
    pipeline.train(chosen, path, Machine("cpu", 2), listener, Scope(from_stage))
    return listener.lines


@pytest.fixture(scope="module")
def finished(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "persons"
    return path, _train(values, path)


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_every_statement_says_person(finished):
    path, lines = finished
    text = "\n".join(lines)
    assert f"{PERSONS} persons (column:patient), a number treated as public" in text
    assert "at δ = 0.001 for one person: query σ" in text
    assert "with all images of any one person added or removed" in text
    declared = json.loads((path / "declared.json").read_text())
    assert (declared["unit"], declared["person"]) == ("person", "column:patient")
    assert declared["public_size"] == PERSONS
    metrics = json.loads((path / "evaluation/metrics.json").read_text())
    promise = json.loads(pq.read_schema(path / "synthetic/images.parquet").metadata[b"privimage"])
    result = audit.verify(path)
    for statement in (metrics, promise, result):
        assert (statement["unit"], statement["adjacency"]) == ("person", "add_remove_one_person")
    assert result["problems"] == []
    shown = "\n".join(audit.show(path))
    assert "unit person, add_remove_one_person" in shown
    assert "at δ = 0.001 for one person" in shown
    assert "1 vote an image, clipped by person" in shown
    page = " ".join(re.sub("<[^>]*>", "", (path / "report.html").read_text()).split())
    assert "a person's votes together count at most as those of one image" in html.unescape(page)
    assert "every person's influence on a step was clipped" in html.unescape(page)
    assert f"the number of persons ({PERSONS})" in page
    assert "persons named bycolumn:patient" in page
    assert "every image" not in page
    for said in (page, (path / "synthetic/README.md").read_text()):
        assert "A person replaced by another rather than added or removed" in said
    composed = audit.compose([path], None)
    assert composed["unit"] == "person"
    assert "all images of any one person" in composed["sentence"]


def test_runs_by_person_and_by_image_are_not_composed(finished, copied):
    (copied / "ledger.jsonl").unlink()
    with Ledger(copied / "ledger.jsonl") as ledger:
        ledger.set_plan(Plan(10.0, 1e-3, None, SubsampledGaussian(0.2, 3.0, 6)))
    with pytest.raises(UserError, match=r"different units \(image, person\)"):
        audit.compose([finished[0], copied])


BY_IMAGE = {"data__person": "", "privacy__unit": "image"}
OTHERS = {"data__person": "column:labels"}


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (None, BY_IMAGE, "privacy.unit: person → image"),
        ("query", BY_IMAGE, "this ledger is by person, so nothing can be spent by image"),
        (None, OTHERS, "data.person: column:patient → column:labels"),
        ("query", OTHERS, "for the persons of --person column:patient, not column:labels"),
    ],
)
def test_another_unit_or_other_persons_are_refused(values, copied, stage, changes, message):
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        _train(values, copied, stage, privacy__epsilon=30.0, **changes)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("fact", ["persons", "labels"])
def test_a_set_that_changed_under_a_run_is_refused(values, copied, fact):
    """As if the files had changed since under the same path."""
    declared = json.loads((copied / "declared.json").read_text())
    if fact == "persons":
        changes, message = {"public_size": PERSONS + 1}, "begun for 31 persons, and .* has 30 now"
    else:
        changes, message = {"names": ["b", "a"]}, "labels .* 'query' was made for"
    (copied / "declared.json").write_text(json.dumps(declared | changes))
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=message) as caught:
        _train(values, copied, "finetune", privacy__epsilon=30.0)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before


def test_a_recipe_that_is_not_its_ledger_s_is_a_problem(values, copied):
    changed = recipe.preset("digits", values | {"privacy.unit": "image", "data.person": ""})
    (copied / "recipe.toml").write_text(changed.toml())
    problems = audit.verify(copied)["problems"]
    assert problems == ["the run is by image, its ledger by person"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__person": ""}, "--unit person: say what names the person"),
        ({"privacy__unit": "image"}, "--person column:patient has no effect by image"),
        ({"privacy__unit": "family"}, "privacy.unit: 'family' is not known"),
        ({"data__person": "patient"}, "expected column:NAME"),
        ({"data__person": "column:doctor"}, "has no 'doctor'"),
        ({"data__person": "folder:1"}, "names no persons by folder:1"),
        ({"data__sensitive": "builtin:digits-train"}, "names no persons by column:patient"),
        ({"data__public_size": 2000}, r"1 / 2000 \(one over .* persons\)"),
    ],
)
def test_a_mistake_is_found_before_anything_is_spent(values, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        _train(values, tmp_path / "run", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
