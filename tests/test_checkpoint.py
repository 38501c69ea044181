"""Checkpoints are whole or not at all; damage to one is noticed and said."""

import os

import pytest
import torch

from privimage.checkpoint import Checkpoints
from privimage.errors import UserError
from privimage.loop import resumable_steps
from privimage.progress import Reporter, Stopped

STATE = {"ema_updates": 3, "ledger_head": "ab" * 32}


def _tensors(step):
    return {"x": torch.full((5,), float(step)), "y": torch.tensor(step)}


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    found = Checkpoints(tmp_path / "deep" / "checkpoints", said.append)
    for step in (1, 2, 3):
        found.save(step, _tensors(step), STATE | {"step_was": step})
    return found


def _file(tmp_path, step, kind):
    return tmp_path / f"deep/checkpoints/step-{step:08d}.{kind}"


def test_what_is_loaded_is_what_was_saved(checkpoints, said):
    found = checkpoints.load()
    assert found.step == 3
    assert found.state == STATE | {"step_was": 3}
    assert found.tensors.keys() == {"x", "y"}
    for name, tensor in _tensors(3).items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype
    assert said == []


def test_the_last_two_are_kept(checkpoints, tmp_path):
    names = sorted(path.name for path in (tmp_path / "deep/checkpoints").iterdir())
    assert names == [f"step-0000000{n}.{kind}" for n in (2, 3) for kind in ("json", "safetensors")]


def _flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_no_bit_of_a_checkpoint_can_change_unnoticed(checkpoints, tmp_path, said, kind):
    path = _file(tmp_path, 3, kind)
    whole, same = path.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 5):
        _flip(path, bit)
        found = checkpoints.load()
        if found.step == 3:
            # Only where JSON has room for more than one way to write the same.
            assert (found.state, kind) == (STATE | {"step_was": 3}, "json")
            assert torch.equal(found.tensors["x"], _tensors(3)["x"])
            same += 1
        else:
            assert (found.step, found.state["step_was"]) == (2, 2)
            assert "damaged checkpoint passed over" in said[-1]
            assert "step-00000003" in said[-1]
        path.write_bytes(whole)
    assert same < 0.2 * 8 * len(whole) / 5


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'"step"'])
def test_a_record_that_is_none_is_passed_over(checkpoints, tmp_path, said, content):
    _file(tmp_path, 3, "json").write_bytes(content)
    assert checkpoints.load().step == 2
    assert len(said) == 1


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_a_file_that_is_missing_takes_its_checkpoint_with_it(checkpoints, tmp_path, kind):
    _file(tmp_path, 3, kind).unlink()
    assert checkpoints.load().step == 2


def test_no_readable_checkpoint_is_one_clear_line(checkpoints, tmp_path, said):
    for step in (2, 3):
        _file(tmp_path, step, "safetensors").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"checkpoints: no checkpoint in it is readable; "
    ) as caught:
        checkpoints.load()
    assert "\n" not in str(caught.value)
    assert [f"step-0000000{step}" in line for step, line in zip((3, 2), said, strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_while_saving_leaves_the_checkpoint_before(
    checkpoints, tmp_path, monkeypatch, crash_at
):
    replace, calls = os.replace, []

    def crashing(*arguments):
        calls.append(arguments)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        replace(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crashing)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(4, _tensors(4), STATE | {"step_was": 4})
    assert checkpoints.load().step == 3
    checkpoints.save(4, _tensors(4), STATE | {"step_was": 4})
    assert checkpoints.load().step == 4
    assert len(list((tmp_path / "deep/checkpoints").glob("step-*"))) == 4


class Sum:
    """Adds up the steps that it is given."""

    def __init__(self):
        self.total = torch.zeros(1)

    def state(self):
        return {"total": self.total}, {}

    def restore(self, tensors, state):
        self.total = tensors["total"]


def test_a_loop_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("privimage.loop._CHECKPOINT_INTERVAL_S", 0.0)
    reporter = Reporter(quiet=True)
    steps = resumable_steps(Sum(), 9, tmp_path, "adding", reporter)
    assert [next(steps) for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    reporter.request_stop()
    with pytest.raises(Stopped):
        next(steps)
    (newest,) = tmp_path.glob("step-00000006.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    left = list(resumable_steps(Sum(), 9, tmp_path, "adding", Reporter()))
    assert left == [5, 6, 7, 8]
    out, err = capfd.readouterr()
    assert "adding: goes on from step 5" in out
    assert "warning: damaged checkpoint passed over" in err
