"""Files and folders that appear whole or not at all; the only caller of fsync and replace."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from privimage.errors import UserError

_NETWORKS = (
    *("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "ocfs2"),
    *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone"),
)

_MANY_FILES = 1000
"""Of a folder: each waits some 2 ms for the disk, so more of them go there at once."""


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` so that after a crash `path` holds either all of it or what it held before.

    Raises:
        UserError: the disk is full, read-only or not ours; names the path.
    """
    with whole_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when the block ends without an exception.

    Whatever happens, `path` holds either all that was written or what it held before.

    Raises:
        UserError: the disk is full, read-only or not ours; names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # After a failure; a file that got its name is not under this one any more.
        with suppress(OSError):
            partial.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder, which becomes `path` when the block ends without an exception.

    Raises:
        UserError: there is something under `path` already, or the disk refuses; names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    remove_folder(partial)
    try:
        make_folder(path.parent)
        partial.mkdir()
        yield partial
        publish_folder(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        remove_folder(partial)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        UserError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error


def read_record(path: Path, **fields: Any) -> dict[str, Any]:
    """The JSON object in `path`, which must have these fields, of these types.

    Args:
        path: of the file.
        fields: name to type, such as `int`, `list[str]` or `dict[str, float] | None`; None allows
            for a field that is missing. The keys of a `dict[int, …]` are decimal text, as JSON's
            are text.

    Raises:
        UserError: the file is missing, is no JSON object, or one of them is missing or another.
    """
    value = read_json(path)
    given = value if isinstance(value, dict) else {}
    wrong = [name for name, kind in fields.items() if not _is(given.get(name), kind)]
    if wrong or not isinstance(value, dict):
        wanted = f" with a proper {', '.join(wrong)}" if wrong else ""
        raise UserError(f"{path}: is no record{wanted}; restore it from a backup")
    return given


def _is(value: object, kind: Any) -> bool:
    """Whether a JSON value is of a type as `read_record` takes them."""
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        return any(_is(value, part) for part in parts)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(each, parts[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            (parts[0] is str or key.isdecimal()) and _is(each, parts[1])
            for key, each in value.items()
        )
    # JSON's true and false are no numbers, and Python's are; a whole number is a float.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """`write_bytes` of a safetensors file; tensors may live on any device."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, serialise_tensors(on_host))


def read_tensors(path: Path, *names: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU, with these names among them.

    Raises:
        UserError: the file is missing, cut short, no safetensors file, or lacks one of them.
    """
    try:
        found = parse_tensors(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not readable as safetensors ({error})") from error
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path}: has no {', '.join(missing)}; restore it from a backup")
    return found


def load_weights(network: torch.nn.Module, path: Path) -> None:
    """Puts the tensors of a safetensors file into a network.

    Raises:
        UserError: as `read_tensors`, or they have other names or shapes than the network's.
    """
    found = read_tensors(path)
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in found.items()}:
        raise UserError(f"{path}: is of a network of another shape; restore it from a backup")
    network.load_state_dict(found)


class LockedLog:
    """A file of lines that one process at a time extends; an appended line is on disk on return.

    The lock belongs to the open file: it ends with the process, however that dies. Programs that
    the process starts don't inherit the descriptor (O_CLOEXEC), and a forked child closes its copy
    at once, so no worker that outlives its parent can hold the lock.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates `path`, locks it, and makes its name and content durable.

        Raises:
            BlockingIOError: another process holds the lock.
            OSError: the disk or the permissions refuse.
        """
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor: int | None = os.open(path, flags, 0o600)
        _open_logs.add(self)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = os.fstat(self._descriptor).st_size
            # Whoever wrote last may have died before its own sync.
            _flush(self._descriptor)
            _sync(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it still holds the file."""
        return self._descriptor is not None

    def read(self) -> bytes:
        """All that the file holds."""
        return self.path.read_bytes()

    def truncate(self, size: int) -> None:
        """Cuts the file down to `size` bytes; durable with the next `append`."""
        os.ftruncate(self._checked_descriptor(), size)
        self._size = size

    def append(self, data: bytes) -> None:
        """Appends `data` and returns only when it has reached the disk.

        Raises:
            OSError: it may or may not have reached the disk, or the file is not what was opened.
        """
        descriptor = self._checked_descriptor()
        self._size += len(data)
        while data:
            written = os.write(descriptor, data)
            if written == 0:
                raise OSError(errno.EIO, "the disk took nothing")
            data = data[written:]
        _flush(descriptor)

    def close(self) -> None:
        """Closes the file, which ends the lock; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _checked_descriptor(self) -> int:
        """The descriptor, if the file is still the one under `path` and nobody else wrote to it."""
        if self._descriptor is None:
            raise OSError(errno.EBADF, "it is closed, or was opened by the parent process")
        mine, there = os.fstat(self._descriptor), os.stat(self.path)
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino) or mine.st_size != self._size:
            raise OSError(errno.ESTALE, "it was replaced or changed while it was open")
        return self._descriptor


_open_logs: weakref.WeakSet[LockedLog] = weakref.WeakSet()


def is_open_here(path: Path) -> bool:
    """Whether a `LockedLog` of this process holds the file."""
    return any(log.is_open and log.path.resolve() == path.resolve() for log in _open_logs)


def _close_logs_in_child() -> None:
    for log in list(_open_logs):
        log.close()


os.register_at_fork(after_in_child=_close_logs_in_child)


def publish_folder(partial: Path, final: Path) -> None:
    """Renames the finished folder `partial` to `final` after all of it has reached the disk."""
    try:
        _sync_all(partial)
        os.replace(partial, final)
        _sync(final.parent)
    except OSError as error:
        raise cannot_write(final, error) from error


def make_folder(path: Path) -> None:
    """Creates `path` and its parents, durably; an existing folder is left as it is.

    Raises:
        UserError: there is no permission, no space, or a file in the way.
    """
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for parent in (path, *missing):
            _sync(parent.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove_folder(path: Path) -> None:
    """Removes a folder and all in it, whole or not at all; a missing one is no error.

    A crash leaves it as it was, or its rest under another name, which the next call removes.
    """
    removed = path.with_name(f".{path.name.removeprefix('.')}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if path.is_symlink() or not path.is_dir():
        return
    try:
        os.replace(path, removed)
        _sync(path.parent)
    except OSError:  # A mount, say.
        shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(removed, ignore_errors=True)


def remove_file(path: Path) -> None:
    """Removes a file, durably; a missing one is no error.

    Raises:
        UserError: the disk refuses; names the path.
    """
    try:
        path.unlink()
        _sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: can't remove it ({error.strerror or error})") from error


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that `path` is on, such as "nfs4"; None on a local disk.

    There a lock may hold on one machine only, and a synced write may still be in another's memory.
    Known from Linux' table of mounts; where there is none the answer is None.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    target, found, longest = str(path.resolve()), "", -1
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        # White space in a name is an octal escape there.
        folder = place.split()[4].encode().decode("unicode_escape").encode("latin-1").decode()
        is_above = target == folder or target.startswith(folder.rstrip("/") + "/")
        # Of two mounts on one folder the later one counts.
        if is_above and len(folder) >= longest:
            found, longest = kind.split()[0], len(folder)
    return found if found.startswith(_NETWORKS) else None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a path that can't be written."""
    return UserError(
        f"{path}: can't write it ({error.strerror or error}); what was there before still is: "
        "mend that and run the same command again"
    )


def _sync_all(folder: Path) -> None:
    """Makes a folder and all in it durable; it may hold millions of files."""
    count = 0
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, start=1):
            if entry.is_dir(follow_symlinks=False):
                _sync_all(Path(entry.path))
            elif count <= _MANY_FILES:
                _sync(Path(entry.path))
    if count > _MANY_FILES:
        os.sync()
    _sync(folder)


def _sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    """Returns when the disk has it, and not only the disk's own memory."""
    if sys.platform == "darwin":  # Where fsync means the latter; some file systems know no better.
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)
