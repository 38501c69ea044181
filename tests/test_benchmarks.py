"""The benchmark of a step: what it times computes the same, and its file keeps what it held."""

import dataclasses
import json
import re
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import dp_step
import kernels
import records
from step import models, steps
from step.methods import CAPTURED, COMPILED, ORDINARY, OURS, UNRECORDED, Method, methods
from step.models import MODELS, Setting, settings
from step.steps import LEARNING_RATE, Step, captured, ordinary
from step.turns import measure
from torch.utils._python_dispatch import TorchDispatchMode

from privimage.diffusion.unet import UNet, UNetShape


def test_every_method_that_runs_has_a_row_of_paired_ratios(capsys):
    (setting,) = settings(["digits"], [2])
    setting = dataclasses.replace(setting, examples=2)
    words = ("ordinary channels", OURS, "vmap", "loop")
    chosen = {n: m for n, m in methods(setting).items() if n.startswith(words)}

    def broken(pieces):
        raise RuntimeError("no such layer")

    rows = {r["method"]: r for r in measure(setting, chosen | {"broken": Method(broken)}, 1)}
    assert set(rows) == set(chosen)
    assert "digits K=2 broken does not run: no such layer" in capsys.readouterr().out
    assert {name: row["pairs"] for name, row in rows.items()} == {
        name: 1 if name in ("vmap(grad)", "loop over images") else 2 for name in chosen
    }
    for row in rows.values():
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["reference_ms"] > 0
        assert f"K=2 {row['method']}" in dp_step.line(row)
    assert rows[rows[OURS]["reference"]]["ratio"] == 1.0


def test_each_setting_is_compiled_for_its_own_shapes(monkeypatch):
    compiled, shapes = torch.compile, []

    def note(graph, given):
        shapes.extend(size for tensor in given for size in getattr(tensor, "shape", [tensor]))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend=note))
    for setting in settings(["digits"], [1], sweep=[2, 3, 5]):
        chosen = {n: m for n, m in methods(setting).items() if n in (*ORDINARY, OURS, COMPILED)}
        assert COMPILED in {row["method"] for row in measure(setting, chosen, 1)}
    assert {2, 3, 5} < set(shapes)
    assert {type(size) for size in shapes} == {int}


def test_what_there_is_no_time_for_is_left_out(capsys):
    (setting,) = settings(["digits"], [2], sweep=[2])
    asked = (*ORDINARY, OURS, UNRECORDED, "vmap(grad)")  # the last but one checks ours
    chosen = {n: m for n, m in methods(setting).items() if n in asked}
    rows = {row["method"]: row["pairs"] for row in measure(setting, chosen, 9, budget=0)}
    assert rows == {**dict.fromkeys((*ORDINARY, OURS), 3), UNRECORDED: 2}
    assert "digits K=2 vmap(grad) does not run: no time left" in capsys.readouterr().out


def test_what_takes_too_long_to_build_is_given_up(capsys):
    (setting,) = settings(["digits"], [2], sweep=[2])

    def build(pieces):
        while True:
            time.sleep(0.01)

    chosen = dict.fromkeys((*ORDINARY, OURS), Method(lambda _: Step(lambda: None, id)))
    rows = measure(setting, chosen | {"slow": Method(build)}, 2, budget=0.3)
    assert {row["method"] for row in rows} == set(chosen)
    assert "digits K=2 slow does not run: no time left" in capsys.readouterr().out
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


class OnAGpu(Setting):
    """A CPU in a GPU's place."""

    on_gpu = True


def test_on_a_gpu_rows_have_a_peak_and_a_second_ratio(monkeypatch):
    for name, found in (("memory_allocated", 5e6), ("max_memory_allocated", 25.4e6)):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    (usual,) = settings(["digits"], [1])
    setting = OnAGpu(**{**usual.__dict__, "examples": 2})
    found = methods(setting)
    assert {CAPTURED, "rows in bfloat16"} <= set(found)
    chosen = {name: found[name] for name in (*ORDINARY, CAPTURED, OURS)}
    rows = {row["method"]: row for row in measure(setting, chosen, 2)}
    assert set(rows) == set(chosen)
    assert 1.0 in {row["eager_ratio"] for name, row in rows.items() if name in ORDINARY}
    assert 1.0 in {row["ratio"] for name, row in rows.items() if name != OURS}
    for row in rows.values():
        assert row["peak_mb"] == 20
        assert f"{row['eager_ratio']:.3f} of eager, 20 MB" in dp_step.line(row)


def test_what_does_not_fit_is_taken_in_pieces():
    (setting,) = settings(["digits"], [1])

    def build(pieces):
        if pieces < 4:
            raise torch.OutOfMemoryError
        return Step(lambda: None, id)

    chosen = dict.fromkeys(ORDINARY, Method(lambda _: Step(lambda: None, id)))
    chosen |= {"large": Method(build, (1, 2, 4)), "too large": Method(build, (1, 2))}
    found = {row["method"]: row["micro_batch"] for row in measure(setting, chosen, 2)}
    assert found.pop("large") * 4 == setting.examples
    assert set(found) == set(ORDINARY)


def test_the_captured_ordinary_step_does_what_the_ordinary_one_does(monkeypatch):
    made, real = [], Setting.network
    monkeypatch.setattr(Setting, "network", lambda self: made.append(real(self)) or made[-1])
    (setting,) = settings(["digits"], [2], sweep=[2])
    before = torch.cat([p.flatten() for p in real(setting).parameters()])
    for step in (ordinary(setting, torch.channels_last), captured(setting)):
        for _ in range(2):
            step()
    # Adam moves a weight by its rate or back, so the sign of what is nearly 0 tells.
    one, other = (torch.cat([p.detach().flatten() for p in each.parameters()]) for each in made)
    assert (one - other).abs().mean() <= 0.02 * LEARNING_RATE
    assert (one - before).abs().mean() >= 0.5 * LEARNING_RATE


def test_the_captured_ordinary_step_normalises_as_ours_does():
    step = captured(settings(["digits"], [2], sweep=[2])[0])
    called = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    with Calls():
        step.gradient()
    norms = [name for name in called if "group_norm" in name]
    forward = norms.count("privimage.group_norm_silu.default")
    assert 0 < forward == norms.count("privimage.group_norm_silu_backward.default")
    assert len(norms) == 2 * forward


def test_settings_follow_model_draws_device_and_sweep(monkeypatch):
    assert {"cifar10", "wide", "wider"} <= set(MODELS)
    assert [s.examples for s in settings(["cifar10"], [1, 8, 32])] == [16, 4, 2]
    monkeypatch.setattr(models, "most_examples", lambda device, draws: {"cuda": 132}[device.type])
    assert [s.examples for s in settings(["cifar10", "wider"], [8], "cuda")] == [132, 33]
    swept = settings(["digits"], [1, 4], sweep=[8, 64])
    assert [(s.draws, s.examples) for s in swept] == [(1, 8), (1, 64), (4, 8), (4, 64)]
    with pytest.raises(SystemExit, match="no model 'other'; there are cifar10, "):
        settings(["other"], [1])


def test_what_sums_something_else_is_not_timed(capsys):
    (setting,) = settings(["digits"], [1])

    def summing(value):
        step = Step(lambda: torch.full((3,), value), lambda _: None, lambda sums: sums)
        return Method(lambda _: step)

    private = {OURS: summing(1.0), "another": summing(1.0 + 1e-5)}
    chosen = private | dict.fromkeys(ORDINARY, Method(lambda _: Step(lambda: None, id)))
    assert len(measure(setting, chosen, rounds=2)) == 4
    rows = measure(setting, chosen | {"wrong": summing(1.1)}, rounds=2)
    assert {row["method"] for row in rows} == set(chosen)
    assert "K=1 wrong does not run: computes something else: 1.0e-01" in capsys.readouterr().out
    del chosen[OURS]  # Then what is ours without a recording is right.
    chosen[UNRECORDED] = summing(1.0)
    rows = measure(setting, chosen | {"wrong": summing(1.1)}, rounds=2)
    assert {row["method"] for row in rows} == set(chosen)


def test_a_recorded_step_of_ours_is_held_against_one_that_is_not(capsys):
    (setting,) = settings(["digits"], [1])
    ordinary_steps = dict.fromkeys(ORDINARY, Method(lambda _: Step(lambda: None, id)))

    def summing(value, is_recorded=False):
        step = Step(lambda: torch.full((3,), value), lambda _: None, lambda sums: sums)
        return Method(lambda _: step, is_recorded=is_recorded)

    def checked(**private):
        chosen = ordinary_steps | {name.replace("_", " "): each for name, each in private.items()}
        rows = measure(setting, chosen, rounds=2, budget=1)
        for row in rows:
            assert ("NOT CHECKED" in dp_step.line(row)) == (row.get("checked") is False)
        return {row["method"]: row["checked"] for row in rows if row["method"] not in ORDINARY}

    # Whoever compiled a sum may have got both wrong.
    right, compiled = summing(1.0), summing(1.0, True)
    assert checked(privimage=compiled) == {OURS: False}
    assert checked(privimage=compiled, privimage_in_9_MB=compiled)[OURS] is False
    assert checked(privimage=compiled, call_by_call=right) == {OURS: True, UNRECORDED: True}
    assert "computes something else" not in capsys.readouterr().out
    assert checked(privimage=summing(1.1, True), call_by_call=right) == {OURS: False}
    assert f"K=1 {UNRECORDED} does not run: computes something else" in capsys.readouterr().out
    # Without ours it is the first, whatever else there is.
    rows = {"rows_in_bfloat16": compiled, "call_by_call": right}
    assert checked(**rows) == {UNRECORDED: True, "rows in bfloat16": True}
    assert checked(**rows | {"rows_in_bfloat16": summing(1.1, True)}) == {UNRECORDED: False}
    assert "rows in bfloat16 does not run: computes something else" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1, 2])
def test_a_wrong_sum_of_what_is_compiled_is_told(capsys, monkeypatch, factor):
    real = steps.accelerated
    monkeypatch.setattr(
        steps, "accelerated", lambda graph, device: lambda *x: factor * real(graph, device)(*x)
    )
    (setting,) = settings(["digits"], [1], sweep=[2])
    options = SimpleNamespace(among=f"{OURS},{UNRECORDED}", peak=False, profile=False)
    rows = measure(setting, dp_step.among(setting, options, []), 2)
    found = {row["method"]: row["checked"] for row in rows if row["method"] not in ORDINARY}
    assert found == ({OURS: True, UNRECORDED: True} if factor == 1 else {OURS: False})
    wrong = f"{UNRECORDED} does not run: computes something else: 5.0e-01 from {OURS}'s sum"
    assert (wrong in capsys.readouterr().out) == (factor == 2)


def test_a_profile_names_the_operators_of_each_method_that_is_asked_for(capsys, monkeypatch):
    words = ["dp_step.py", "--models", "digits", "--draws", "1", "--examples", "2", "--profile"]
    monkeypatch.setattr(sys, "argv", [*words, "--among", f"{UNRECORDED},channels-last,fails"])
    monkeypatch.setattr(dp_step, "KEEPING", {})

    def broken(pieces):
        raise RuntimeError("no such layer")

    found = methods
    monkeypatch.setattr(
        dp_step, "methods", lambda *given: {"fails": Method(broken), **found(*given)}
    )
    threads = torch.get_num_threads()
    try:
        dp_step.main()
    finally:
        torch.set_num_threads(threads)
    _, fails, ordinary, private = re.split("^digits K=1 ", capsys.readouterr().out, flags=re.M)
    assert fails == "fails\ndoes not run: no such layer\n"
    assert ordinary.startswith(ORDINARY[1])
    assert private.startswith(UNRECORDED)
    assert "privimage::private_update" in private
    assert "privimage::" not in ordinary
    assert "aten::convolution_backward" in ordinary


def test_times_of_kernels_come_with_that_of_a_launch(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "peaks", lambda: (100.0, 10.0))
    path = tmp_path / "kernels.json"
    words = ["--threads", "1", "--rounds", "2", "--only", "embedding 11x32", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["kernels.py", *words])
    threads = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit, match="False"):
            kernels.main()
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(path.read_text())
    assert 0 < figures["launch_us"] < 1000
    assert figures["rows"]
    assert f"a launch takes {figures['launch_us']} us of a row" in capsys.readouterr().out


def test_peers_compute_the_same_in_bfloat16(monkeypatch):
    monkeypatch.setattr(models, "mixed_precision", lambda _: torch.autocast("cpu", torch.bfloat16))
    shape = UNetShape(8, 1, 8, (1,), (8,), 10, blocks_per_level=1)
    setting = Setting("attends", lambda: UNet(shape), (1, 8, 8), True, examples=3, draws=2)
    found, sums = methods(setting), {}
    words = (UNRECORDED, "vmap", "loop", "opacus hooks", "opacus functorch")  # where there is one
    for name in (name for name in found if name.startswith(words)):
        step = found[name].build(1)
        sums[name] = step.summed(step.gradient())
    expected = sums[UNRECORDED]
    assert expected.norm() > 0
    for total in sums.values():
        assert (total - expected).norm() <= 5e-2 * expected.norm()


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
