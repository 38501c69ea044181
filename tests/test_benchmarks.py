"""The benchmark of a step: what it times computes the same, and its file keeps what it held."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import dp_step
import records
from step.methods import ORDINARY, OURS, Method, methods
from step.models import settings
from step.steps import Step
from step.turns import measure


def test_every_method_that_runs_has_a_row_of_paired_ratios(capsys):
    (setting,) = settings(["digits"], [2])
    setting = dataclasses.replace(setting, examples=2)
    words = ("ordinary channels", OURS, "vmap", "loop")
    chosen = {n: m for n, m in methods(setting).items() if n.startswith(words)}

    def broken(pieces):
        raise RuntimeError("no such layer")

    rows = {r["method"]: r for r in measure(setting, chosen | {"broken": Method(broken)}, 2)}
    assert set(rows) == set(chosen)
    assert "digits K=2 broken does not run: no such layer" in capsys.readouterr().out
    assert {name: row["pairs"] for name, row in rows.items()} == {
        name: 2 if name in ("vmap(grad)", "loop over images") else 3 for name in chosen
    }
    for row in rows.values():
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["reference_ms"] > 0
        assert f"K=2 {row['method']}" in dp_step.line(row)
    assert rows[rows[OURS]["reference"]]["ratio"] == 1.0


def test_what_sums_something_else_is_not_timed():
    (setting,) = settings(["digits"], [1])

    def summing(value):
        step = Step(lambda: torch.full((3,), value), lambda _: None, lambda sums: sums)
        return Method(lambda _: step)

    private = {OURS: summing(1.0), "another": summing(1.0 + 1e-5)}
    chosen = private | dict.fromkeys(ORDINARY, Method(lambda _: Step(lambda: None, id)))
    assert len(measure(setting, chosen, rounds=2)) == 4
    with pytest.raises(SystemExit, match="wrong computes something else"):
        measure(setting, chosen | {"wrong": summing(1.1)}, rounds=2)


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
