"""The seven stages end to end, on the built-in digits with a few steps each."""

import errno
import functools
import json
import math
import shutil
from unittest import mock

import pyarrow.parquet as pq
import pytest
import torch
from pictures import png, write_hub

from privimage import audit, durable, load
from privimage.dp import Ledger
from privimage.errors import UserError
from privimage.export import export
from privimage.pipeline import preflight, schedule
from privimage.progress import Reporter, Stopped
from privimage.recipe import DataSettings
from privimage.report import write_report
from privimage.run.folder import STAGE_NAMES


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run's folder of the test's own."""
    return shutil.copytree(finished[1], tmp_path / "run")


def _records(path):
    return [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]


def test_every_stage_leaves_its_folder_and_nothing_else(finished):
    _, path = finished
    expected = {stage.name for stage in schedule.STAGES}
    files = {"recipe.toml", "declared.json", "ledger.jsonl", "report.html"}
    assert {entry.name for entry in path.iterdir()} == expected | files
    for name in expected:
        record = json.loads((path / name / "stage.json").read_text())
        assert record["seconds"] >= 0
        assert not (path / name / "checkpoints").exists()


def test_the_stages_have_one_order():
    assert tuple(stage.name for stage in schedule.STAGES) == STAGE_NAMES


def test_metrics_hold_the_promise_and_both_accuracies(finished):
    _, path = finished
    metrics = json.loads((path / "evaluation/metrics.json").read_text())
    assert 9.0 < metrics["epsilon"] <= 10.0
    assert (metrics["delta"], metrics["adjacency"]) == (1e-4, "add_remove_one_image")
    for found in (metrics["synthetic"], metrics["pretrained"]):
        assert set(found["accuracy"]) == {"cnn", "mlp", "logistic"}
        for accuracy in found["accuracy"].values():
            assert 0 <= accuracy["over_test_images"]["value"] <= 1
        assert found["scores"]["fid"]["label"] == "FID (EfficientNet-Lite0)"
        assert found["near_duplicates"]["against"] == "public"
    assert any("rank-deficient" in caveat for caveat in metrics["caveats"])
    assert (metrics["ceiling"], metrics["sensitive_duplicates"]) == (None, None)
    assert (path / "evaluation/comparison.png").stat().st_size > 1000


def test_the_parquet_is_in_the_layout_of_the_hub(finished):
    _, path = finished
    table = pq.read_table(path / "synthetic/images.parquet")
    assert table.num_rows == 60
    assert table.schema.field("label").type == "int64"
    assert {field.name for field in table.schema.field("image").type} == {"bytes", "path"}
    assert table["image"][0]["bytes"].as_py().startswith(b"\x89PNG")


def test_the_ledger_covers_the_run(finished):
    _, path = finished
    result = audit.verify(path)
    assert result["problems"] == []
    assert (result["queries_reserved"], result["steps_reserved"]) == (1, 6)
    assert [record["type"] for record in _records(path)] == [
        "genesis",
        "plan",
        *["reserve", "complete"],
        *["reserve"] * 3,
        *["complete"] * 2,
    ]


def test_a_finished_run_is_left_as_it_is(finished, train):
    chosen, path = finished
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*.safetensors")}
    ledger = (path / "ledger.jsonl").read_bytes()
    train(chosen, path)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.safetensors")} == before
    assert (path / "ledger.jsonl").read_bytes() == ledger


def test_another_recipe_is_refused_with_the_difference(finished, tiny, train):
    _, path = finished
    with pytest.raises(UserError, match=r"'finetune' .*finetune.draws: 2 → 3.* --from-stage"):
        train(tiny(finetune__draws=3), path)
    with pytest.raises(UserError, match=r"'classifier' .*seed: 0 → 1"):
        train(tiny(seed=1), path)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"selection__mode": "none"}, "finetune"),
        ({"selection__mode": "all", "data__classes": tuple("abcdefghij")}, "selection"),
    ],
)
def test_a_stage_is_not_kept_for_another_selection_or_other_labels(
    tiny, train, copied, changes, stage
):
    before = (copied / "recipe.toml").read_bytes()
    with pytest.raises(UserError, match=rf"'{stage}' .*{list(changes)[-1].replace('__', '.')}"):
        train(tiny(**changes), copied)
    assert (copied / "recipe.toml").read_bytes() == before


def test_another_public_set_under_a_selection_is_refused(tiny, train, copied):
    path = copied / "selection/selection.json"
    record = durable.read_json(path)
    durable.write_json(path, record | {"public_classes": record.get("public_classes", ["a"])[:-1]})
    durable.remove_folder(copied / "pretrain")
    with pytest.raises(UserError, match="--public: its classes are not those"):
        train(tiny(), copied)


@pytest.mark.parametrize(
    ("from_stage", "until"),
    [("finetune", None), ("pretrain", "pretrain"), ("finetune", "pretrain"), ("query", "query")],
)
def test_a_spent_budget_pays_for_no_second_fine_tuning(copied, tiny, train, from_stage, until):
    before = {file: file.read_bytes() for file in copied.rglob("*.*")}
    with pytest.raises(UserError, match="raise --epsilon"):
        train(tiny(), copied, from_stage=from_stage, until=until)
    assert {file: file.read_bytes() for file in copied.rglob("*.*")} == before


def test_a_run_may_go_from_its_query_to_all_classes_and_back(copied, tiny, train):
    everything = tiny(selection__mode="all", privacy__epsilon=20.0)
    train(everything, copied, from_stage="selection", until="finetune")
    assert audit.verify(copied)["problems"] == []
    query = (copied / "query/histogram.safetensors").read_bytes()
    train(tiny(privacy__epsilon=30.0), copied, from_stage="selection", until="finetune")
    assert audit.verify(copied)["problems"] == []
    assert (copied / "query/histogram.safetensors").read_bytes() == query


def test_what_was_made_from_another_query_is_refused(copied, tiny, train):
    """Two copies of a run that asked twice: one ledger would pay for one of two queries."""
    for name, record in (("query", "selection"), ("selection", "pretrain")):
        path = copied / record / "stage.json"
        before = path.read_bytes()
        durable.write_json(path, durable.read_json(path) | {"inputs": {name: {"a": "b"}}})
        with pytest.raises(UserError, match=f"{record} was made from another '{name}'"):
            train(tiny(), copied)
        assert f"another '{name}'" in str(audit.verify(copied)["problems"])
        path.write_bytes(before)
    rest = copied / ".pretrain.removed"
    shutil.copytree(copied / "pretrain", rest)
    durable.write_json(rest / "stage.json", {"inputs": {"selection": {"a": "b"}}})
    assert audit.verify(copied)["problems"] == []


def test_what_another_process_did_meanwhile_is_not_paid_for_again(
    finished, tiny, train, tmp_path, monkeypatch
):
    path, check = tmp_path / "run", preflight.check

    def while_another_process_runs(run, missing):
        monkeypatch.setattr(preflight, "check", check)
        shutil.copytree(finished[1], path)
        check(run, missing)

    monkeypatch.setattr(preflight, "check", while_another_process_runs)
    with pytest.raises(UserError, match=r"another process .* meanwhile; start again"):
        train(tiny(), path)
    assert _records(path) == _records(finished[1])


def test_a_stage_name_with_a_typo_is_answered_with_the_nearest(finished, train):
    chosen, path = finished
    with pytest.raises(UserError, match="did you mean 'synthetic'"):
        train(chosen, path, from_stage="synthesis")


def test_a_public_stage_can_be_repeated_for_free(tiny, train, copied):
    ledger = (copied / "ledger.jsonl").read_bytes()
    train(tiny(synthesis__images_per_label=3), copied, from_stage="synthetic")
    assert pq.read_table(copied / "synthetic/images.parquet").num_rows == 30
    more = (copied / "ledger.jsonl").read_bytes().removeprefix(ledger)
    assert [json.loads(line)["type"] for line in more.splitlines()] == ["complete"]
    assert audit.verify(copied)["problems"] == []


def test_a_raised_budget_pays_for_a_second_fine_tuning(tiny, train, copied):
    train(tiny(privacy__epsilon=15.0), copied, from_stage="finetune")
    result = audit.verify(copied)
    assert result["problems"] == []
    assert result["steps_reserved"] == 12
    assert 10 < result["epsilon"] <= 15


def test_a_ledger_put_back_under_an_unfinished_run_is_a_problem(tiny, train, copied):
    before = (copied / "ledger.jsonl").read_bytes()
    with pytest.raises(Stopped):
        train(tiny(privacy__epsilon=15.0), copied, from_stage="finetune", patience=0)
    now = (copied / "ledger.jsonl").read_bytes()
    assert audit.verify(copied)["problems"] == []
    (copied / "ledger.jsonl").write_bytes(before)
    (problem,) = audit.verify(copied)["problems"]
    assert "step-00000002.json was made under a ledger that is newer than this one" in problem
    (copied / "ledger.jsonl").write_bytes(now)
    assert audit.verify(copied)["problems"] == []


def test_a_repetition_that_was_stopped_goes_on_without_repeating(tiny, train, copied):
    raised = tiny(privacy__epsilon=15.0)
    with pytest.raises(Stopped) as stopped:
        train(raised, copied, from_stage="finetune", patience=0)
    assert "Run it again without --from-stage" in stopped.value.advice
    ledger = (copied / "ledger.jsonl").read_bytes()
    with pytest.raises(UserError, match="leave out --from-stage to go on with what was begun, or"):
        train(raised, copied, from_stage="finetune")
    assert (copied / "ledger.jsonl").read_bytes() == ledger
    with pytest.raises(Stopped) as stopped:
        train(raised, copied, patience=0)
    assert "Run the same command again" in stopped.value.advice
    train(raised, copied)
    assert audit.verify(copied)["problems"] == []
    with pytest.raises(UserError, match="so raise --epsilon"):
        train(raised, copied, from_stage="finetune")


def test_a_repetition_that_the_disk_refused_goes_on_without_repeating(tiny, train, copied):
    real = durable.write_bytes

    def write(path, data):
        if ".synthetic.partial" in path.parts and path.name != "stage.json":
            raise durable.cannot_write(path, OSError(errno.ENOSPC, "No space left on device"))
        real(path, data)

    with (
        mock.patch.object(durable, "write_bytes", write),
        pytest.raises(UserError, match="same command again; without --from-stage this time"),
    ):
        train(tiny(), copied, from_stage="synthetic")


def test_a_run_can_be_asked_for_what_lies_outside_epsilon(tiny, train, copied):
    asked = tiny(evaluation__ceiling=True, evaluation__classifiers=("logistic",))
    train(asked, copied, from_stage="evaluation")
    metrics = json.loads((copied / "evaluation/metrics.json").read_text())
    assert metrics["ceiling"]["logistic"]["n_training"] == 1437
    assert metrics["ceiling"]["logistic"]["over_test_images"]["value"] > 0.9
    (what,) = metrics["outside_epsilon"]
    assert "trained on the sensitive images" in what
    result = audit.verify(copied)
    assert (result["problems"], list(result["outside_epsilon"])) == ([], [what])
    ledger = copied / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    (outside,) = (
        i for i, line in enumerate(lines) if b"without noise" in line or what.encode() in line
    )
    ledger.write_bytes(b"".join(lines[:outside]))
    problems = "; ".join(audit.verify(copied)["problems"])
    assert "metrics.json was made under a ledger that is newer than this one" in problems
    assert "report.html was made under a ledger that is newer than this one" in problems
    with pytest.raises(UserError, match=r"is older than .*metrics.json"):
        train(asked, copied)


@pytest.mark.parametrize("mode", ["all", "none"])
def test_the_baselines_ask_nothing(tiny, train, tmp_path, mode):
    train(tiny(selection__mode=mode), tmp_path / "run")
    assert audit.verify(tmp_path / "run")["queries_reserved"] == 0
    assert not (tmp_path / "run/query").exists()
    assert (tmp_path / "run/pretrain").exists() == (mode == "all")
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert (metrics["pretrained"] is None) == (mode == "none")


def test_an_infinite_epsilon_is_stamped_as_not_private(tiny, train, tmp_path):
    train(tiny(privacy__epsilon=math.inf), tmp_path / "run")
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert (metrics["private"], metrics["epsilon"]) == (False, None)
    metadata = pq.read_schema(tmp_path / "run/synthetic/images.parquet").metadata
    assert b'"private": false' in metadata[b"privimage"]


def test_unlabelled_images_make_one_row(tiny, train, tmp_path, unlabelled):
    train(tiny(data__sensitive=str(unlabelled), data__test=""), tmp_path / "run")
    metrics = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert metrics["synthetic"]["accuracy"] is None
    assert metrics["synthetic"]["scores"] is None
    assert "there is no test set: neither accuracy nor scores" in metrics["caveats"]
    assert pq.read_table(tmp_path / "run/synthetic/images.parquet").num_rows == 6


@pytest.fixture
def unlabelled(tmp_path):
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path / "flat"
    folder.mkdir()
    for index, image in enumerate(load_digits().images[:400]):
        Image.fromarray((image * 15).astype("uint8")).save(folder / f"{index:04d}.png")
    return folder


# In the first stage, in pre-training, in fine-tuning.
@pytest.mark.parametrize("patience", [1, 65, 70])
def test_a_stopped_run_goes_on_to_the_same_result(finished, tiny, train, tmp_path, patience):
    with pytest.raises(Stopped):
        train(tiny(), tmp_path / "run", patience=patience)
    train(tiny(), tmp_path / "run")
    assert audit.verify(tmp_path / "run")["problems"] == []
    assert audit.verify(tmp_path / "run")["steps_reserved"] == 6
    _, whole = finished
    name = "classifier/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__sensitive": "/no/such/place"}, "/no/such/place"),
        ({"data__public": "/no/such/place"}, "/no/such/place"),
        ({"data__test": "/no/such/place"}, "/no/such/place"),
        ({"data__test": "unlabelled"}, "--test: its labels must be .*but it has none"),
        (
            {"data__test": "pets", "data__classes": tuple("abcdefghij")},
            "--test: none of its labels .'cat', 'dog' .* images' .'a', ",
        ),
        ({"data__public": ""}, "--public"),
        ({"data__sensitive": ""}, "--sensitive"),
        ({"privacy__delta": 1e-3}, "below 1 / 1437"),
        ({"data__public_size": 20000}, "below 1 / 20000"),
        ({"selection__classes_per_label": 11}, "10 labels would need 110"),
        ({"query__votes_per_image": 200}, "only 103 classes"),
        ({"evaluation__features": "inceptoin"}, "did you mean 'inception'"),
        ({"evaluation__weights": "/no/such"}, "can't read the weights"),
        ({"evaluation__classifiers": ("cnm",)}, "did you mean 'cnn'"),
        ({"data__test": "", "evaluation__ceiling": True}, "needs images to test on"),
        ({"network__multipliers": (1, 1, 1, 1, 1)}, "must halve"),
    ],
)
def test_a_mistake_is_found_before_anything_is_spent(
    tiny, train, tmp_path, unlabelled, changes, message
):
    pets = write_hub(tmp_path / "pets.parquet", [png(0)] * 2, [0, 1], ["cat", "dog"])
    sets = {"unlabelled": str(unlabelled), "pets": str(pets)}
    changes = {name: sets.get(str(value), value) for name, value in changes.items()}
    with pytest.raises(UserError, match=message) as caught:
        train(tiny(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/recipe.toml").exists()


@pytest.mark.parametrize("until", ["query", "finetune"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__test": "/no/such/place"}, "/no/such/place"),
        ({"data__test": "pets"}, "--test: none of its labels"),
        ({"evaluation__weights": "/no/such"}, "can't read the weights"),
    ],
)
def test_test_images_are_looked_at_before_anything_is_spent_on_what_they_will_measure(
    tiny, train, tmp_path, changes, message, until
):
    pets = write_hub(tmp_path / "pets.parquet", [png(0)] * 2, [0, 1], ["cat", "dog"])
    changes = {name: str(pets) if value == "pets" else value for name, value in changes.items()}
    if "data__test" in changes:
        changes["data__classes"] = tuple("abcdefghij")
    with pytest.raises(UserError, match=message):
        train(tiny(**changes), tmp_path / "run", until=until)
    assert not (tmp_path / "run").exists()


def test_public_stages_alone_need_no_test_images(tiny, train, tmp_path):
    train(tiny(data__test="/no/such/place"), tmp_path / "run", until="classifier")
    assert (tmp_path / "run/classifier").exists()


@pytest.mark.parametrize("name", ["classifier", "query", "evaluation"])
def test_folders_of_the_users_own_are_left_alone(tiny, train, tmp_path, name):
    mine = tmp_path / "work" / name / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(UserError, match=f"'{name}' in it was made by no run.*another --out"):
        train(tiny(), tmp_path / "work")
    assert mine.read_text() == "years of work"
    assert [*(tmp_path / "work").iterdir()] == [mine.parent]


def test_a_run_inside_a_file_is_one_clear_line(tiny, train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder; choose another --out"):
        train(tiny(), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("name", "stands_in", "message"),
    [
        ("os.access", lambda *_: False, "no permission to write in .*; choose another --out"),
        ("shutil.disk_usage", lambda _: mock.Mock(free=1), "MB free on its disk; make room there"),
    ],
)
def test_a_disk_that_refuses_is_known_at_the_start(
    tiny, train, tmp_path, monkeypatch, name, stands_in, message
):
    monkeypatch.setattr(f"privimage.pipeline.preflight.{name}", stands_in)
    with pytest.raises(UserError, match=message):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("full", "is_spent"), [("pretrain", False), ("query", True), ("finetune", True)]
)
def test_a_full_disk_says_what_stays_spent(finished, tiny, train, tmp_path, full, is_spent):
    shutil.copytree(finished[1] / "classifier", tmp_path / "run/classifier")
    real = durable.write_bytes

    def write(path, data):
        # The first file of a private stage is written after the ledger has reserved for it.
        if f".{full}.partial" in path.parts and path.name != "stage.json":
            raise durable.cannot_write(path, OSError(errno.ENOSPC, "No space left on device"))
        real(path, data)

    with (
        mock.patch.object(durable, "write_bytes", write),
        pytest.raises(UserError, match="No space left on device") as caught,
    ):
        train(tiny(), tmp_path / "run")
    assert str(caught.value).endswith("ledger.jsonl reserved before stays spent") == is_spent


def test_a_deleted_ledger_is_refused(tiny, train, copied):
    (copied / "ledger.jsonl").unlink()
    with pytest.raises(UserError, match="is missing beside the stage 'query'"):
        train(tiny(), copied)


def _one_line(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", ["null", "{}", "[]"])
def test_a_damaged_record_is_named_in_one_line(tiny, train, copied, content):
    report = functools.partial(write_report, copied)
    for name, calls in (
        ("query/stage.json", (lambda: train(tiny(), copied), report)),
        ("finetune/finetune.json", (lambda: audit.verify(copied), report)),
        ("declared.json", (report,)),
    ):
        whole = (copied / name).read_text()
        (copied / name).write_text(content)
        for call in calls:
            assert f"{name}: is no record" in _one_line(call)
        (copied / name).write_text(whole)
    (copied / "query/stage.json").write_text("null")
    assert "query/stage.json: is no record" in _one_line(audit.verify, copied)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("declared.json", "names", ("ab", [1], {})),
        ("declared.json", "public_size", ("5", 5.5, True)),
        ("declared.json", "public_size_was_declared", (None, "no")),
        ("classifier/classifier.json", "classes", (None, [1])),
        ("query/query.json", "noise_std", (None, "1", [1])),
        ("selection/selection.json", "mode", (None, 5)),
        ("selection/selection.json", "fell_back", (None, "no")),
        ("selection/selection.json", "label_of", (None, [1], {"a": 1}, {"1": "a"})),
        ("selection/selection.json", "chosen", ([], {"a": "b"})),
        ("pretrain/losses.json", "steps", (None, [1.5], {})),
        ("pretrain/losses.json", "losses", (None, ["1"], 1)),
        ("evaluation/metrics.json", "synthetic", ({"scores": []}, [])),
        ("evaluation/stage.json", "seconds", ("1",)),
        ("evaluation/stage.json", "peak_memory_mib", ("1",)),
        ("evaluation/stage.json", "files", ([], {"a": 1})),
        ("pretrain/stage.json", "inputs", ([], {"query": []})),
    ],
)
def test_a_record_of_another_form_is_named_in_one_line(copied, name, field, values):
    path = copied / name
    whole = durable.read_json(path)
    for content in ([], "text", *(whole | {field: value} for value in values)):
        durable.write_json(path, content)
        assert _one_line(write_report, copied).startswith(f"{path}: ")
    if None in values:
        del whole[field]
        durable.write_json(path, whole)
        assert _one_line(write_report, copied).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "field", "repeated"),
    [
        ("query/query.json", "noise_std", "selection"),
        ("selection/selection.json", "label_of", "pretrain"),
        ("declared.json", "names", "synthetic"),
    ],
)
def test_no_stage_goes_on_from_a_record_of_another_form(tiny, train, copied, name, field, repeated):
    durable.write_json(copied / name, durable.read_json(copied / name) | {field: "5"})
    chosen = tiny(privacy__epsilon=10.0 if repeated == "synthetic" else 20.0)
    assert f"{name}: is no record with a proper {field}; restore" in _one_line(
        functools.partial(train, chosen, copied, repeated, until=repeated)
    )
    if field == "names":
        assert name in _one_line(load, copied)
        assert name in _one_line(export, copied, "diffusers", copied / "out", Reporter())


@pytest.mark.parametrize(
    ("name", "repeated"), [("classifier/model", "query"), ("pretrain/network", "finetune")]
)
def test_no_stage_goes_on_from_a_network_of_another_shape(tiny, train, copied, name, repeated):
    path = copied / f"{name}.safetensors"
    durable.write_tensors(path, {"weight": torch.zeros(2)})
    with Ledger(copied / "ledger.jsonl") as ledger:
        spent = ledger.spent()
    said = _one_line(functools.partial(train, tiny(privacy__epsilon=20.0), copied, repeated))
    assert f"{path}: is of a network of another shape; restore" in said
    with Ledger(copied / "ledger.jsonl") as ledger:
        assert ledger.spent() == spent


def test_a_histogram_that_is_none_is_named_in_one_line(copied):
    path = copied / "query/histogram.safetensors"
    durable.write_tensors(path, {"weight": torch.zeros(2)})
    assert _one_line(write_report, copied).startswith(f"{path}: has no histogram; restore")


def test_a_recipe_that_is_no_text_is_named_in_one_line(copied):
    (copied / "recipe.toml").write_bytes("seed = 1 # é".encode("latin-1"))
    for call in (audit.verify, write_report, load):
        assert "recipe.toml: not readable as text" in _one_line(call, copied)


@pytest.mark.parametrize("shared", ["train.parquet", "", "*.parquet", "../run/train.parquet"])
def test_files_of_the_sensitive_set_are_not_public(tmp_path, shared):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("train.parquet", "other.parquet"):
        (folder / name).touch()
    settings = DataSettings(
        public=str(folder / "other.parquet"),
        sensitive=str(folder / "train.parquet"),
        test=f"{folder}/{shared}",
    )
    with pytest.raises(UserError, match=r"--test: .* has files or folders of it"):
        preflight.refuse_sensitive_as_public(settings)
