"""What a run says, plans and records is the same for D and for D with one image more."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from privimage import pipeline, recipe
from privimage.pipeline import Machine
from privimage.progress import Reporter

_VOLATILE = {"time", "hash", "previous", "nonce", "artifact_sha256"}


class Listener(Reporter):
    """A reporter whose lines are kept."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text="", style=None):
        self.lines.append(str(text))

    def warn(self, text):
        self.lines.append(text)


@pytest.fixture
def sets(tmp_path):
    """Two folders of labelled images that differ by one image of one class."""
    for count in (40, 41):
        for index in range(count):
            folder = tmp_path / f"d{count}" / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return [tmp_path / "d40", tmp_path / "d41"]


def _public(path, sensitive, changes):
    """What a run leaves for others to see: lines, ledger and plan, sizes of its files."""
    values = TINY | {"data.sensitive": str(sensitive), "data.test": "", "data.public": ""}
    chosen = recipe.preset("digits", values | changes)
    listener = Listener()
    pipeline.train(chosen, path, Machine("cpu", 2), listener)
    lines = [line.replace(str(path), "RUN").replace(str(sensitive), "D") for line in listener.lines]
    ledger = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
    ledger = [{k: v for k, v in record.items() if k not in _VOLATILE} for record in ledger]
    sizes = {
        str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*.safetensors")
    }
    declared = (path / "declared.json").read_text()
    toml = (path / "recipe.toml").read_text().replace(str(sensitive), "D")
    return {"lines": lines, "ledger": ledger, "sizes": sizes, "declared": declared, "toml": toml}


def test_public_traces_do_not_depend_on_one_image(sets, tmp_path):
    declared = {"selection.mode": "none", "data.classes": ("a", "b"), "data.public_size": 40}
    first, second = (
        _public(tmp_path / f"run{number}", sensitive, declared)
        for number, sensitive in enumerate(sets)
    )
    assert first == second
    assert len(first["ledger"]) == 1 + 1 + 3 + 2
    assert first["ledger"][0]["type"] == "genesis"
    assert any("for one image" in line for line in first["lines"])
    assert not any(re.search(r"\b41\b", line) for line in second["lines"])


def test_public_traces_do_not_depend_on_one_person(tmp_path):
    """By person it is the number of persons that is declared; that of images never shows."""
    persons = np.array([*range(20), *range(20), 20, 20, 20])
    pixels = np.random.default_rng(0).integers(0, 256, (43, 8, 8), dtype=np.uint8)
    declared = {
        "selection.mode": "none",
        "data.classes": ("a", "b"),
        "data.public_size": 20,
        "data.person": "column:patient",
        "privacy.unit": "person",
    }
    traces = []
    for count in (40, 43):
        path = tmp_path / f"d{count}.npz"
        labels = np.arange(count) % 2
        np.savez(path, images=pixels[:count], labels=labels, patient=persons[:count])
        traces.append(_public(tmp_path / f"run{count}", path, declared))
    assert traces[0] == traces[1]
    assert any("for one person" in line for line in traces[0]["lines"])
    assert not any(re.search(r"\b4[03]\b", line) for line in traces[1]["lines"])


def test_an_undeclared_size_would_show(sets, tmp_path):
    """The test above can fail: the count itself is a number that depends on every image."""
    changes = {"selection.mode": "none", "data.classes": ("a", "b")}
    first, second = (
        _public(tmp_path / f"run{number}", sensitive, changes)
        for number, sensitive in enumerate(sets)
    )
    assert first["lines"] != second["lines"]
    assert first["declared"] != second["declared"]
