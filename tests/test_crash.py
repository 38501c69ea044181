"""A run that is killed in every stage, over and over, spends no more than its ledger says."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from crash_server import RECIPE

from privimage import audit, pipeline
from privimage.errors import UserError
from privimage.pipeline import schedule
from privimage.pipeline.training import Machine
from privimage.progress import Reporter

# One process runs all of them: what they share takes two minutes to make.
pytestmark = pytest.mark.xdist_group("crash")
SERVER = Path(__file__).with_name("crash_server.py")
STAGES = [stage.name for stage in schedule.STAGES]


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """A run's folder, and what was seen after each kill and at its end."""
    place = tmp_path_factory.mktemp("crash")
    arguments = [sys.executable, str(SERVER), str(place / "run"), str(place / "touches"), "0"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return place / "run", json.loads(result.stdout)["states"]


def _is_covered(state):
    """Whether the ledger pays for what was touched, within what was planned."""
    found = state.get("verified")
    if found is None:
        # Before there is a plan there is no ε, and nothing may have been touched.
        return state["queries"] == state["steps"] == 0
    return (
        found["problems"] == []
        and found["epsilon"] <= found["planned_epsilon"] == RECIPE.privacy.epsilon
        and found["queries_reserved"] >= state["queries"]
        and found["steps_reserved"] >= state["steps"]
    )


def test_no_kill_makes_the_ledger_say_too_little(survived):
    _, states = survived
    assert len(states) > 20
    for state in states:
        assert _is_covered(state), state
    # The same check notices a step or a query that was not reserved.
    last = states[-1]
    for purpose in ("queries", "steps"):
        reserved = last["verified"][f"{purpose}_reserved"]
        assert reserved >= last[purpose] > 0
        assert not _is_covered(last | {purpose: reserved + 1})


def test_every_stage_was_killed_and_the_same_call_finished_the_run(survived):
    _, states = survived
    assert {state["status"] for state in states[:-1]} == {-9}
    assert {state["stage"] for state in states if state["inside"]} == set(STAGES)
    assert states[-1]["status"] == 0
    # Kills in the private stages cost what they had reserved, and the run got on with the rest.
    assert states[-1]["verified"]["queries_reserved"] > 1
    assert RECIPE.finetune.steps / 2 < states[-1]["steps"] <= RECIPE.finetune.steps


def test_a_run_that_was_killed_leaves_what_any_run_leaves(survived):
    path, _ = survived
    assert {entry.name for entry in path.iterdir()} == {
        *STAGES,
        *("recipe.toml", "declared.json", "ledger.jsonl", "report.html"),
    }
    assert not list(path.rglob("*.partial"))
    assert not list(path.rglob("checkpoints"))
    table = pq.read_table(path / "synthetic/images.parquet")
    assert table.num_rows == 10 * RECIPE.synthesis.images_per_label
    metrics = json.loads((path / "evaluation/metrics.json").read_text())
    assert metrics["epsilon"] == audit.verify(path)["epsilon"]


def _again(path):
    pipeline.train(RECIPE, path, Machine("cpu", 2), Reporter(quiet=True))


def test_a_stage_folder_that_is_not_whole_is_made_again(survived):
    path, _ = survived
    folder, ledger = path / "selection", (path / "ledger.jsonl").read_bytes()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "stage.json").unlink()
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:10])
    (folder / "stray").write_text("left over")
    _again(path)
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert before.keys() == after.keys()
    assert all(before[file] == after[file] for file in before if file != "stage.json")
    assert (path / "ledger.jsonl").read_bytes() == ledger


def test_a_released_file_that_was_cut_is_refused(survived):
    path, _ = survived
    released = path / "synthetic/images.parquet"
    whole = released.read_bytes()
    released.write_bytes(whole[:-10])
    try:
        with pytest.raises(UserError, match=r"is not what .* says was released"):
            _again(path)
    finally:
        released.write_bytes(whole)


def test_a_private_stage_that_is_not_whole_is_not_made_again_for_free(survived):
    path, _ = survived
    ledger = (path / "ledger.jsonl").read_bytes()
    (path / "finetune/stage.json").rename(path / "stage.json")
    try:
        with pytest.raises(UserError, match="the budget pays for no step"):
            _again(path)
        assert (path / "ledger.jsonl").read_bytes() == ledger
    finally:
        (path / "stage.json").rename(path / "finetune/stage.json")
