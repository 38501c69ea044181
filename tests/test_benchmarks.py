"""The benchmark of a step: what it times computes the same, and its file keeps what it held."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import dp_step
import records
from methods import OURS, Method, methods
from models import settings
from turns import measure


@pytest.fixture
def setting():
    (found,) = settings(["digits"], [2])
    return dataclasses.replace(found, examples=2)


def _chosen(setting):
    words = ("ordinary channels", OURS, "vmap", "loop")
    return {n: m for n, m in methods(setting).items() if n.startswith(words)}


def test_every_method_has_a_row_of_paired_ratios(setting):
    rows = {row["method"]: row for row in measure(setting, _chosen(setting), rounds=2)}
    assert len(rows) == 5
    assert {row["pairs"] for row in rows.values()} == {2, 3}
    assert rows[OURS]["pairs"] == 3
    for row in rows.values():
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["reference_ms"] > 0
        assert f"K=2 {row['method']}" in dp_step.line(row)
    assert rows[rows[OURS]["reference"]]["ratio"] == 1.0


def test_what_sums_something_else_is_not_timed(setting):
    def twice(pieces):
        step = methods(setting)["vmap(grad)"].build(pieces)
        return dataclasses.replace(step, summed=lambda sums: 2 * step.summed(sums))

    with pytest.raises(SystemExit, match="wrong computes something else"):
        measure(setting, {**_chosen(setting), "wrong": Method(twice)}, rounds=1)


def test_a_method_that_does_not_run_is_named(setting, capsys):
    def broken(pieces):
        raise RuntimeError("no such layer")

    rows = measure(setting, {**_chosen(setting), "broken": Method(broken)}, rounds=1)
    assert "broken" not in {row["method"] for row in rows}
    assert "digits K=2 broken does not run: no such layer" in capsys.readouterr().out


def test_rows_replace_those_of_the_same_identity(tmp_path):
    path, identity = tmp_path / "figures.json", ("model", "draws")
    row = {"model": "a", "draws": 1, "ratio": 3.0}
    records.merge(path, [row, row | {"draws": 8}], identity)
    records.merge(path, [row | {"ratio": 2.0}], identity)
    found = json.loads(path.read_text())["rows"]
    assert [(each["draws"], each["ratio"]) for each in found] == [(1, 2.0), (8, 3.0)]
    path.write_text(json.dumps({"machine": "another", "rows": found}))
    records.merge(path, [row], identity)
    assert [each["draws"] for each in json.loads(path.read_text())["rows"]] == [1]
