"""The report says what the ledger says, brings all it needs, and tells only what is paid for."""

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from privimage import audit, durable
from privimage.dp import History, Ledger
from privimage.errors import UserError
from privimage.evaluate.result import Accuracy, Estimate, Evaluation, Floor, Score, SetScores
from privimage.progress import Stopped
from privimage.promise import rounded_up
from privimage.report import facts, write_report
from privimage.run.folder import RunFolder

_VOID = {"meta", "img", "br", "link", "input"}


class _Page(HTMLParser):
    """Text, and the tags, of a page whose tags must close."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.attributes, self._open = [], [], [], []
        self.feed(text)
        assert self._open == []

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(finished):
    return _Page((finished[1] / "report.html").read_text())


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "run")


def _written(run):
    return _Page(write_report(run).read_text())


def test_it_says_what_the_ledger_says(finished, page):
    found = audit.verify(finished[1])
    assert f"{found['epsilon_lower']:.4f} and {rounded_up(found['epsilon'])}" in page.text
    assert found["epsilon"] <= float(page.text.split("ε ≤ ")[1].split()[0])
    assert "1 query and 6 steps were reserved" in page.text
    assert History.read(finished[1] / "ledger.jsonl").head in page.text
    assert found["ledger_head"] == History.read(finished[1] / "ledger.jsonl").head
    assert found["recipe_sha256"] == finished[0].sha256 in page.text
    assert "one image, with its label" in page.text
    assert "✓ verified" in page.text
    day = json.loads((finished[1] / "ledger.jsonl").read_text().splitlines()[-1])["time"][:10]
    assert f"state of the ledger: {day}" in page.text
    assert "(privimage budget --group-size )" in page.text.replace("( ", "(")


def test_it_brings_all_it_needs(page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    # A curve of ε, one of the pre-training loss, ten labels with public and ten with own images.
    assert page.tags.count("svg") == 2
    assert page.tags.count("img") == 20


def test_where_the_sensitive_images_lie_is_not_told(page):
    assert "builtin:digits-train" not in page.text
    assert "data.image_size = 8" in page.text


def test_what_is_outside_epsilon_is_marked(page, copied):
    before, _ = page.text.split("How long the stages that see sensitive images took")
    assert before.endswith("not covered by ε ")
    with Ledger(copied / "ledger.jsonl") as ledger:
        ledger.record_outside_epsilon("accuracy <on> the sensitive images")
    text = _written(copied).text
    assert "without noise: accuracy <on> the sensitive images." in text
    assert "They are not on this page, and ε does not cover them: don't release them." in text


def test_an_evaluation_of_the_sensitive_images_is_told_as_one(page, copied):
    measured = "The synthetic images were measured on images that their owner declared public"
    assert f"{measured}. public images only" in page.text
    assert "release neither" not in page.text
    with Ledger(copied / "ledger.jsonl") as ledger:
        ledger.record_outside_epsilon("accuracy of classifiers trained on the sensitive images")
    path = copied / "evaluation/metrics.json"
    found = durable.read_json(path)
    durable.write_json(path, found | {"ceiling": found["synthetic"]["accuracy"]})
    text = _written(copied).text
    assert (
        f"{measured}, and on the sensitive ones without noise. sees sensitive images, OUTSIDE ε"
    ) in text
    assert "ε does not cover them: release neither." in text


def test_without_test_images_nothing_was_measured_on_them(copied):
    path = copied / "evaluation/metrics.json"
    found = durable.read_json(path)
    near = found["synthetic"]["near_duplicates"] | {"n_test": 0, "test": None}
    found["synthetic"] = {"near_duplicates": near | {"closer_than_test": None}}
    durable.write_json(path, found)
    text = _written(copied).text
    assert (
        "There were no test images; the synthetic images were compared with the public ones only."
    ) in text
    assert "declared public." not in text
    assert "Nearest public image, in grey levels" in text
    durable.write_json(path, found | {"sensitive_duplicates": near, "synthetic": {}})
    assert "compared with the sensitive ones, without noise." in _written(copied).text
    durable.write_json(path, found | {"synthetic": {}})
    assert "Nothing was measured." in _written(copied).text


def test_no_promise_is_no_promise(page, copied):
    with Ledger(copied / "ledger.jsonl") as ledger:
        ledger.mark_not_private("test key")
    text = _written(copied).text
    assert "Not private" in text
    assert "test key" in text
    assert text.count("sees sensitive images, nothing hides them") == 2
    told, before = (it.split("The ledger as a story")[0] for it in (text, page.text))
    for words in (
        *("ε ≤", "How ε was spent", "noise. ", "noise added", "paid for with ε", "noisy"),
        *(
            "no single vote can be made out",
            "The promise is for one image",
            "covered",
            "is between",
        ),
    ):
        assert words.lower() in before.lower()
        assert words.lower() not in told.lower()


def test_a_changed_file_is_a_problem_that_shows(copied):
    (copied / "selection/selection.json").write_text(
        (copied / "selection/selection.json").read_text() + " "
    )
    text = _written(copied).text
    assert "It does not hold" in text
    assert "selection.json is not what its stage wrote" in text


def test_a_label_shows_its_classes_even_if_others_have_all_that_it_voted_for(copied):
    run = RunFolder(copied)
    counts = durable.read_tensors(run.stage("query") / "histogram.safetensors")["histogram"]
    path = run.stage("selection") / "selection.json"
    selection = durable.read_json(path)
    last = torch.sort(counts[0]).indices[:3].tolist()
    others = {index: label for index, label in selection["label_of"].items() if label}
    durable.write_json(path, selection | {"label_of": others | dict.fromkeys(map(str, last), 0)})
    examples = run.stage("pretrain") / "examples.safetensors"
    durable.write_tensors(examples, {str(index): torch.zeros(2, 1, 8, 8) for index in last})
    row = facts.query_rows(run, tuple("0123456789"))[0]
    assert [bar.chosen for bar in row.bars] == 6 * [False] + 3 * [True]
    assert [bar.count for bar in row.bars] == sorted(bar.count for bar in row.bars)[::-1]
    assert row.picture


def test_a_selection_that_fell_back_is_not_told_as_one(page, copied):
    assert "classes with the highest noisy counts were chosen" in page.text
    path = copied / "selection/selection.json"
    durable.write_json(path, durable.read_json(path) | {"fell_back": True})
    text = _written(copied).text
    said = "The counts did not rise above the noise, so all public classes were used."
    assert text.count(said) == 2
    assert "were chosen" not in text
    assert "are marked" not in text
    durable.write_json(path, durable.read_json(path) | {"fell_back": False, "mode": "all"})
    assert "All public classes were used." in _written(copied).text


def test_curves_have_names_for_who_cannot_see_them(page):
    names = [value for name, value in page.attributes if name == "aria-label"]
    assert names == [
        "Curve: ε at δ = 0.0001, over fine-tuning steps reserved",
        "Curve: loss, public images, over pre-training steps",
    ]
    assert page.attributes.count(("role", "img")) == 2


def test_names_are_text(copied):
    declared = json.loads((copied / "declared.json").read_text())
    declared["names"][3] = "<b onclick=x>&"
    declared["names"][4] = "caf\udce9"  # A folder whose name is no UTF-8.
    (copied / "declared.json").write_text(json.dumps(declared))
    page = _written(copied)
    assert "<b onclick=x>&" in page.text
    assert not [name for name, _ in page.attributes if name == "onclick"]


def test_epsilon_rises_to_what_is_stated(finished):
    history = History.read(finished[1] / "ledger.jsonl")
    steps, epsilons = facts.epsilon_curve(history)
    assert (steps[0], steps[-1]) == (0, 6)
    assert 0 < epsilons[0] < epsilons[1]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == pytest.approx(history.epsilon(1e-4).upper, abs=0.02)


def test_numbers_are_drawn_with_what_belongs_beside_them():
    over = Estimate(0.953, 0.93, 0.97, "t")
    accuracy = Accuracy("ResNet-9", over, over, (0.953,), None, {}, 3000, 360)
    ceiling = replace(accuracy, over_test_images=Estimate(0.99, None, None, "t"))
    floor = Floor(180, Estimate(3.0, None, None, "t"), Estimate(14.0, None, None, "t"))
    fid = Score("FID (EfficientNet-Lite0)", True, 12.345, 3000, 360, floor)
    scores = {"precision": Score("precision (X)", False, 0.5, 3000, 360, None), "fid": fid}
    now = SetScores({"resnet9": accuracy}, scores)
    before = SetScores(None, {"fid": replace(fid, value=99.0)})
    found = Evaluation(0, 1, 2, None, (), now, before, ceiling={"resnet9": ceiling})
    rows = list(facts.metrics(found))
    assert [row.label for row in rows] == [
        *("accuracy, ResNet-9", "FID (EfficientNet-Lite0)", "precision (X)")
    ]
    assert [(row.before, row.value) for row in rows] == [
        *(("", "95.3 %"), ("99", "12.3"), ("", "0.5"))
    ]
    assert "360 real test images; 95 % interval 93.0 % to 97.0 %" in rows[0].note
    assert "99.0 % if trained on the sensitive images themselves, OUTSIDE ε" in rows[0].note
    assert "with 180 on either side 14, real against real 3; lower is better" in rows[1].note
    assert rows[2].note.endswith("higher is better")


def test_what_must_be_said_of_the_numbers_stands_on_the_page(page):
    assert "Nearest public image, in grey levels" in page.text
    assert "not to be compared with those of papers" in page.text


def test_an_evaluation_of_another_version_is_refused(copied):
    path = copied / "evaluation/metrics.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"schema": "privimage-evaluation/1"}))
    with pytest.raises(UserError, match="evaluate again"):
        write_report(copied)


def test_no_report_stays_beside_what_is_made_anew(tiny, train, copied):
    report, raised = copied / "report.html", tiny(privacy__epsilon=15.0)
    with pytest.raises(Stopped):
        train(raised, copied, from_stage="finetune", patience=0)
    assert not report.exists()
    train(raised, copied)
    assert "ε ≤ 14." in _Page(report.read_text()).text
    # As a kill leaves it after the last stage.
    report.unlink()
    train(raised, copied)
    assert report.exists()


def test_a_run_that_is_not_far_enough_is_refused(copied, tmp_path):
    shutil.rmtree(copied / "synthetic")
    with pytest.raises(UserError, match="no synthetic images yet"):
        write_report(copied)
    with pytest.raises(UserError, match="no run in this folder"):
        write_report(tmp_path)
