import json

import pytest
from rich.console import Console

from privimage.errors import UserError
from privimage.evaluate import accuracy_table, as_json, from_json, score_table, sentences
from privimage.evaluate.result import (
    Accuracy,
    Estimate,
    Evaluation,
    Floor,
    NearDuplicates,
    Score,
    SetScores,
)
from privimage.evaluate.scores import NAMES


def _accuracy(label, value):
    over = Estimate(value, value - 0.05, value + 0.04, "Clopper-Pearson over 100 test images")
    return Accuracy(label, over, over, (value,), None, {"a": value, "b": None}, 10, 100)


def _accuracies(*values):
    labels = {"cnn": "CNN", "mlp": "MLP", "logistic": "logistic regression"}
    return {
        kind: _accuracy(label, value)
        for (kind, label), value in zip(labels.items(), values, strict=True)
    }


def _scores(value, with_floor=True):
    floor = Floor(50, Estimate(1.25, 1.0, 1.5, "t"), Estimate(7.75, 7.0, 8.0, "t"))
    return {
        name: Score(f"{title} (X)", name == "fid", value, 100, 101, floor if with_floor else None)
        for name, title in NAMES.items()
    }


def _evaluation(**changes):
    near = NearDuplicates("public", 9, 8, 7, (0.0, 0.5), (10.0, 20.0), (11.0, 21.0), 0.02)
    values = {
        "seed": 0,
        "repeats": 1,
        "splits": 2,
        "features": None,
        "caveats": ("FID is far too high",),
        "synthetic": SetScores(_accuracies(0.9123, 0.8, 0.7), _scores(3.5), near),
        "pretrained": SetScores(_accuracies(0.5, 0.4, 0.3), _scores(9.5)),
    }
    return Evaluation(**values | changes)


def _lines(table):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return [line.strip() for line in capture.get().splitlines()]


def test_the_table_holds_each_accuracy_before_and_after_with_its_interval():
    lines = _lines(accuracy_table(_evaluation()))
    for words in (
        ("CNN", "50.0%", "91.2% (86.2–95.2)"),
        ("MLP", "40.0%", "80.0%"),
        ("logistic", "30.0%", "70.0%"),
    ):
        line = next(line for line in lines if line.startswith(words[0]))
        assert 0 < line.index(words[1]) < line.index(words[2])
    assert "before" not in "\n".join(_lines(accuracy_table(_evaluation(pretrained=None))))


def test_what_lies_outside_epsilon_is_labelled_where_it_is_shown():
    text = "\n".join(_lines(accuracy_table(_evaluation(ceiling=_accuracies(0.99, 0.98, 0.97)))))
    assert "99.0%" in text
    assert "(OUTSIDE" in text
    assert "OUTSIDE" not in "\n".join(_lines(accuracy_table(_evaluation())))


def test_every_score_stands_beside_its_floor_in_eighty_columns():
    lines = _lines(score_table(_evaluation()))
    assert max(map(len, lines)) <= 80
    title = " ".join(lines)
    assert "scores of 100 synthetic on 101 real images; on the right those at N = 50" in title
    line = next(line for line in lines if line.startswith("FID (X) ↓"))
    assert line.split()[3:] == ["9.5", "3.5", "7.75", "1.25"]
    assert any(line.startswith("precision (X) ↑") for line in lines)
    bare = _evaluation(pretrained=None, synthetic=SetScores(None, _scores(3.5, with_floor=False)))
    line = next(line for line in _lines(score_table(bare)) if line.startswith("FID"))
    assert line.split()[3:] == ["3.5"]


def test_caveats_and_near_duplicates_are_sentences():
    near, caveat = sentences(_evaluation())
    assert "synthetic images 10.0 at least, median 20.0; test images 11.0 and 21.0" in near
    assert "2.0% of the synthetic images are nearer" in near
    assert caveat == "Note: FID is far too high."


def test_json_holds_an_evaluation_and_what_a_ledger_says():
    found = _evaluation(ceiling=_accuracies(0.9, 0.8, 0.7))
    values = json.loads(json.dumps({"epsilon": 1.0} | as_json(found), sort_keys=True))
    assert from_json(values) == found
    for wrong in ({}, values | {"schema": "privimage-evaluation/1"}, values | {"synthetic": 3}):
        with pytest.raises(UserError, match="not of the schema privimage-evaluation/2"):
            from_json(wrong)
