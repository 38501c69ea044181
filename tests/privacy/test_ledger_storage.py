"""A ledger on a disk that loses power or fails: it never says less than what was released."""

import errno
import math
import os

import pytest
from disk import Disk, PowerCut

from privimage import durable
from privimage.dp import History, Ledger, Plan, SubsampledGaussian
from privimage.errors import UserError

# Without a bound on ε the accountant has nothing to do: this is about the file.
PLAN = Plan(math.inf, 1e-4, 0.0, SubsampledGaussian(0.2, 0.0, 100))
HASH = "ab" * 32


def _use(path, releases):
    """What a run does with its ledger; notes each release after its reservation returned."""
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        releases.append("query")
        ledger.complete("query", HASH)
        budget = ledger.step_budget(9)
        for _ in range(3):
            budget.reserve(3)
            releases.extend(["step"] * 3)


def _charged(path):
    """Queries and steps that the ledger at `path` charges."""
    if not path.exists() or not path.read_bytes():
        return 0, 0
    with Ledger(path) as ledger:
        spent = [vars(part).get("steps", 0) for part in ledger.spent()]
    return spent.count(0), sum(spent)


def _count_calls(tmp_path, monkeypatch):
    disk = Disk(tmp_path / "counted")
    with monkeypatch.context() as patch:
        disk.replace_os(patch)
        _use(tmp_path / "counted", [])
    return disk.calls


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kept", [0, 40, 10_000])
def test_a_power_cut_at_any_call_never_understates(tmp_path, monkeypatch, kept, late):
    calls = _count_calls(tmp_path, monkeypatch)
    assert calls > 15
    for cut_at in range(1, calls + 1):
        path = tmp_path / f"{cut_at}"
        releases = []
        disk = Disk(path, cut_at, late)
        with monkeypatch.context() as patch:
            disk.replace_os(patch)
            with pytest.raises(PowerCut):
                _use(path, releases)
            disk.after_power_cut(kept)
        queries, steps = _charged(path)
        assert queries >= releases.count("query")
        assert steps >= releases.count("step")
        # It is no dead end either: the next start goes on.
        _use(path, releases)
        assert _charged(path)[1] >= releases.count("step")


@pytest.mark.parametrize("broken", ["fsync", "write"])
def test_the_disk_double_sees_a_ledger_that_does_not_sync(tmp_path, monkeypatch, broken):
    """The test above can fail: without fsync, or with the write after the release, it does."""
    disk = Disk(tmp_path / "ledger")
    disk.fail[broken] = (lambda: None) if broken == "fsync" else (lambda: 10_000)
    releases = []
    disk.replace_os(monkeypatch)
    with pytest.raises(UserError) if broken == "write" else monkeypatch.context():
        _use(tmp_path / "ledger", releases)
    disk.after_power_cut()
    monkeypatch.undo()
    understates = _charged(tmp_path / "ledger")[1] < releases.count("step")
    assert understates == (broken == "fsync")


@pytest.mark.parametrize("kept", [0, 10_000])
def test_the_name_of_the_file_is_durable_before_anything_is_released(tmp_path, monkeypatch, kept):
    path = tmp_path / "ledger"
    disk = Disk(path)
    disk.replace_os(monkeypatch)
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        assert disk.name_is_durable
        ledger.reserve_query()
    disk.after_power_cut(kept)
    assert len(History.read(path).spent()) == 1


def test_a_name_that_an_earlier_start_left_unsynced_is_synced(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
    disk = Disk(path)
    disk.name_is_durable, disk.durable = False, b""
    disk.replace_os(monkeypatch)
    with Ledger(path):
        assert disk.name_is_durable
        assert disk.durable == path.read_bytes()


def _refuse(code):
    def call():
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize(
    ("call", "code"),
    [("write", errno.ENOSPC), ("write", errno.EIO), ("fsync", errno.EIO), ("write", errno.EROFS)],
)
def test_after_a_failed_write_the_ledger_refuses_all_use(tmp_path, monkeypatch, call, code):
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        budget = ledger.step_budget(9)
        budget.reserve(3)
        disk = Disk(path)
        disk.fail[call] = _refuse(code)
        with monkeypatch.context() as patch:
            disk.replace_os(patch)
            with pytest.raises(UserError, match=os.strerror(code)) as caught:
                budget.reserve(3)
            assert "\n" not in str(caught.value)
        # The disk is well again, but nobody knows what it took.
        for use in (
            lambda: budget.reserve(3),
            lambda: ledger.reserve_query(),
            lambda: ledger.step_budget(3),
            lambda: ledger.set_plan(Plan(1.0, 1e-4, None, PLAN.finetune)),
            lambda: ledger.complete("query", HASH),
            lambda: ledger.spent(),
            lambda: ledger.head,
            lambda: ledger.epsilon(1e-4),
        ):
            with pytest.raises(UserError, match="start again from what the disk holds"):
                use()
    assert _charged(path)[1] in ((3,) if call == "write" else (3, 6))


def test_an_interrupted_write_ends_the_ledger_too(tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    disk = Disk(tmp_path / "ledger")
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.set_plan(PLAN)
        disk.fail["fsync"] = interrupt
        with monkeypatch.context() as patch:
            disk.replace_os(patch)
            with pytest.raises(KeyboardInterrupt):
                ledger.reserve_query()
        with pytest.raises(UserError, match="start again"):
            ledger.spent()


@pytest.mark.parametrize("bytes_at_once", [1, 7, 1000])
def test_short_writes_are_continued(tmp_path, monkeypatch, bytes_at_once):
    real = os.write
    monkeypatch.setattr(durable.os, "write", lambda fd, data: real(fd, data[:bytes_at_once]))
    releases = []
    _use(tmp_path / "ledger", releases)
    assert _charged(tmp_path / "ledger") == (1, 9)


def test_a_disk_that_takes_half_a_record_leaves_a_torn_tail(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    real, room = os.write, [900]

    def write(descriptor, data):
        taken = min(len(data), room[0])
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= taken
        return real(descriptor, data[:taken])

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "write", write)
        with pytest.raises(UserError, match="No space left"):
            _use(path, [])
    assert path.stat().st_size == 900
    _use(path, [])
    assert _charged(path)[1] == 9
