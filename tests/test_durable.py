import errno
import os
from pathlib import Path

import pytest
import torch
from disk import PowerCut

from privimage import durable, machine
from privimage.dp.ledger.log import LockedLog
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


@pytest.mark.parametrize("name", ["stage", ".stage.partial"])
def test_a_folder_disappears_whole(tmp_path, monkeypatch, name):
    folder, unlink, left = tmp_path / name, os.unlink, []
    folder.mkdir()
    for file in "abc":
        (folder / file).touch()

    def dies_at_the_second(*arguments, **keywords):
        left.append(arguments)
        if len(left) == 2:
            raise PowerCut
        unlink(*arguments, **keywords)

    monkeypatch.setattr(os, "unlink", dies_at_the_second)
    with pytest.raises(PowerCut):
        durable.remove_folder(folder)
    monkeypatch.undo()
    assert not folder.exists()
    durable.remove_folder(folder)
    assert [*tmp_path.iterdir()] == []


def test_only_a_folder_is_removed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").touch()
    for name in ("link", "file", "missing"):
        durable.remove_folder(tmp_path / name)
    assert {entry.name for entry in tmp_path.iterdir()} == {"kept", "link", "file"}


def test_a_file_in_the_way_of_a_folder_is_one_clear_line(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="can't write"):
        durable.make_folder(tmp_path / "run" / "stage")


def test_a_folder_that_cannot_be_made_is_named_by_its_own_name(tmp_path, monkeypatch):
    real = Path.mkdir

    def refuse(path, *arguments, **options):
        if path != tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(UserError, match=r"/card: can't write it \(Permission denied\)"),
        durable.whole_folder(tmp_path / "card"),
    ):
        pass


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    log = LockedLog(path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    log.append(b"a longer line\n")
    assert log.read() == b"a longer line\n"
    monkeypatch.setattr(os, "write", lambda fd, data: 0)
    with pytest.raises(OSError, match="took nothing"):
        log.append(b"more\n")
    log.close()


def test_a_log_has_one_writer_and_ends_with_it(tmp_path):
    log = LockedLog(tmp_path / "lines")
    with pytest.raises(BlockingIOError):
        LockedLog(tmp_path / "lines")
    log.close()
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.append(b"more\n")
    LockedLog(tmp_path / "lines").close()


def test_a_new_log_is_for_its_owner_alone(tmp_path):
    LockedLog(tmp_path / "lines").close()
    assert (tmp_path / "lines").stat().st_mode & 0o777 == 0o600


def test_a_folder_of_many_files_waits_for_the_disk_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(durable, "_MANY_FILES", 3)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("file"))
    monkeypatch.setattr(os, "sync", lambda: calls.append("all"))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("named"))
    for count, expected in ((3, 0), (9, 1)):
        calls.clear()
        with durable.whole_folder(tmp_path / str(count)) as folder:
            for number in range(count):
                (folder / str(number)).touch()
        before = calls[: calls.index("named")]
        assert before.count("all") == expected
        assert before.count("file") == 3 + 2  # The folder, and the one that it is made in.


def test_a_new_folder_and_all_its_new_parents_are_synced(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    durable.make_folder(tmp_path / "a" / "b" / "c")
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")} <= set(synced)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/run", None),
        ("/data/run", "nfs4"),
        ("/database/run", None),
        ("/my dïsk/run", "cifs"),
        ("/data/local/run", None),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(monkeypatch, path, kind):
    table = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 22 0:50 / /data rw shared:9 - nfs4 server:/export rw\n"
        "41 22 0:51 / /my\\040dïsk rw - cifs //server/share rw\n"
        "42 40 8:2 / /data/local rw - xfs /dev/sdb rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: table)
    assert machine.network_file_system(Path(path)) == kind
