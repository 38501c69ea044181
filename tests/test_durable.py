import os

import pytest
import torch

from privimage import durable
from privimage.errors import UserError


def test_bytes_are_replaced_whole_and_synced(tmp_path, monkeypatch):
    path = tmp_path / "file"
    durable.write_bytes(path, b"old")
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(path.read_bytes()) or real(fd))
    durable.write_bytes(path, b"new")
    # Before the replacement the content was synced, afterwards the folder's names.
    assert synced == [b"old", b"new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    durable.write_bytes(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match="No space left on device"):
        durable.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_tensors_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.arange(3), "c": torch.zeros(0, 2)}
    durable.write_tensors(tmp_path / "t", tensors)
    found = durable.read_tensors(tmp_path / "t")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match="not readable as safetensors"):
        durable.read_tensors(tmp_path / "t")


def test_missing_and_damaged_json_are_refused(tmp_path):
    (tmp_path / "broken").write_text('{"a": ')
    for name in ("missing", "broken"):
        with pytest.raises(UserError, match="not readable as JSON"):
            durable.read_json(tmp_path / name)


def test_a_folder_appears_whole(tmp_path):
    partial, final = tmp_path / ".stage.partial", tmp_path / "stage"
    durable.make_folder(partial / "deep")
    durable.write_json(partial / "deep" / "a.json", {"x": 1})
    durable.publish_folder(partial, final)
    assert durable.read_json(final / "deep" / "a.json") == {"x": 1}
    assert not partial.exists()


def test_a_file_in_the_way_of_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="can't write"):
        durable.make_folder(tmp_path / "run" / "stage")


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    durable.append_line(descriptor, "a longer line")
    os.close(descriptor)
    assert path.read_text() == "a longer line\n"
