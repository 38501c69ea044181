import math
from dataclasses import replace

import pytest

from privimage.dp import Ledger, Made, Plan, Selftest, SubsampledGaussian, verify
from privimage.dp.accounting import pld
from privimage.dp.accounting.mechanisms import Gaussian
from privimage.dp.ledger import chain
from privimage.dp.ledger.records import Completion, QueryReservation, StepReservation
from privimage.errors import UserError

HASH, OTHER, NETWORK = "ab" * 32, "cd" * 32, "ef" * 32
NONCE = "0123456789abcdef"
STEPS = SubsampledGaussian(0.2, 3.0, 20)
PLAN = Plan(10.0, 1e-4, 5.0, STEPS)
THRESHOLD = PLAN.sample_rate_threshold
MADE = Made(20, {"query": HASH, "finetune": NETWORK}, votes_per_image=4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def _steps(first, steps, sigma=3.0, rate=0.2, threshold=THRESHOLD):
    return StepReservation(SubsampledGaussian(rate, sigma, steps), first, threshold, NONCE)


def _query(sigma=5.0, std=10.0):
    return QueryReservation(Gaussian(sigma), 4, std, NONCE)


ASKED = [PLAN, _query(), Completion("query", HASH)]
SOUND = [*ASKED, _steps(0, 6), _steps(6, 14), Completion("finetune", NETWORK, 20)]


def _write(path, contents):
    """A ledger that says just this, with right hashes, as somebody might forge it."""
    with Ledger(path) as ledger:
        entries = list(ledger.entries)
    for content in contents:
        entry = chain.successor(entries, content)
        with path.open("ab") as file:
            file.write(chain.line_of(entries, entry))
        entries.append(entry)
    return path


def _problems(path, contents, made=MADE):
    return verify(_write(path, contents), made).problems


def test_a_sound_run_has_no_problems(path):
    result = verify(_write(path, SOUND), MADE)
    assert result.problems == ()
    assert 0 < result.epsilon.upper <= 10.0
    assert (result.delta, result.queries_reserved, result.queries_completed) == (1e-4, 1, 1)
    assert (result.steps_reserved, result.private, result.outside_epsilon) == (20, True, ())
    assert (result.unit, result.adjacency) == ("image", "add_remove_one_image")
    assert result.epsilon.upper < result.replace_one_epsilon < 3 * result.epsilon.upper


def test_what_a_crash_wasted_is_charged_and_no_problem(path):
    crashed = [PLAN, _query(), *ASKED[1:], _steps(0, 6), _steps(0, 6), _steps(6, 6), _steps(6, 14)]
    result = verify(_write(path, [*crashed, Completion("finetune", NETWORK, 20)]), MADE)
    assert result.problems == ()
    assert (result.queries_reserved, result.queries_completed) == (2, 1)
    assert result.steps_reserved == 32


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        ([*ASKED, _steps(0, 6), _steps(8, 12)], "line 6: steps 6 to 7 were never reserved"),
        ([*ASKED, _steps(0, 19)], "took 20 steps, only 19 were reserved"),
        # The first network's 20 steps don't pay for the second one's.
        ([*SOUND, _steps(0, 6)], "took 20 steps, only 6 were reserved"),
        ([*ASKED, Completion("finetune", NETWORK, 20)], "of 20 steps was completed, only 0"),
        ([PLAN, *ASKED[2:], *SOUND[3:]], "line 3: a query was completed that was not reserved"),
        ([*ASKED, Completion("query", OTHER), *SOUND[3:]], "line 5: a query was completed that"),
        ([*ASKED, *ASKED[1:], *SOUND[3:]], "the same query result was completed twice"),
        ([*ASKED, _query(), Completion("query", OTHER), *SOUND[3:]], "not the last one"),
        ([PLAN, _query(), *SOUND[3:]], "the query result is not one that this ledger completed"),
        ([*ASKED, _steps(0, 20)], "the finetune result is not one that this ledger completed"),
        ([PLAN, _query(std=5.0), *SOUND[2:]], "line 3: the query's noise is not σ_q·√(votes"),
        ([PLAN, _query(4.0, 8.0), *SOUND[2:]], "line 3: the query's σ is not the planned one"),
        ([SOUND[1], PLAN, *SOUND[2:]], "line 2: a query was reserved, but none was planned"),
        ([_steps(0, 20), *ASKED, *SOUND[3:]], "line 2: steps were reserved, but none were planned"),
        ([*ASKED, _steps(0, 20, sigma=2.9), SOUND[-1]], "steps' σ is not the planned one"),
        ([*ASKED, _steps(0, 20, rate=0.1), SOUND[-1]], "steps' sample rate is not the planned"),
        ([*ASKED, _steps(0, 20, threshold="7"), SOUND[-1]], "steps' sample rate is not the plann"),
        ([Plan(10.0, 1e-4, 5.0, STEPS, "7"), *SOUND[1:]], "line 2: the sampler's threshold is not"),
        ([*SOUND[:-1], Completion("finetune", OTHER, 20)], "finetune result is not one that this"),
        ([*SOUND, Plan(0.1, 1e-4, 5.0, STEPS)], "above the planned 0.1"),
        ([Plan(10.0, 1e-4, None, STEPS), *SOUND[3:]], "rests on a query, but none was planned"),
    ],
)
def test_what_is_wrong_with_the_structure_is_found(path, contents, problem):
    assert any(problem in found for found in _problems(path, contents))


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (Made(20, MADE.releases, None), "asks nothing, but a query was planned"),
        (Made(20, MADE.releases, 1), "the query had 4 votes an image, not 1"),
        (Made(20, {"finetune": NETWORK}, 4), "the query result that the selection rests on is mis"),
        (Made(20, MADE.releases | {"synthetic": HASH}, 4), "the synthetic result is not one that"),
    ],
)
def test_what_the_ledger_does_not_bear_out_is_found(path, made, problem):
    assert any(problem in found for found in _problems(path, SOUND, made))


def test_without_a_query_none_is_missed(path):
    plan = Plan(10.0, 1e-4, None, STEPS)
    sound = [plan, _steps(0, 20), Completion("finetune", NETWORK, 20)]
    made = Made(20, {"finetune": NETWORK}, None)
    assert _problems(path, sound, made) == ()
    assert _problems(path.with_name("other"), [*sound, _query()], made) != ()


def test_a_test_key_is_a_problem_and_a_declared_event_is_none(path):
    _write(path, SOUND)
    with Ledger(path) as ledger:
        ledger.record_outside_epsilon("accuracy of a train-on-real ceiling")
    result = verify(path, MADE)
    assert (result.private, result.problems) == (True, ())
    assert result.outside_epsilon == ("accuracy of a train-on-real ceiling",)
    with Ledger(path) as ledger:
        ledger.mark_not_private("test key")
    result = verify(path, MADE)
    assert (result.private, result.problems) == (False, ("not private: test key",))


def test_an_infinite_epsilon_is_no_problem_but_no_promise_either(path):
    steps = SubsampledGaussian(0.2, 0.0, 20)
    plan = Plan(math.inf, 1e-4, None, steps)
    contents = [plan, _steps(0, 20, sigma=0.0), Completion("finetune", NETWORK, 20)]
    result = verify(_write(path, contents), Made(20, {"finetune": NETWORK}, None))
    assert (result.private, result.problems) == (False, ())


def test_without_ledger_or_plan_there_is_no_epsilon(path):
    with pytest.raises(UserError, match="no readable ledger"):
        verify(path, MADE)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="the ledger is empty"):
        verify(path, MADE)
    with pytest.raises(UserError, match="no plan"):
        verify(_write(path, []), MADE)


def test_a_selftest_that_failed_is_a_problem_for_good(path):
    passed = Selftest("0.1.0", "2.13.0", "cpu", "cpu, x86_64", ())
    failed = replace(passed, failed=("noise",))
    _write(path, [*SOUND, passed])
    result = verify(path, MADE)
    assert (result.problems, result.selftests) == ((), (passed,))
    with Ledger(path) as ledger:
        ledger.record_selftest(failed)
        ledger.record_selftest(passed)
    result = verify(path, MADE)
    assert result.problems == ("the self-test on cpu, x86_64 failed: noise",)
    assert result.selftests == (passed, failed, passed)


def test_no_bound_under_replacement_is_infinite_and_no_problem(path, monkeypatch):
    def refuse(composition, delta):
        raise UserError("too large")

    monkeypatch.setattr(pld, "replace_one", refuse)
    result = verify(_write(path, SOUND), MADE)
    assert (result.replace_one_epsilon, result.problems) == (math.inf, ())
