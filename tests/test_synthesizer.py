import shutil
import subprocess
import sys

import pytest
import torch

import privimage
from privimage import audit
from privimage.dp import Ledger
from privimage.errors import UserError


@pytest.fixture(scope="module")
def synthesizer(finished):
    return privimage.load(finished[1])


def test_labels_go_by_number_by_name_or_in_turn(synthesizer):
    one, other = synthesizer.sample(3, n=5, seed=1), synthesizer.sample("3", n=5, seed=1)
    assert torch.equal(one.images, other.images)
    assert one.images.shape == (5, 1, 8, 8)
    assert one.images.dtype == torch.uint8
    assert one.labels.tolist() == [3] * 5
    assert synthesizer.sample(n=12, seed=1).labels.tolist() == [*range(10), 0, 1]


def test_only_a_seed_repeats_itself(synthesizer):
    assert not torch.equal(synthesizer.sample(3, n=5).images, synthesizer.sample(3, n=5).images)


def test_the_default_device_decides_nothing(finished, synthesizer):
    with torch.device("meta"):
        images = privimage.load(finished[1]).sample(n=12, seed=1).images
    assert torch.equal(images, synthesizer.sample(n=12, seed=1).images)


def test_more_than_a_batch_has_no_two_alike(synthesizer):
    images = synthesizer.sample(3, n=45, seed=1).images.flatten(1)
    assert len(images.unique(dim=0)) == 45


def test_the_promise_is_the_ledgers(finished, synthesizer):
    assert synthesizer.epsilon == audit.verify(finished[1])["epsilon"]
    assert synthesizer.statement["unit"] == "image"
    assert "ε = " in repr(synthesizer)


def test_sampling_leaves_the_run_as_it_is(finished, synthesizer):
    before = {file: file.stat().st_mtime_ns for file in finished[1].rglob("*")}
    synthesizer.sample(n=3)
    assert {file: file.stat().st_mtime_ns for file in finished[1].rglob("*")} == before


def test_nothing_is_promised_where_the_ledger_promises_nothing(finished, tmp_path):
    copy = shutil.copytree(finished[1], tmp_path / "run")
    with Ledger(copy / "ledger.jsonl") as ledger:
        ledger.mark_not_private("test key")
    assert privimage.load(copy).epsilon is None
    assert "NOT PRIVATE" in repr(privimage.load(copy))


@pytest.mark.parametrize(
    ("label", "message"), [("33", "did you mean '3'"), (10, "0 … 9"), (-1, "0 … 9")]
)
def test_a_label_that_is_none_is_refused(synthesizer, label, message):
    with pytest.raises(UserError, match=message):
        synthesizer.sample(label)


def test_a_network_that_the_ledger_does_not_know_is_refused(finished, tmp_path):
    copy = shutil.copytree(finished[1], tmp_path / "run")
    with (copy / "finetune/network.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"is not what .* says was released"):
        privimage.load(copy)
    with pytest.raises(UserError, match="no run in this folder"):
        privimage.load(tmp_path)


def test_the_dp_library_does_not_bring_the_pipeline():
    code = "import privimage.dp, sys; assert 'privimage.pipeline.stages' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_there_is_nothing_else_in_the_package():
    with pytest.raises(AttributeError, match="no attribute 'sample'"):
        _ = privimage.sample
