"""Files and folders that appear whole or not at all; the only caller of fsync and replace."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
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
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
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


def publish_folder(partial: Path, final: Path) -> None:
    """Renames the finished folder `partial` to `final` after all of it has reached the disk."""
    try:
        _sync_all(partial)
        os.replace(partial, final)
        sync(final.parent)
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
            sync(parent.parent)
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
        sync(path.parent)
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
        sync(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: can't remove it ({error.strerror or error})") from error


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


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        flush(descriptor)
    finally:
        os.close(descriptor)


def flush(descriptor: int) -> None:
    """Returns when the disk has it, and not only the disk's own memory."""
    if sys.platform == "darwin":  # Where fsync means the latter; some file systems know no better.
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _sync_all(folder: Path) -> None:
    """Makes a folder and all in it durable; it may hold millions of files."""
    count = 0
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, start=1):
            if entry.is_dir(follow_symlinks=False):
                _sync_all(Path(entry.path))
            elif count <= _MANY_FILES:
                sync(Path(entry.path))
    if count > _MANY_FILES:
        os.sync()
    sync(folder)
