"""What a run says, plans and records is the same for D and for D with one image more."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from privimage import audit, pipeline, recipe
from privimage.dp import Ledger
from privimage.pipeline.schedule import Scope
from privimage.pipeline.training import Machine
from privimage.progress import Reporter

_VOLATILE = {"time", "hash", "previous", "nonce", "artifact_sha256", "ledger_head"}
# What a side channel tells anyway; KNOWN_VULNERABILITIES.md says so.
_VOLATILE |= {"seconds", "peak_memory_mib", "files", "data.sensitive"}


@pytest.fixture(autouse=True)
def _nothing_is_said_by_the_clock(monkeypatch):
    """The forecast, on random images, and when a line is due tell how busy the machine is."""
    monkeypatch.setattr("privimage.pipeline.training._say_forecast", lambda *_: None)
    monkeypatch.setattr("privimage.progress._LINE_INTERVAL_S", math.inf)


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


def _without_times(value):
    """JSON without what differs between two runs on the same data: times, hashes, nonces."""
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _VOLATILE}
    return value


def _public(path, sensitive, capfd, **changes):
    """What `privimage train` leaves for others to see: what it prints, and every file.

    Of JSON the content; of other files their size, but for a release: images, the page with them.
    """
    values = TINY | {"data.sensitive": str(sensitive), "data.test": "", "data.public": ""}
    values |= {"selection.mode": "none", "data.classes": ("a", "b")}
    capfd.readouterr()
    pipeline.train(recipe.preset("digits", values | changes), path, Machine("cpu", 2), Reporter())
    printed = [text.replace(str(path), "RUN") for text in capfd.readouterr()]
    printed = [re.sub(r"\d+ s to go", "", text.replace(str(sensitive), "D")) for text in printed]
    files = {}
    for file in (file for file in path.rglob("*") if file.is_file()):
        name = str(file.relative_to(path))
        files[name] = file.stat().st_size
        if file.suffix in (".json", ".jsonl"):
            lines = file.read_text().splitlines() if name == "ledger.jsonl" else [file.read_text()]
            files[name] = [_without_times(json.loads(line)) for line in lines]
        elif file.suffix == ".toml":
            files[name] = file.read_text().replace(str(sensitive), "D")
        elif file.suffix in (".parquet", ".png", ".html"):
            files[name] = "a release"
    return {"printed": printed, "files": files}


def test_public_traces_do_not_depend_on_one_image(sets, tmp_path, capfd):
    first, second = (
        _public(tmp_path / f"run{number}", sensitive, capfd, **{"data.public_size": 40})
        for number, sensitive in enumerate(sets)
    )
    assert first == second
    out, err = first["printed"]
    assert "for one image" in out
    assert "DP fine-tuning: 6/6" in out
    assert err == ""
    assert not re.search(r"\b41\b", second["printed"][0])
    assert len(first["files"]["ledger.jsonl"]) == 1 + 1 + 3 + 2
    assert {"finetune/network.safetensors", "finetune/stage.json", "declared.json"} <= set(
        first["files"]
    )


def test_public_traces_do_not_depend_on_one_person(tmp_path, capfd):
    """By person it is the number of persons that is declared; that of images never shows."""
    persons = np.array([*range(20), *range(20), 20, 20, 20])
    pixels = np.random.default_rng(0).integers(0, 256, (43, 8, 8), dtype=np.uint8)
    declared = {"data.public_size": 20, "data.person": "column:patient", "privacy.unit": "person"}
    traces = []
    for count in (40, 43):
        path = tmp_path / f"d{count}.npz"
        labels = np.arange(count) % 2
        np.savez(path, images=pixels[:count], labels=labels, patient=persons[:count])
        traces.append(_public(tmp_path / f"run{count}", path, capfd, **declared))
    assert traces[0] == traces[1]
    out, err = traces[1]["printed"]
    assert "for one person" in out
    assert err == ""
    assert not re.search(r"\b(21|40|43)\b", out)


def test_an_undeclared_size_would_show(sets, tmp_path, capfd):
    """The test above can fail: the count itself is a number that depends on every image."""
    first, second = (
        _public(tmp_path / f"run{number}", sensitive, capfd)
        for number, sensitive in enumerate(sets)
    )
    assert first["printed"] != second["printed"]
    assert first["files"]["declared.json"] != second["files"]["declared.json"]


def test_what_lies_outside_epsilon_is_said_wherever_epsilon_is(sets, tmp_path, capfd):
    path, what = tmp_path / "run", "accuracy of a classifier trained on the sensitive images"
    _public(path, sets[0], capfd)
    with Ledger(path / "ledger.jsonl") as ledger:
        ledger.record_outside_epsilon(what)
        ledger.record_outside_epsilon(what)
        assert ledger.outside_epsilon == [what]
    _public(path, sets[0], capfd)  # all is done: it only says again what came out
    pipeline.train(
        recipe.from_toml((path / "recipe.toml").read_text(), "recipe.toml"),
        path,
        Machine("cpu", 2),
        Reporter(),
        Scope(from_stage="evaluation"),
    )
    out = capfd.readouterr().out
    promise = next(number for number, line in enumerate(out.splitlines()) if "ε = " in line)
    assert f"Outside ε, computed without noise: {what}." in out.splitlines()[promise + 1]
    assert json.loads((path / "evaluation/metrics.json").read_text())["outside_epsilon"] == [what]
    assert audit.verify(path)["outside_epsilon"] == (what,)
    assert list(audit.show(path))[-1] == f"Not covered by ε, computed without noise: {what}."
