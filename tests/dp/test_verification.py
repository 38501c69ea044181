import pytest

from privimage.dp import Ledger, Plan, SubsampledGaussian, verify
from privimage.errors import UserError

HASH = "ab" * 32
PLAN = Plan(10.0, 1e-4, 5.0, SubsampledGaussian(0.2, 1.7464, 300))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        ledger.complete_query(HASH)
        ledger.step_budget(300).reserve(300)
    return path


def test_a_sound_run_has_no_problems(path):
    result = verify(path, optimizer_steps=300, query_sha256=HASH)
    assert result.problems == ()
    assert 9.9 < result.epsilon.upper <= 10.0
    assert (result.delta, result.queries_reserved, result.steps_reserved) == (1e-4, 1, 300)
    assert result.adjacency == "add_remove_one_image"


def test_steps_beyond_the_reserved_ones_are_found(path):
    assert "only 300 were reserved" in verify(path, 301, HASH).problems[0]


def test_a_query_result_of_another_run_is_found(path):
    assert "not one that this ledger completed" in verify(path, 300, "cd" * 32).problems[0]


def test_a_query_that_was_completed_twice_is_found(path):
    with Ledger(path) as ledger:
        ledger.complete_query("cd" * 32)
    assert "2 queries were completed" in verify(path, 300, HASH).problems[0]


def test_an_epsilon_above_the_plan_is_found(path):
    with Ledger(path) as ledger:
        ledger.set_plan(Plan(5.0, 1e-4, 5.0, PLAN.finetune))
    assert "above the planned 5" in verify(path, 300, HASH).problems[0]


def test_without_ledger_or_plan_there_is_no_epsilon(tmp_path):
    with pytest.raises(UserError, match="no readable ledger"):
        verify(tmp_path / "ledger.jsonl", 0, None)
    with Ledger(tmp_path / "ledger.jsonl"):
        pass
    with pytest.raises(UserError, match="no plan"):
        verify(tmp_path / "ledger.jsonl", 0, None)
