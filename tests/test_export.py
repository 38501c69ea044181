"""What a run gives away: every form holds the same images, labels and names, and a data card."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from privimage.data import ImageShape, load_sensitive
from privimage.dp import History, Ledger
from privimage.errors import UserError
from privimage.export import export
from privimage.progress import Reporter

FORMS = ("folder", "zip", "parquet", "npz")
SHAPE = ImageShape(8, 1)


@pytest.fixture(scope="module")
def run(finished):
    return finished[1]


@pytest.fixture(scope="module")
def made(run):
    return load_sensitive(str(run / "synthetic/images.parquet"), SHAPE, None)


def _export(run, form, out, count=None):
    export(run, form, out, Reporter(quiet=True), count)
    return {"folder": out, "zip": out, "npz": out / "images.npz"}.get(form, out / "images.parquet")


@pytest.mark.parametrize("form", ["npz", "diffusers"])
def test_a_card_is_utf_8_in_a_locale_that_is_not(run, tmp_path, monkeypatch, form):
    real = Path.write_text

    def in_ascii(path, text, encoding="ascii", **options):
        return real(path, text, encoding, **options)

    monkeypatch.setattr(Path, "write_text", in_ascii)
    export(run, form, tmp_path / "x", Reporter(quiet=True), None)
    assert "ε" in (tmp_path / "x/README.md").read_text(encoding="utf-8")


def _by_label(images):
    order = torch.sort(images.labels, stable=True).indices
    return images.images[order], images.labels[order]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [None, 25])
def test_every_form_holds_every_bit(run, made, tmp_path, form, count):
    path = _export(run, form, tmp_path / f"out.{form}", count)
    found = load_sensitive(str(path), SHAPE, made.names)
    wanted = type(made)(made.images[:count], made.labels[:count], made.names)
    assert found.names == made.names
    for one, other in zip(_by_label(found), _by_label(wanted), strict=True):
        assert torch.equal(one, other)


def _card(run, form, out):
    _export(run, form, out)
    if form == "zip":
        with zipfile.ZipFile(out) as archive:
            return archive.read("README.md").decode()
    return (out / "README.md").read_text()


@pytest.mark.parametrize("form", FORMS)
def test_the_card_says_what_the_ledger_says(finished, tmp_path, form):
    chosen, run = finished
    card = _card(run, form, tmp_path / f"out.{form}")
    history = History.read(run / "ledger.jsonl")
    _, header, body = card.split("---\n", 2)
    assert f"| ε, an upper bound | {history.epsilon(1e-4).upper} |" in body
    assert "| δ | 0.0001 |" in body
    assert "`add_remove_one_image`" in body
    assert "one image, with its label" in body
    assert "prv-accountant 0.2.0 (upper bound)" in body
    assert f"`{history.head}`" in body
    assert f"`{chosen.sha256}`" in body
    assert "computed on the sensitive images outside this run" in body
    assert "NOT PRIVATE" not in body
    fields = yaml.safe_load(header)
    assert "license" not in fields
    assert fields["size_categories"] == ["n<1K"]
    assert fields["task_categories"] == ["image-classification"]
    assert fields["dataset_info"]["splits"][0]["num_examples"] == 60
    names = fields["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]
    assert names == {str(label): str(label) for label in range(10)}


def test_the_pipeline_writes_a_card_beside_the_images(run):
    assert {path.name for path in (run / "synthetic").iterdir()} == {
        "images.parquet",
        "README.md",
        "stage.json",
    }
    about = json.loads(pq.read_schema(run / "synthetic/images.parquet").metadata[b"privimage"])
    card = (run / "synthetic/README.md").read_text()
    for name in ("epsilon", "recipe_sha256", "ledger_head", "accountant"):
        assert str(about[name]) in card


def test_a_run_without_a_promise_has_a_card_that_says_so(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    with Ledger(copy / "ledger.jsonl") as ledger:
        ledger.mark_not_private("test key")
    card = _card(copy, "parquet", tmp_path / "out")
    assert "**NOT PRIVATE.**" in card
    assert "- test key" in card
    assert "# Synthetic images, not private" in card
    for words in ("upper bound |", "covered", "with noise", "differential-privacy", "The promise"):
        assert words not in card


def test_numpy_reads_the_archive_without_unpickling(run, made, tmp_path):
    with np.load(_export(run, "npz", tmp_path / "out"), allow_pickle=False) as arrays:
        assert arrays["images"].shape == (60, 8, 8)
        assert np.array_equal(arrays["labels"], made.labels.numpy())
        assert arrays["names"].tolist() == list(made.names)


def test_the_zip_is_whole_and_its_directory_right(run, tmp_path):
    with zipfile.ZipFile(_export(run, "zip", tmp_path / "x.zip")) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[:3] == ["README.md", "0/0000000.png", "1/0000001.png"]
        assert len(archive.namelist()) == 61
        assert Image.open(io.BytesIO(archive.read("3/0000013.png"))).size == (8, 8)


@pytest.mark.parametrize("form", FORMS)
def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch, form):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("privimage.durable.sync", fail)
    with pytest.raises(UserError, match="No space left on device"):
        _export(run, form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_said(run, tmp_path):
    (tmp_path / "there").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        _export(run, "zip", tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"
    with pytest.raises(UserError, match="did you mean 'folder'"):
        _export(run, "foldr", tmp_path / "x")
    with pytest.raises(UserError, match="the run has made 60 images"):
        _export(run, "zip", tmp_path / "x", 61)
    with pytest.raises(UserError, match="no run in this folder"):
        _export(tmp_path, "zip", tmp_path / "x")


def test_images_that_the_ledger_does_not_know_are_not_given_away(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    with (copy / "synthetic/images.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"is not what .* says was released"):
        _export(copy, "zip", tmp_path / "x.zip")
