import json
import os

import pytest

from privimage.dp import Gaussian, Ledger, Plan, SubsampledGaussian, epsilon
from privimage.dp import ledger as ledger_module
from privimage.errors import UserError

STEPS = SubsampledGaussian(sample_rate=0.2, noise_multiplier=1.7464, steps=300)
PLAN = Plan(epsilon=10.0, delta=1e-4, query_noise_multiplier=5.0, finetune=STEPS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def _spend(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        ledger.complete_query("ab" * 32)
        budget = ledger.step_budget(300)
        budget.reserve(6)
        budget.reserve(6)
    return path.read_bytes()


def _reserve_queries(ledger, count):
    for _ in range(count):
        ledger.reserve_query()


def test_everything_reserved_is_spent_and_survives_reopening(path):
    _spend(path)
    expected = [
        Gaussian(5.0),
        SubsampledGaussian(0.2, 1.7464, 6),
        SubsampledGaussian(0.2, 1.7464, 6),
    ]
    with Ledger(path) as ledger:
        assert ledger.spent() == expected
        assert ledger.plan == PLAN
        assert ledger.completed_query("ab" * 32)
        assert not ledger.completed_query("cd" * 32)
        assert ledger.epsilon(1e-4) == epsilon(expected, 1e-4)


def test_a_record_is_durable_before_reserve_returns(path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path.read_bytes()) or real(fd))
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        assert b'"purpose": "query"' in synced[-1]
        ledger.step_budget(300).reserve(6)
        assert b'"purpose": "finetune"' in synced[-1]


def test_a_resumed_run_pays_for_what_was_reserved(path):
    _spend(path)
    with Ledger(path) as ledger:
        # 12 steps are reserved; a crash lost all of them, so 288 are left of 300.
        budget = ledger.step_budget(300)
        assert budget.left == 288
        budget.reserve(288)
        with pytest.raises(UserError, match="pays for 0 more steps"):
            budget.reserve(1)
        assert ledger.epsilon(1e-4).upper <= 10.0


def test_more_queries_than_the_budget_are_refused(path):
    plan = Plan(epsilon=1.0, delta=1e-4, query_noise_multiplier=5.0, finetune=STEPS)
    with Ledger(path) as ledger:
        ledger.set_plan(plan)
        with pytest.raises(UserError, match="can't pay for another query"):
            _reserve_queries(ledger, 20)
        assert ledger.epsilon(1e-4).upper <= 1.0
        assert ledger.spent()


def test_an_infinite_budget_is_kept_as_such(path):
    plan = Plan(float("inf"), 1e-4, 0.0, SubsampledGaussian(0.2, 0.0, 300))
    with Ledger(path) as ledger:
        ledger.set_plan(plan)
        ledger.reserve_query()
        ledger.step_budget(300).reserve(300)
    with Ledger(path) as ledger:
        assert ledger.plan == plan
        assert not ledger.plan.is_private
        assert ledger.epsilon(1e-4).upper == float("inf")


def test_nothing_may_be_spent_without_a_plan(path):
    with Ledger(path) as ledger:
        with pytest.raises(UserError, match="no plan"):
            ledger.reserve_query()
        with pytest.raises(UserError, match="no plan"):
            ledger.step_budget(1)


def test_a_second_writer_is_refused(path):
    with Ledger(path), pytest.raises(UserError, match="another process"):
        Ledger(path)
    with Ledger(path):
        pass


def test_every_single_bit_flip_is_refused_or_changes_nothing(path):
    data = _spend(path)
    spent = [Gaussian(5.0), *[SubsampledGaussian(0.2, 1.7464, 6)] * 2]
    refused = 0
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            found = ledger_module.mechanisms(ledger_module.records(path))
        except UserError:
            refused += 1
        else:
            # A flip in the last line's tail may leave it whole; one inside it drops nothing else.
            in_last_line = position // 8 >= data.rfind(b"\n", 0, -1)
            assert found == spent or in_last_line
    assert refused > 0.8 * len(data) * 8


def test_a_torn_tail_is_cut_off_and_a_whole_one_is_counted(path):
    data = _spend(path)
    last = data.rfind(b"\n", 0, -1) + 1
    for end in range(last, len(data)):
        path.write_bytes(data[:end])
        with Ledger(path) as ledger:
            steps = sum(part.steps for part in ledger.spent() if hasattr(part, "steps"))
            whole = end == len(data) - 1
            assert steps == (12 if whole else 6)
            ledger.complete_query("cd" * 32)
        assert len(list(ledger_module.records(path))) == (7 if whole else 6)
    path.write_bytes(data[:-1] + b"\x0b")
    with Ledger(path) as ledger:
        assert len(ledger.spent()) == 3
    assert path.read_bytes() == data


def test_removed_and_reordered_lines_are_refused(path):
    lines = _spend(path).splitlines(keepends=True)
    for damaged in (lines[:2] + lines[3:], [*lines[:2], lines[3], lines[2], *lines[4:]], lines[1:]):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(UserError, match="damaged"):
            Ledger(path)


def test_a_ledger_of_another_version_is_refused(path):
    _spend(path)
    record = json.loads(path.read_text().splitlines()[0])
    record["schema"] = "privimage-ledger/9"
    record["hash"] = ledger_module._hash(record)
    path.write_text(json.dumps(record, sort_keys=True) + "\n")
    with pytest.raises(UserError, match="version"):
        Ledger(path)


def test_a_full_disk_stops_the_reservation(path, monkeypatch):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        budget = ledger.step_budget(300)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(UserError, match="No space left"):
            budget.reserve(6)


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="can't write"):
        Ledger(tmp_path / "missing" / "ledger.jsonl")
