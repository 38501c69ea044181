"""Finished parts of an evaluation: used again while they hold, and never of sensitive sets."""

import dataclasses

import pytest
import torch

from privimage.data import ImageSet, subsample
from privimage.evaluate import (
    EvaluationSettings,
    Material,
    Parts,
    Resources,
    classifiers,
    evaluate,
    parts,
)
from privimage.evaluate.parts import digest
from privimage.evaluate.result import Estimate
from privimage.progress import Reporter, Stopped
from privimage.threads import Workers

SETTINGS = EvaluationSettings(("cnn", "logistic"), repeats=1, epochs=2, features="")


def _set(count, seed):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=random, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 2, ("a", "b"))


def _kept(folder, about, value):
    """The kept result about something, and whether it had to be computed."""
    calls = []

    def compute():
        calls.append(about)
        return [Estimate(value, None, 2.0, "t")]

    found = Parts(folder).result("x", list[Estimate], lambda: about, compute)
    return found[0].value, bool(calls)


def test_a_result_is_used_again_while_it_is_about_the_same(tmp_path):
    assert _kept(tmp_path / "parts", {"seed": 1}, 3.0) == (3.0, True)
    assert _kept(tmp_path / "parts", {"seed": 1}, 4.0) == (3.0, False)
    assert _kept(tmp_path / "parts", {"seed": 2}, 4.0) == (4.0, True)
    (tmp_path / "parts/x.json").write_text('{"key": 3')
    assert _kept(tmp_path / "parts", {"seed": 2}, 5.0) == (5.0, True)
    assert _kept(None, {"seed": 2}, 6.0) == (6.0, True)


def test_a_digest_names_images_labels_and_names():
    images = _set(20, 0)
    changed = images.images.clone()
    changed[19, 0, 7, 7] += 1
    others = [
        _set(20, 1),
        ImageSet(changed, images.labels, images.names),
        ImageSet(images.images, 1 - images.labels, images.names),
        ImageSet(images.images, images.labels, ("a", "c")),
        ImageSet(images.images.reshape(20, 1, 4, 16), images.labels, images.names),
    ]
    assert digest(images) == digest(_set(20, 0))
    assert len({digest(images), *map(digest, others)}) == 6


def test_some_are_drawn_by_chance_and_keep_their_order():
    images = _set(50, 0)
    images = dataclasses.replace(images, labels=torch.arange(50))
    chosen = subsample(images, 20, 0, "x")
    assert chosen.labels.tolist() == sorted(set(chosen.labels.tolist()))
    assert torch.equal(chosen.images, images.images[chosen.labels])
    assert chosen.labels.tolist() not in (
        list(range(20)),
        subsample(images, 20, 1, "x").labels.tolist(),
    )
    assert subsample(images, 50, 0, "x") is images


class _StopsAtLogistic(Reporter):
    def stoppable_steps(self, label, total):
        if "logistic" in label:
            raise Stopped(label)
        return super().stoppable_steps(label, total)


def _evaluate(folder, reporter, **changes):
    resources = Resources(torch.device("cpu"), Workers(1), reporter)
    material = Material(**{"synthetic": _set(60, 0), "test": _set(30, 1)} | changes)
    settings = SETTINGS
    if material.sensitive is not None:
        settings = dataclasses.replace(SETTINGS, ceiling=True, sensitive_duplicates=True)
    return evaluate(material, settings, 0, resources, Parts(folder))


def test_a_stopped_evaluation_goes_on_from_what_was_finished(tmp_path, monkeypatch):
    whole = _evaluate(None, Reporter(quiet=True))
    with pytest.raises(Stopped, match="logistic"):
        _evaluate(tmp_path, _StopsAtLogistic(quiet=True))
    assert [file.name for file in tmp_path.iterdir()] == ["accuracy-cnn.json"]
    monkeypatch.setattr(classifiers, "_networks", lambda *_: pytest.fail("trained again"))
    assert _evaluate(tmp_path, Reporter(quiet=True)) == whole
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        _evaluate(tmp_path, Reporter(quiet=True), synthetic=_set(60, 3))


def test_nothing_of_sensitive_images_is_kept_not_even_a_hash(tmp_path, monkeypatch):
    sensitive, hashed = _set(44, 5), []
    for module in (classifiers, parts):
        monkeypatch.setattr(module, "digest", lambda images: hashed.append(images) or "0")
    found = _evaluate(tmp_path, Reporter(quiet=True), sensitive=sensitive)
    assert found.ceiling["cnn"].n_training == 44
    assert found.sensitive_duplicates is not None
    assert {len(images) for images in hashed} == {60, 30}
    assert {file.name for file in tmp_path.iterdir()} == {
        *("accuracy-cnn.json", "accuracy-logistic.json")
    }


def test_a_classifier_is_trained_on_no_more_than_was_said():
    settings = dataclasses.replace(SETTINGS, classifiers=("logistic",), most_training_images=25)
    resources = Resources(torch.device("cpu"), Workers(1), Reporter(quiet=True))
    found = evaluate(Material(_set(60, 0), _set(30, 1)), settings, 0, resources, Parts())
    assert found.synthetic.accuracy["logistic"].n_training == 25


def test_damaged_test_images_are_told_beside_the_figures(tmp_path):
    found = _evaluate(
        tmp_path, Reporter(quiet=True), test=dataclasses.replace(_set(30, 1), damaged=2)
    )
    assert "2 of 32 test images can't be decoded: left out" in found.caveats
