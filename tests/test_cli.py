"""The command line: exit codes, one line for a mistake, no traceback."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from unittest import mock

import pytest
from pictures import png, write_hub
from tiny import TINY

from privimage import cli
from privimage.cli import options

# One process runs all of them: what they share takes half a minute to make.
pytestmark = pytest.mark.xdist_group("cli")
PRIVIMAGE = [str(Path(sys.executable).with_name("privimage"))]
CUT = [f"--set={name}={value}" for name, value in TINY.items()]


def process(*arguments):
    """The installed command, in a process of its own, which takes seconds to start."""
    return subprocess.run([*PRIVIMAGE, *arguments], capture_output=True, text=True, check=False)


def run(*arguments, cwd="."):
    """The same in this process, whose signals stay as they are."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
        mock.patch.object(options, "_stop_cleanly_on_signals"),
        mock.patch.object(sys, "argv", ["privimage", *arguments]),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    return path, process("train", "--out", str(path), *CUT)


def test_train_says_what_it_does_what_it_cost_and_what_to_do_next(finished):
    path, result = finished
    assert result.returncode == 0, result.stderr
    assert "1437 images, a number treated as public" in result.stdout
    assert "declared public" in result.stdout
    assert "ε ≤ 10 at δ = 0.0001" in result.stdout
    assert "evaluation   about " in result.stdout
    assert "s of it on random images, " in result.stdout
    for number, stage in enumerate(("classifier", "query", "selection", "pretrain"), start=1):
        assert f"{number}/7 {stage}" in result.stdout
    assert "privimage ledger verify" in result.stdout
    assert str(path) in result.stdout


# Lines of typer's, and of rich's.
@pytest.mark.parametrize("command", ["presets", "export {run} --to zip --out x.zip"])
def test_a_reader_that_goes_away_is_no_failed_check(finished, tmp_path, command):
    arguments = command.format(run=finished[0]).split()
    reader, writer = os.pipe()
    os.close(reader)
    error = io.StringIO()
    with (
        open(writer, "w", encoding="utf-8") as gone,
        open(os.devnull, "wb") as nowhere,
        contextlib.chdir(tmp_path),
        contextlib.redirect_stdout(gone),
        contextlib.redirect_stderr(error),
        mock.patch.object(options, "_stop_cleanly_on_signals"),
        mock.patch.object(sys, "argv", ["privimage", *arguments]),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main()
        os.dup2(nowhere.fileno(), writer)  # What is still in the buffer.
    assert (ended.value.code, error.getvalue()) == (141, "")


def test_json_is_all_that_is_said(finished):
    path, _ = finished
    result = run("train", "--json", "--out", str(path), *CUT)
    assert json.loads(result.stdout)["epsilon"] <= 10
    assert result.stderr == ""


def test_export_and_report_answer(finished, tmp_path):
    path, _ = finished
    assert run("report", str(path)).stdout.strip() == str(path / "report.html")
    made = tmp_path / "new/x.zip"
    result = run("export", str(path), "--to", "zip", "--out", str(made))
    assert result.returncode == 0, result.stderr
    assert made.exists()


def test_quiet_says_nothing(finished):
    path, _ = finished
    result = run("train", "--quiet", "--out", str(path), *CUT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_evaluate_measures_a_run_and_leaves_it_as_it_is(finished, tmp_path):
    path, _ = finished
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    figures = tmp_path / "figures.json"
    options = ["--classifiers", "logistic", "--set=evaluation.splits=2", "--out", str(figures)]
    result = run("evaluate", str(path), *options)
    assert result.returncode == 0, result.stderr
    assert "FID (EfficientNet-Lite0) ↓" in result.stdout
    assert "rank-deficient" in result.stdout
    found = json.loads(figures.read_text())
    assert set(found["synthetic"]["accuracy"]) == {"logistic"}
    assert found["epsilon"] > 9
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_evaluate_measures_any_image_set(finished, tmp_path):
    path, _ = finished
    images, figures = path / "synthetic/images.parquet", tmp_path / "figures.json"
    options = ["--classifiers", "logistic", "--features", "", "--out", str(figures)]
    result = run("evaluate", str(images), "--test", "builtin:digits-test", *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(figures.read_text())
    assert found["synthetic"]["accuracy"]["logistic"]["n_training"] == 60
    assert (found["synthetic"]["scores"], "epsilon" in found) == (None, False)
    result = run("evaluate", str(images))
    assert result.returncode == 2
    assert "name them with --test" in result.stderr
    pets = write_hub(tmp_path / "pets.parquet", [png(0)] * 2, [0, 1], ["cat", "dog"])
    birds = write_hub(tmp_path / "birds.parquet", [png(0)] * 2, [0, 1], ["emu", "owl"])
    result = run("evaluate", str(birds), "--test", str(pets), *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert "none of its labels" in result.stderr


def test_ledger_verify_answers_with_json_and_its_exit_code(finished, tmp_path):
    path, _ = finished
    result = run("ledger", "verify", str(path))
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert found["problems"] == []
    assert found["epsilon"] < found["replace_one_epsilon"] < 3 * found["epsilon"]
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    facts = json.loads((copy / "finetune/finetune.json").read_text())
    (copy / "finetune/finetune.json").write_text(json.dumps(facts | {"steps": 7}))
    result = run("ledger", "verify", str(copy))
    assert result.returncode == 1
    assert "only 6 were reserved" in json.loads(result.stdout)["problems"][0]


def test_ledger_verify_names_a_released_file_that_was_changed(finished, tmp_path):
    path, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    with (copy / "synthetic/images.parquet").open("ab") as file:
        file.write(b"x")
    result = run("ledger", "verify", str(copy))
    assert result.returncode == 1
    problems = json.loads(result.stdout)["problems"]
    assert "the synthetic result is not one that this ledger completed" in problems
    assert f"{copy / 'synthetic/images.parquet'} is not what its stage wrote" in problems


def test_ledger_show_is_a_line_for_everything_that_happened(finished):
    path, _ = finished
    result = run("ledger", "show", str(path))
    assert result.returncode == 0
    *lines, promise = result.stdout.splitlines()
    words = [line.split()[1] for line in lines]
    assert words == ["begun", "planned", *["reserved", "released"] * 2, "released"]
    assert promise.startswith("In all: ε = ")
    assert promise.endswith("if one image is replaced by another.")
    assert "fine-tuning: 6 steps in 3 records (step 0 to 5)" in result.stdout
    assert result.stdout.count("ε so far") == 2


def test_ledger_compose_states_one_epsilon_for_all(finished, tmp_path):
    path, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    result = run("ledger", "compose", str(path), str(copy))
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert found["delta"] == 1e-4
    assert found["epsilons"][0] < found["epsilon"] < sum(found["epsilons"])
    assert "All 2 runs together: ε = " in found["sentence"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "digit"], "did you mean 'digits'"),
        (["train", "--set", "finetune.step=3"], "did you mean 'finetune.steps'"),
        (["train", "--preset", "digits", "--sensitive", "/no/such", "--public", "x"], "/no/such"),
        (["train", "--sensitive", "mine"], "--preset; `privimage presets` lists"),
        (["train", "--preset", "digits", "--sensitive", "mine"], "--public PATH"),
        (["train", "--classes", "a,a"], "'a' is there twice"),
        (["train", "--classes", "a,,b"], "a name is empty"),
        (["train", "--classes", "0"], "--classes must be a whole number of at least 1"),
        (["train", "--classes=-1"], "--classes must be a whole number of at least 1"),
        (["train", "--classes", str(10**11)], "--classes: more than 100,000 labels"),
        (["train", "--set", "data.classes=['a', 'a']"], "'a' is there twice"),
        (["train", "--epsilon", "0"], "epsilon must be above 0"),
        (["train", "--epsilon", "-1"], "epsilon must be above 0"),
        (["train", "--delta", "0.001"], "below 1 / 1437"),
        (["train", "--selection", "some"], "selection.mode"),
        (["train", "--preset", "cifar10"], "--sensitive"),
        (["train", "--unit", "person", "--person", "folder:1"], "names no persons by folder:1"),
        (["train", "--test", "builtin:digits-train"], "is the sensitive set itself"),
        (["train", "--device", "tpu"], "--device"),
        (["train", "--threads", "0"], "--threads"),
        (["train", "--max-memory", "0"], "--max-memory"),
        (["train", "--max-minutes", "-1"], "--max-minutes must be a finite number of at least 0"),
        (["evaluate", "/no/such"], "synthetic images: there is no file or folder '/no/such'"),
        (["ledger", "verify", "/no/such"], "no run in this folder"),
        (["ledger", "show", "/no/such"], "no run in this folder"),
        (["ledger", "compose", "/no/such"], "no run in this folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, arguments, message):
    out = ["--out", str(tmp_path / "run")] if arguments[0] == "train" else []
    result = run(*arguments, *out, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_installed_command_ends_a_mistake_in_one_line_and_status_2():
    result = process("presets", "show", "digit")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: there is no preset 'digit'; did you mean 'digits'?\n"


def test_a_narrow_terminal_or_a_locale_that_knows_ascii_alone_is_no_obstacle():
    poor = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "COLUMNS": "40"}
    result = subprocess.run(
        [*PRIVIMAGE, "train", "--help"],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | poor,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "ε protects" in result.stdout
    assert "--sensitive <" in result.stdout


def test_ctrl_c_while_it_starts_ends_it_without_a_word():
    impatient = """
import os, signal, sys
class Impatient:
    def find_spec(name, *rest):
        if name == "privimage.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Impatient)
from privimage.__main__ import main
main()
"""
    result = subprocess.run([sys.executable, "-c", impatient], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


def test_a_full_disk_under_standard_output_is_a_line():
    with mock.patch.object(cli, "app", side_effect=OSError(28, "No space left on device")):
        result = run("presets")
    assert result.returncode == 2
    assert result.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("train --preset dig", {"digits"}),
        ("train --from-stage s", {"selection", "synthetic"}),
        ("train --until q", {"query"}),
        ("train --set finetune.st", {"finetune.steps="}),
        ("train --selection n", {"none"}),
        ("export run --to p", {"parquet"}),
        ("presets show smo", {"smoke"}),
        ("finet", {"finetune"}),
        ("train --max-mi", {"--max-minutes"}),
    ],
)
def test_the_shell_completes_commands_options_and_values(monkeypatch, words, offered):
    monkeypatch.setenv("_PRIVIMAGE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"privimage {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    assert {*run().stdout.split()} == offered


def test_presets_answer():
    listed = [line.split()[0] for line in run("presets").stdout.splitlines()]
    assert {"bench-mnist", "celeba64", "cifar10", "digits", "smoke"} <= {*listed}
    shown = tomllib.loads(run("presets", "show", "digits").stdout)
    assert shown["finetune"]["steps"] == 300


def test_without_native_operators_the_command_says_so_in_a_line():
    hidden = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: name[-7:] != "_native" and find(name, *rest) or None
sys.argv = ["privimage", "presets"]
from privimage.__main__ import main
main()
"""
    result = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: privimage was installed without its native operators")


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(tmp_path):
    result = run("train", "--dry-run", "--json", "--out", str(tmp_path / "run"), *CUT)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["plan"]["epsilon"] == 10.0
    assert found["plan"]["finetune"]["steps"] == 6
    spending_time = {"classifier", "query", "pretrain", "finetune", "synthetic", "evaluation"}
    assert set(found["seconds"]) == spending_time
    assert 0 < found["measured"] < 60
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_made_stage_by_stage(tmp_path):
    arguments = ["train", "--quiet", "--out", str(tmp_path / "run"), *CUT]
    result = run(*arguments, "--until", "selection")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/selection").exists()
    assert not (tmp_path / "run/pretrain").exists()
    assert "did you mean 'selection'" in run(*arguments, "--until", "selecton").stderr


def test_a_limit_stops_cleanly_and_says_how_to_go_on(tmp_path):
    result = run("train", "--out", str(tmp_path / "run"), "--max-minutes", "0.01", *CUT)
    assert result.returncode == 0
    assert "Run the same command again to go on" in result.stdout


def wait_for(path, process):
    """Returns when `path` is there; fails when the process that makes it ended without it."""
    while not path.exists():
        assert process.poll() is None, f"status {process.returncode} before {path.name}"
        time.sleep(0.1)


def test_a_signal_stops_at_a_step_boundary(tmp_path):
    long = ["--set=classifier.steps=100000"]
    process = subprocess.Popen(
        [*PRIVIMAGE, "train", "--out", str(tmp_path / "run"), *CUT, *long],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "run/.classifier.partial/stage.json", process)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "classifier" in out
    assert list((tmp_path / "run/.classifier.partial/checkpoints").glob("*.json"))


def test_a_run_folder_cannot_be_shared_by_two(tmp_path):
    arguments = ["train", "--quiet", "--out", str(tmp_path / "run"), *CUT]
    first = subprocess.Popen([*PRIVIMAGE, *arguments, "--set=classifier.steps=100000"])
    try:
        wait_for(tmp_path / "run/.classifier.partial", first)
        second = run(*arguments, "--set=classifier.steps=100000")
        assert second.returncode == 2
        assert "another process is working on this run" in second.stderr
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()


@pytest.mark.parametrize("option", ["--sensitive", "--public", "--test"])
@pytest.mark.parametrize("out", ["set", "set/runs/mine"])
def test_a_run_folder_in_an_image_set_is_refused(tmp_path, option, out):
    (tmp_path / "set/a").mkdir(parents=True)
    sets = {"--sensitive": "builtin:digits-train", "--public": "builtin:glyphs", option: "set"}
    given = [word for pair in sets.items() for word in pair]
    result = run("train", "--preset", "digits", *given, "--out", out, cwd=tmp_path)
    assert result.returncode == 2
    assert f"lies in the image set {option} 'set'" in result.stderr
    assert [entry.name for entry in (tmp_path / "set").iterdir()] == ["a"]


def test_a_run_that_had_not_begun_does_not_become_the_demo(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    result = run("train", "--out", str(tmp_path))
    assert result.returncode == 2
    assert "give its options again" in result.stderr
    assert not (tmp_path / "recipe.toml").exists()
