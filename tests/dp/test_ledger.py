import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from privimage.dp import (
    Gaussian,
    History,
    Ledger,
    Plan,
    QueryReservation,
    Selftest,
    StepReservation,
    SubsampledGaussian,
    epsilon,
    narrate,
    replace_one_epsilon,
)
from privimage.dp.ledger import chain
from privimage.errors import UserError
from privimage.promise import rounded_up

STEPS = SubsampledGaussian(sample_rate=0.2, noise_multiplier=1.7464, steps=300)
PLAN = Plan(epsilon=10.0, delta=1e-4, query_noise_multiplier=5.0, finetune=STEPS)
HASH = "ab" * 32
TESTED = Selftest(
    "0.1.0", "2.13.0", "cpu, avx2, compiler gcc", "cpu, x86_64", ("noise", "sampling")
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@functools.cache
def _spent_bytes():
    path = Path(tempfile.mkdtemp()) / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        ledger.complete("query", HASH)
        budget = ledger.step_budget(300)
        budget.reserve(6)
        budget.reserve(6)
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data


def _spend(path):
    """A ledger with one query and twice six steps; the accountant worked once for all tests."""
    path.write_bytes(_spent_bytes())
    return path.read_bytes()


def _reserve_queries(ledger, count):
    for _ in range(count):
        ledger.reserve_query()


def _forge(path, number, **changes):
    """Rewrites a line with other values, and it and all later ones with right hashes."""
    entries, lines = [], path.read_bytes().splitlines()
    data = b""
    for index, line in enumerate(lines):
        fields = json.loads(line)
        if index == number:
            fields |= changes
        fields["previous"] = entries[-1].hash if entries else "0" * 64
        fields.pop("hash")
        entry = chain.Entry(index, fields["time"], None, chain.digest(fields))
        data += chain.canonical({**fields, "hash": entry.hash}).encode() + b"\n"
        entries.append(entry)
    path.write_bytes(data)


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
        assert ledger.completed("query", HASH)
        assert not ledger.completed("query", "cd" * 32)
        assert not ledger.completed("finetune", HASH)
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
    steps = replace(STEPS, steps=20)
    exactly = epsilon([steps], 1e-4).upper
    with Ledger(path) as ledger:
        ledger.set_plan(Plan(exactly, 1e-4, None, steps))
        ledger.step_budget(20).reserve(12)
    with Ledger(path) as ledger:
        # A crash lost all 12, so 8 are left of 20.
        budget = ledger.step_budget(20)
        assert budget.left == 8
        budget.reserve(8)
        with pytest.raises(UserError, match="pays for 0 more steps"):
            budget.reserve(1)
        assert ledger.epsilon(1e-4).upper <= exactly


def test_a_second_ledger_of_one_process_is_told_to_close_the_first(path, tmp_path, monkeypatch):
    ledger = Ledger(path)
    ledger.set_plan(PLAN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a Ledger of this process still has it open; close"):
        Ledger(path.name)
    ledger.close()
    with Ledger(path) as again:
        assert again.plan == PLAN
    # What is closed writes nothing more.
    with pytest.raises(UserError, match="can't write it"):
        ledger.reserve_query()


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
        assert ledger.not_private_because == ["ε is infinite, no noise was added"]
        assert ledger.epsilon(1e-4).upper == float("inf")


def test_nothing_may_be_spent_without_a_plan(path):
    with Ledger(path) as ledger:
        with pytest.raises(UserError, match="no plan"):
            ledger.reserve_query()
        with pytest.raises(UserError, match="no plan"):
            ledger.step_budget(1)


def test_a_query_is_recorded_with_the_noise_of_its_votes(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query(votes_per_image=4, noise_std=10.0)
        reserved = ledger.entries[-1].content
        assert (reserved.votes_per_image, reserved.noise_std) == (4, 10.0)
        with pytest.raises(UserError, match="was planned with 10"):
            ledger.reserve_query(votes_per_image=4, noise_std=5.0)
        assert len(ledger.spent()) == 1


@pytest.mark.parametrize(
    "between",
    [
        lambda ledger: ledger.reserve_query(),
        lambda ledger: ledger.step_budget(5),
        lambda ledger: ledger.set_plan(Plan(9.0, 1e-4, None, STEPS)),
    ],
)
def test_a_budget_ends_when_something_else_is_reserved_or_planned(path, between):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        budget = ledger.step_budget(10)
        budget.reserve(4)
        ledger.complete("query", HASH)
        budget.reserve(4)
        between(ledger)
        before = ledger.spent()
        with pytest.raises(UserError, match="ask the ledger for a new one"):
            budget.reserve(1)
        assert ledger.spent() == before


def test_reservations_say_which_steps_they_are_for(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        budget = ledger.step_budget(100, first_step=20)
        budget.reserve(6)
        budget.reserve(3)
        steps = [e.content for e in ledger.entries if isinstance(e.content, StepReservation)]
        assert [part.first_step for part in steps] == [20, 26]
        assert {part.sample_rate_threshold for part in steps} == {str(int(0.2 * 2**64))}


def test_an_interrupt_right_after_a_reservation_lets_no_more_steps_through(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        budget = ledger.step_budget(5)
        spend = budget._spend

        def interrupted(*reservation):
            spend(*reservation)
            raise KeyboardInterrupt

        budget._spend = interrupted
        with pytest.raises(KeyboardInterrupt):
            budget.reserve(3)
        budget._spend = spend
        with pytest.raises(UserError, match="pays for 2 more steps, not 3"):
            budget.reserve(3)
        budget.reserve(2)
        steps = [e.content for e in ledger.entries if isinstance(e.content, StepReservation)]
        assert [(part.first_step, part.mechanism.steps) for part in steps] == [(0, 3), (3, 2)]


def test_the_plan_under_which_something_was_paid_is_found(path):
    raised = Plan(20.0, 1e-4, None, STEPS)
    with Ledger(path) as ledger:
        assert ledger.paid(QueryReservation) is None
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        ledger.set_plan(raised)
        assert ledger.paid(QueryReservation) == PLAN
        assert ledger.paid(StepReservation) is None
        ledger.step_budget(1).reserve(1)
        assert ledger.paid(StepReservation) == raised


def test_a_promise_that_was_taken_back_stays_so(path):
    _spend(path)
    with Ledger(path) as ledger:
        assert ledger.not_private_because == []
        ledger.mark_not_private("test key")
        ledger.mark_not_private("test key")
        ledger.record_outside_epsilon("accuracy of a train-on-real ceiling")
    with Ledger(path) as ledger:
        assert ledger.not_private_because == ["test key"]
        assert ledger.outside_epsilon == ["accuracy of a train-on-real ceiling"]
        assert sum(b"not_private" in line for line in path.read_bytes().splitlines()) == 1


def test_the_unit_is_recorded_and_can_not_be_changed(path):
    with Ledger(path, unit="person") as ledger:
        assert (ledger.unit, ledger.adjacency) == ("person", "add_remove_one_person")
    with pytest.raises(
        UserError, match="this ledger is by person, so nothing can be spent by image"
    ):
        Ledger(path)
    with pytest.raises(UserError, match="unit: 'family' is not known"):
        Ledger(path.with_name("other"), unit="family")
    assert not path.with_name("other").exists()


def test_a_second_writer_is_refused(path):
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is working on this run"):
            Ledger(path)
    with Ledger(path):
        pass


_PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from privimage.dp import Ledger
ledger = Ledger(Path(sys.argv[1]))
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        time.sleep(600)
else:
    child = subprocess.Popen(["sleep", "600"], close_fds=False, stdout=subprocess.DEVNULL).pid
print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["exec", "fork"])
def test_a_worker_that_outlives_the_writer_does_not_hold_the_lock(path, kind):
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(path), kind], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    try:
        with pytest.raises(UserError, match="another process"):
            Ledger(path)
        parent.kill()
        parent.wait()
        os.kill(child, 0)
        with Ledger(path):
            pass
    finally:
        os.kill(child, 9)
        parent.stdout.close()


def test_a_forked_child_can_not_write(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        before = path.read_bytes()
        child = os.fork()
        if child == 0:
            # No accountant here: its threads did not survive the fork.
            try:
                ledger.record_outside_epsilon("something")
            except UserError:
                os._exit(7)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert path.read_bytes() == before
        ledger.record_outside_epsilon("something")


@pytest.mark.parametrize("change", ["removed", "replaced", "appended", "cut"])
def test_a_file_that_changes_under_the_writer_ends_the_run(path, change):
    data = _spend(path)
    with Ledger(path) as ledger:
        if change != "appended":
            path.unlink() if change != "cut" else path.write_bytes(data[:-10])
        if change == "replaced":
            path.write_bytes(data)
        if change == "appended":
            path.write_bytes(data + data.splitlines(keepends=True)[-1])
        with pytest.raises(UserError, match="can't write"):
            ledger.reserve_query()
        with pytest.raises(UserError, match="start again"):
            ledger.spent()


def test_every_single_bit_flip_is_refused_or_changes_nothing(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        ledger.complete("query", HASH)
        spent = ledger.spent()
    data = path.read_bytes()
    accepted = 0
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            found = History(path, chain.parse(bytes(flipped), path)[0])
        except UserError:
            continue
        accepted += 1
        assert found.spent() == spent
        assert found.completed("query", HASH)
    # Only the last newline may be flipped: the line before it counts all the same.
    assert accepted == 8


def test_a_torn_tail_is_cut_off_and_a_whole_one_is_counted(path):
    data = _spend(path)
    last = data.rfind(b"\n", 0, -1) + 1
    for end in range(last, len(data) + 1):
        entries, whole = chain.parse(data[:end], path)
        is_whole = end >= len(data) - 1
        assert len(entries) == (6 if is_whole else 5)
        assert whole == (data if is_whole else data[:last])


@pytest.mark.parametrize("cut", [1, 2, 100, 400])
def test_a_ledger_with_a_torn_tail_goes_on(path, cut):
    data = _spend(path)
    path.write_bytes(data[:-cut])
    with Ledger(path) as ledger:
        ledger.complete("query", "cd" * 32)
    assert len(History.read(path).entries) == (7 if cut == 1 else 6)


def test_a_damaged_last_newline_is_mended(path):
    data = _spend(path)
    path.write_bytes(data[:-1] + b"\x0b")
    with Ledger(path) as ledger:
        assert len(ledger.spent()) == 3
    assert path.read_bytes() == data


def test_a_lost_newline_before_a_torn_tail_loses_no_reservation(path):
    data = _spend(path)
    path.write_bytes(data[:-1] + b'\x0b{"first_step": 12, "mechanism": {"steps": 6}, "n"')
    with Ledger(path) as ledger:
        assert len(ledger.spent()) == 3
    assert path.read_bytes() == data


def test_removed_and_reordered_lines_are_refused(path):
    lines = _spend(path).splitlines(keepends=True)
    for damaged in (lines[:2] + lines[3:], [*lines[:2], lines[3], lines[2], *lines[4:]], lines[1:]):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(UserError, match="damaged"):
            Ledger(path)


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, {"schema": "privimage-ledger/9"}),
        (0, {"unit": "family"}),
        (0, {"adjacency": "replace_one_image"}),
        (1, {"purpose": "query"}),
        (1, {"epsilon": "10"}),
        (1, {"epsilon": -1.0}),
        (1, {"delta": 0.5}),
        (1, {"type": "intention"}),
        (2, {"extra": 1}),
        (2, {"mechanism": {"noise_multiplier": -5.0}}),
        (2, {"mechanism": {"noise_multiplier": 5.0, "steps": 1}}),
        (2, {"mechanism": None}),
        (2, {"purpose": "survey"}),
        (2, {"noise_std": "5"}),
        (2, {"nonce": "short"}),
        (2, {"time": "yesterday"}),
        (3, {"artifact_sha256": 7}),
        (4, {"first_step": -1}),
        (4, {"mechanism": {"sample_rate": 1.5, "noise_multiplier": 1.0, "steps": 6}}),
        (4, {"mechanism": {"sample_rate": 0.2, "noise_multiplier": 1.0, "steps": 0}}),
    ],
)
def test_a_ledger_of_another_version_or_with_impossible_values_is_refused(path, number, changes):
    _spend(path)
    _forge(path, number)
    assert len(History.read(path).spent()) == 3
    _forge(path, number, **changes)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"line {number + 1} is of a version") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_line_in_another_spelling_is_refused(path):
    data = _spend(path)
    for spelt in (
        data.replace(b'"n": 2', b'"n":  2'),
        data.replace(b'"n": 2', b'"n": 2, "n": 2'),
        data.replace(b"\n", b"\r\n"),
        b"\n" + data,
    ):
        path.write_bytes(spelt)
        with pytest.raises(UserError, match="damaged"):
            Ledger(path)


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="can't write"):
        Ledger(tmp_path / "missing" / "ledger.jsonl")


def test_times_are_in_whole_minutes(path):
    _spend(path)
    times = [json.loads(line)["time"] for line in path.read_bytes().splitlines()]
    assert all(time.strptime(text, "%Y-%m-%dT%H:%MZ") for text in times)


def test_a_person_can_read_it(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        ledger.complete("query", HASH)
        budget = ledger.step_budget(300)
        budget.reserve(6)
        budget.reserve(6)
        ledger.step_budget(10, first_step=6).reserve(6)
        ledger.complete("finetune", HASH, steps=12)
        ledger.record_outside_epsilon("accuracy of a train-on-real ceiling")
        ledger.mark_not_private("test key")
        lines = [line.split("Z  ", 1)[-1] for line in narrate(ledger)]
        spent = ledger.spent()
        upper = [rounded_up(epsilon(spent[:count], 1e-4).upper) for count in (1, 4)]
    digest = "abababababababab…"
    assert lines == [
        "begun     privimage-ledger/2, unit image, add_remove_one_image",
        "planned   ε ≤ 10 at δ = 0.0001 for one image: query σ 5; 300 steps at rate 0.2, σ 1.7464",
        f"reserved  query: σ 5, 1 vote an image, std 5 on each count; ε so far {upper[0]}",
        f"released  query: sha256 {digest}",
        "reserved  fine-tuning: 18 steps in 3 records (step 0 to 11, 6 of them again after a "
        f"crash), σ 1.7464; ε so far {upper[1]}",
        f"released  fine-tuning after 12 steps: sha256 {digest}",
        "outside ε accuracy of a train-on-real ceiling",
        "NOT PRIVATE from here on: test key",
        "In all: NOT PRIVATE (test key), so no ε is promised.",
        "Not covered by ε, computed without noise: accuracy of a train-on-real ceiling.",
    ]


def test_the_story_ends_with_the_promise_under_both_adjacencies(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        ledger.record_selftest(TESTED)
        *_, tested, promise = narrate(ledger)
        added = epsilon(ledger.spent(), 1e-4).upper
        replaced = replace_one_epsilon(ledger.spent(), 1e-4)
    assert tested.endswith(
        "tested    noise, sampling and clipping on cpu, x86_64 (privimage 0.1.0, torch 2.13.0, "
        "build cpu, avx2, compiler gcc): FAILED: noise, sampling"
    )
    assert promise == (
        f"In all: ε = {rounded_up(added)} at δ = 0.0001 if one image is added or removed, "
        f"{rounded_up(replaced)} if one image is replaced by another."
    )
    assert added < replaced


def test_a_selftest_costs_nothing_and_is_kept(path):
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.record_selftest(TESTED)
        assert ledger.spent() == []
    history = History.read(path)
    assert history.selftests == [TESTED]
    assert json.loads(path.read_text().splitlines()[-1])["failed"] == ["noise", "sampling"]


# As the version before this kind of record wrote it.
OLD = (
    '{"adjacency": "add_remove_one_image", "hash": "'
    "a36da7d28ba06cd8fca3b903760a7e6fdbe065452d5b10120d1a2f364afcf407"
    '", "n": 0, "previous": "'
    "0000000000000000000000000000000000000000000000000000000000000000"
    '", "schema": "privimage-ledger/2", "time": "2026-01-01T00:00Z", "type": "genesis", '
    '"unit": "image"}\n'
)


def test_an_older_ledger_is_still_read_and_goes_on(path):
    path.write_text(OLD)
    with Ledger(path) as ledger:
        ledger.record_selftest(TESTED)
    assert path.read_text().startswith(OLD)
    assert len(History.read(path).entries) == 2


@pytest.mark.parametrize(
    "changes", [{"failed": "noise"}, {"failed": [""]}, {"version": ""}, {"passed": True}]
)
def test_a_selftest_with_impossible_values_is_refused(path, changes):
    with Ledger(path) as ledger:
        ledger.record_selftest(TESTED)
    _forge(path, 1, **changes)
    with pytest.raises(UserError, match="line 2 is of a version"):
        Ledger(path)
