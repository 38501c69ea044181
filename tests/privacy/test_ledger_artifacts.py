"""Private files that their ledger does not vouch for are refused, and so is paying once for two."""

import json
import shutil
from types import SimpleNamespace

import pytest
import tiny
from toy_accountant import adding_up

from privimage import durable, recipe
from privimage.dp import Gaussian, Ledger, Plan, SubsampledGaussian
from privimage.dp.accounting import accountant
from privimage.errors import UserError
from privimage.progress import Reporter
from privimage.run import spending, vouching
from privimage.run.folder import RELEASES, RunFolder

PLAN = Plan(10.0, 1e-4, 5.0, SubsampledGaussian(0.02, 1.0, 6))


@pytest.fixture(autouse=True)
def quick_accountant():
    """A query or step of noise multiplier σ costs 1/σ: these tests are not about accounting."""
    with adding_up(lambda part: getattr(part, "steps", 1) / part.noise_multiplier):
        yield


@pytest.fixture
def folder(tmp_path):
    """A finished run: query, fine-tuned network, synthetic images, all in its ledger."""
    folder = RunFolder(tmp_path / "run")
    for name in RELEASES:
        durable.make_folder(folder.stage(name))
    with Ledger(folder.ledger) as ledger:
        ledger.set_plan(PLAN)
        ledger.reserve_query()
        _release(folder, ledger, "query")
        ledger.step_budget(6).reserve(6)
        _release(folder, ledger, "finetune", steps=6)
        _release(folder, ledger, "synthetic")
    return folder


def _release(folder, ledger, name, steps=None):
    path = folder.stage(name) / RELEASES[name]
    path.write_text(f"what {name} released")
    if name != "synthetic":
        durable.write_json(folder.stage(name) / f"{name}.json", {"ledger_head": ledger.head})
    ledger.complete(name, durable.sha256(path), steps)


def _check(folder):
    vouching.refuse_without_ledger(folder)
    with Ledger(folder.ledger) as ledger:
        vouching.refuse_foreign_files(folder, ledger)


def _refused(folder, message):
    with pytest.raises(UserError, match=message) as caught:
        _check(folder)
    assert "\n" not in str(caught.value)


def test_a_run_and_its_ledger_fit(folder):
    _check(folder)


@pytest.mark.parametrize("stage", RELEASES)
@pytest.mark.parametrize("partial", [False, True])
def test_a_missing_ledger_is_refused_beside_any_private_stage(folder, stage, partial):
    folder.ledger.unlink()
    for name in RELEASES:
        if name != stage:
            shutil.rmtree(folder.stage(name))
    if partial:
        folder.stage(stage).rename(folder.partial(stage))
    _refused(folder, f"ledger.jsonl is missing beside the stage '{stage}'")
    assert not folder.ledger.exists()


def test_a_ledger_that_was_rolled_back_to_any_earlier_line_is_refused(folder):
    lines = folder.ledger.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    for kept in range(1, len(lines)):
        folder.ledger.write_bytes(b"".join(lines[:kept]))
        _refused(folder, "older")


def test_a_ledger_that_was_rolled_back_and_went_on_the_same_way_is_refused(folder):
    """The same records again have other hashes: a reservation's nonce is in all that follow it."""
    lines = folder.ledger.read_bytes().splitlines(keepends=True)
    folder.ledger.write_bytes(b"".join(lines[:2]))
    (folder.stage("synthetic") / "images.parquet").unlink()
    with Ledger(folder.ledger) as ledger:
        ledger.reserve_query()
        for name, steps in (("query", None), ("finetune", 6)):
            path = folder.stage(name) / RELEASES[name]
            ledger.complete(name, durable.sha256(path), steps)
    _refused(folder, "query.json or is another run's")


@pytest.mark.parametrize("stage", RELEASES)
def test_a_released_file_of_another_run_is_refused(folder, stage):
    (folder.stage(stage) / RELEASES[stage]).write_text("something else")
    _refused(folder, "is not what .* says was released")


@pytest.mark.parametrize("content", [{}, {"ledger_head": None}, {"ledger_head": "ab" * 32}])
@pytest.mark.parametrize("stage", ["query", "finetune"])
@pytest.mark.parametrize("partial", [False, True])
def test_a_result_without_its_ledger_head_is_refused(folder, stage, content, partial):
    durable.write_json(folder.stage(stage) / f"{stage}.json", content)
    if partial:
        folder.stage(stage).rename(folder.partial(stage))
    _refused(folder, f"is older than .*{stage}.json or is another run's")


@pytest.mark.parametrize("state", [{}, {"ledger_head": "ab" * 32}])
def test_a_checkpoint_without_its_ledger_head_is_refused(folder, state):
    durable.make_folder(folder.checkpoints("finetune"))
    record = folder.checkpoints("finetune") / "step-00000002.json"
    durable.write_json(record, {"step": 2, "sha256": "", "state": state})
    _refused(folder, "is older than .*step-00000002.json")
    head = json.loads(folder.ledger.read_text().splitlines()[4])["hash"]
    durable.write_json(record, {"step": 2, "sha256": "", "state": {"ledger_head": head}})
    _check(folder)


def _settle(folder, ledger, missing, repeated=(), **changes):
    values = tiny.TINY | {name.replace("__", "."): value for name, value in changes.items()}
    run = SimpleNamespace(
        recipe=recipe.preset("digits", values), folder=folder, reporter=Reporter(quiet=True)
    )
    spending.refuse_paid_twice(run, ledger, repeated)
    ledger.set_plan(spending.settled(run, ledger, missing, repeated))
    return ledger.plan


@pytest.mark.parametrize("repeated", [["query", "finetune"], ["finetune"]])
@pytest.mark.parametrize("epsilon", [9.0, 10.0])
def test_repeating_what_was_paid_for_needs_a_raised_budget(folder, repeated, epsilon):
    with Ledger(folder.ledger) as ledger:
        head = ledger.head
        with pytest.raises(UserError, match="raise --epsilon to pay for both"):
            _settle(folder, ledger, repeated, repeated, privacy__epsilon=epsilon)
        assert ledger.head == head
        plan = _settle(folder, ledger, repeated, repeated, privacy__epsilon=20.0)
        wanted = [*ledger.spent(), plan.finetune]
        if "query" in repeated:
            wanted.append(Gaussian(plan.query_noise_multiplier))
        # What was spent before and what is planned now lie within the new budget, together.
        assert 15 < accountant.epsilon(wanted, 1e-4).upper <= 20.0
        # A crash here is followed by the same command: the raised plan stays in force.
        assert _settle(folder, ledger, repeated, repeated, privacy__epsilon=20.0) is plan


def test_what_was_never_paid_for_may_be_repeated_for_nothing(tmp_path):
    folder = RunFolder(tmp_path)
    with Ledger(folder.ledger) as ledger:
        plan = _settle(folder, ledger, ["query", "finetune"])
        ledger.reserve_query()
        assert _settle(folder, ledger, ["finetune"], ["finetune"]) is plan
        with pytest.raises(UserError, match="raise --epsilon"):
            _settle(folder, ledger, ["query", "finetune"], ["query", "finetune"])


def test_a_plan_for_the_same_promise_stays_in_force_after_a_crash(tmp_path):
    folder = RunFolder(tmp_path)
    with Ledger(folder.ledger) as ledger:
        plan = _settle(folder, ledger, ["query", "finetune"])
        ledger.reserve_query()
        ledger.step_budget(6).reserve(2)
        assert _settle(folder, ledger, ["query", "finetune"]) is plan
        assert _settle(folder, ledger, ["finetune"]) is plan
        other = _settle(folder, ledger, ["finetune"], privacy__epsilon=12.0)
        assert other.query_noise_multiplier == plan.query_noise_multiplier
        assert other is not plan


@pytest.mark.parametrize("mode", ["all", "none"])
def test_without_a_semantic_selection_no_query_is_planned(folder, tmp_path, mode):
    with Ledger(tmp_path / "new") as ledger:
        assert (
            _settle(folder, ledger, ["finetune"], selection__mode=mode).query_noise_multiplier
            is None
        )
    with Ledger(folder.ledger) as ledger:
        changes = {"selection__mode": mode, "privacy__epsilon": 20.0}
        plan = _settle(folder, ledger, ["finetune"], ["finetune"], **changes)
        assert plan.query_noise_multiplier is None
