"""The constants of the cost model: measured, cached for this machine, and for no other."""

import contextlib
import dataclasses
import json

import pytest
import torch

from privimage.dp.gradients import costs
from privimage.ops import _library

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_they_are_measured_once(monkeypatch, device):
    there = torch.device(device)
    assert costs.cached_costs(there) is None
    found = costs.machine_costs(there)
    assert all(value >= 0 for value in dataclasses.astuple(found))
    assert found.multiply_add > 0
    assert found.layer > 0
    monkeypatch.setattr(costs, "measure_costs", lambda device: pytest.fail("measured twice"))
    assert costs.machine_costs(there) == costs.cached_costs(there) == found


def test_those_of_a_cpu_are_a_cpu_s_whatever_the_default_device_is():
    with torch.device("meta"):
        assert costs.machine_costs().multiply_add > 0


def test_each_kind_of_gpu_has_its_own(monkeypatch):
    gpu, measured = torch.device("cuda"), []

    def measure(device):
        measured.append(device.type)
        return costs.Costs(*[float(len(measured))] * 7)

    monkeypatch.setattr(costs, "measure_costs", measure)
    for name in ("one", "one", "another"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        costs.machine_costs(gpu)
    costs.machine_costs()
    assert measured == ["cuda", "cuda", "cpu"]
    assert costs.cached_costs(gpu).keep == 2.0
    assert costs.cached_costs().keep == 3.0


def test_a_gpu_is_timed_between_events(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("record")

        def synchronize(self):
            order.append("synchronize")

        def elapsed_time(self, other):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert costs._on_gpu(lambda: order.append("run")) == 2e-3
    assert order == ["record", "run", "record", "synchronize"]


def test_another_gpu_than_the_current_one_is_timed_on_its_own_stream(monkeypatch):
    inside = []

    @contextlib.contextmanager
    def current(device):
        inside.append(device)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(costs, "_measured", lambda _: (inside[-1], torch.get_default_device()))
    other = torch.device("cuda:1")
    assert costs.measure_costs(other) == (other, other)


@pytest.mark.parametrize("build", ["cuda", "cpu", "none"])
def test_where_kernels_compute_follows_from_the_build(monkeypatch, build):
    monkeypatch.setattr(_library, "build", build)
    monkeypatch.setattr(_library, "is_native", build != "none")
    assert _library.has_kernels(torch.device("cpu")) == (build != "none")
    assert _library.has_kernels(torch.device("cuda:1")) == (build == "cuda")


@pytest.mark.parametrize("text", ["", "{}", '{"machine": "another", "costs": {}}'])
def test_a_cache_that_is_not_this_machines_is_not_used(text):
    costs.cache_path().parent.mkdir(parents=True)
    costs.cache_path().write_text(text)
    assert costs.cached_costs() is None


def test_a_cache_that_can_not_be_written_costs_nothing_else(tmp_path, monkeypatch):
    found = costs.Costs(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    monkeypatch.setattr(costs, "measure_costs", lambda device: found)
    (tmp_path / "privimage").write_text("in the way")
    assert costs.machine_costs() == found
    (tmp_path / "privimage").unlink()
    assert costs.machine_costs() == found
    assert json.loads(costs.cache_path().read_text())["costs"]["keep"] == 2.0
