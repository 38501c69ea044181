"""Each stage as a command of its own: the options of `train`, the order, the run's own recipe."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from tiny import TINY
from typer.testing import CliRunner

from privimage import cli, durable
from privimage.cli import options
from privimage.errors import UserError
from privimage.pipeline import forecast
from privimage.pipeline.schedule import STAGES
from privimage.progress import Reporter
from privimage.run.context import Run
from privimage.run.folder import RunFolder
from privimage.threads import Workers

CUT = [f"--set={name}={value}" for name, value in TINY.items()]
COMMANDS = [stage.command for stage in STAGES if stage.name != "evaluation"]


@pytest.fixture
def privimage(monkeypatch):
    """Runs a command in this process, whose signals stay as they are."""
    monkeypatch.setattr(options, "_stop_cleanly_on_signals", lambda _: None)
    return lambda *arguments: CliRunner().invoke(cli.app, [*map(str, arguments)])


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "run")


def _forget(run, *stages):
    for stage in stages:
        durable.remove_folder(run / stage)


def test_they_have_the_options_of_train_but_those_that_choose_stages():
    commands = typer.main.get_command(cli.app).commands
    expected = {parameter.name for parameter in commands["train"].params} - {"from_stage", "until"}
    for name in COMMANDS:
        assert {parameter.name for parameter in commands[name].params} == expected
        assert commands[name].help.startswith("Stage ")


def test_a_stage_waits_for_those_before_it_and_then_is_done_alone(privimage, tmp_path):
    run = tmp_path / "run"
    early = privimage("select", "--out", run, *CUT)
    assert isinstance(early.exception, UserError)
    assert "'classifier' comes before 'selection' and is not done" in str(early.exception)
    assert "`privimage classify` does it" in str(early.exception)
    assert not run.exists()
    assert privimage("classify", "--out", run, *CUT, "--set=classifier.steps=3").exit_code == 0
    # The recipe is the run's own from here on.
    shown = privimage("query", "--out", run)
    assert shown.exit_code == 0, shown.exception
    assert "2/7 query" in shown.output
    assert "3/7" not in shown.output
    assert {entry.name for entry in run.iterdir()} == {
        *("classifier", "query", "recipe.toml", "declared.json", "ledger.jsonl")
    }
    other = privimage("select", "--out", run, "--seed", 1)
    assert "the stage 'classifier' was made with another recipe" in str(other.exception)


def test_the_last_stages_end_in_a_report(privimage, copied):
    before = (copied / "ledger.jsonl").read_text()
    _forget(copied, "synthetic", "evaluation")
    (copied / "report.html").unlink()
    result = privimage("synthesize", "--out", copied)
    assert result.exit_code == 0, result.exception
    assert (copied / "synthetic/images.parquet").exists()
    assert not (copied / "evaluation").exists()
    figures = copied.parent / "figures.json"
    assert privimage("evaluate", copied, "--out", figures).exit_code == 0
    assert figures.read_bytes() == (copied / "evaluation/metrics.json").read_bytes()
    assert json.loads(figures.read_text())["pretrained"] is not None
    assert (copied / "report.html").exists()
    more = (copied / "ledger.jsonl").read_text().removeprefix(before).splitlines()
    assert [json.loads(line)["type"] for line in more] == ["complete"]


def test_a_stage_that_a_recipe_leaves_out_is_named(privimage, tmp_path):
    result = privimage("query", "--selection", "all", "--out", tmp_path / "run", *CUT)
    assert str(result.exception) == "--selection all has no stage 'query'"


def test_a_dry_run_is_about_the_stages_that_are_asked_for(privimage, tmp_path, copied, monkeypatch):
    monkeypatch.setattr(forecast, "_SECONDS", 0.0)
    run = tmp_path / "new"
    result = privimage("train", "--dry-run", "--json", "--until", "query", "--out", run, *CUT)
    found = json.loads(result.output)
    assert set(found["seconds"]) == {"classifier", "query"}
    assert found["plan"]["query_noise_multiplier"] == 5.0
    assert not run.exists()
    again = ["train", "--dry-run", "--json", "--out", copied, "--from-stage"]
    found = json.loads(privimage(*again, "synthetic").output)
    assert (set(found["seconds"]), found["plan"]) == ({"synthetic", "evaluation"}, None)
    # By the command's name as well.
    found = json.loads(privimage(*again, "synthesize").output)
    assert set(found["seconds"]) == {"synthetic", "evaluation"}
    few = privimage("train", "--dry-run", "--until", "query", "--set=finetune.sample_rate=0.001")
    assert "a step takes 1.4 images on average" in few.output
    # What `train` would refuse is refused.
    assert "raise --epsilon" in str(privimage(*again, "finetune").exception)


def test_public_stages_without_a_query_can_be_made_alone(privimage, tmp_path):
    run = tmp_path / "run"
    assert privimage("select", "--selection", "all", "--out", run, *CUT).exit_code == 0
    assert (run / "selection").exists()


def test_an_evaluation_without_a_file_says_that_nothing_is_kept(privimage, copied):
    stopped = privimage("evaluate", copied, "--max-minutes", 0)
    assert "with --out FILE the same command would go on" in stopped.exception.advice
    figures = copied.parent / "figures.json"
    options = ["--set=evaluation.features=", "--classifiers=logistic", "--out", figures]
    assert privimage("evaluate", copied, *options, "--max-minutes", 0).exception.advice.startswith(
        "nothing is lost"
    )
    assert privimage("evaluate", copied, *options).exit_code == 0
    assert [entry.name for entry in copied.parent.iterdir() if entry.name[0] == "."] == []


def test_progress_over_sensitive_images_is_shown_only_where_their_number_is_public(tiny):
    for values, is_shown in (({}, True), ({"data__public_size": 2000}, False)):
        folder = RunFolder(Path("not there"))
        run = Run(tiny(**values), folder, Reporter(), Workers(1), torch.device("cpu"))
        assert (run.counted_steps is not None) == is_shown
