"""The constants of the cost model: measured, cached for this machine, and for no other."""

import dataclasses
import json

import pytest

from privimage.dp.gradients import costs


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_they_are_measured_once(monkeypatch):
    assert costs.cached_costs() is None
    found = costs.machine_costs()
    assert all(value >= 0 for value in dataclasses.astuple(found))
    assert found.multiply_add > 0
    assert found.layer > 0
    monkeypatch.setattr(costs, "measure_costs", lambda: pytest.fail("measured twice"))
    assert costs.machine_costs() == costs.cached_costs() == found


@pytest.mark.parametrize("text", ["", "{}", '{"machine": "another", "costs": {}}'])
def test_a_cache_that_is_not_this_machines_is_not_used(text):
    costs.cache_path().parent.mkdir(parents=True)
    costs.cache_path().write_text(text)
    assert costs.cached_costs() is None


def test_a_cache_that_can_not_be_written_costs_nothing_else(tmp_path, monkeypatch):
    found = costs.Costs(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    monkeypatch.setattr(costs, "measure_costs", lambda: found)
    (tmp_path / "privimage").write_text("in the way")
    assert costs.machine_costs() == found
    (tmp_path / "privimage").unlink()
    assert costs.machine_costs() == found
    assert json.loads(costs.cache_path().read_text())["costs"]["keep"] == 2.0
