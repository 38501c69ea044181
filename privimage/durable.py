"""Files and folders that appear whole or not at all; the only caller of fsync and replace."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as serialise_tensors

from privimage.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` so that after a crash `path` holds either all of it or what it held before.

    Raises:
        UserError: the disk is full, read-only or not ours; names the path.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


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
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """`write_bytes` of a safetensors file; tensors may live on any device."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, serialise_tensors(on_host))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        UserError: the file is missing, cut short or no safetensors file.
    """
    try:
        return parse_tensors(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not readable as safetensors ({error})") from error


def append_line(file_descriptor: int, line: str) -> None:
    """Appends `line` and returns only when it has reached the disk.

    Raises:
        OSError: it may not have reached the disk; the caller must treat it as if it had.
    """
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(file_descriptor, data) :]
    os.fsync(file_descriptor)


def publish_folder(partial: Path, final: Path) -> None:
    """Renames the finished folder `partial` to `final` after all of it has reached the disk."""
    try:
        for path in (partial, *partial.rglob("*")):
            _sync(path)
        os.replace(partial, final)
        _sync(final.parent)
    except OSError as error:
        raise cannot_write(final, error) from error


def make_folder(path: Path) -> None:
    """Creates `path` and its parents, durably; an existing folder is left as it is.

    Raises:
        UserError: there is no permission, no space, or a file in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def remove_folder(path: Path) -> None:
    """Removes a folder and all in it; a missing one is no error."""
    shutil.rmtree(path, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a path that can't be written."""
    return UserError(
        f"{path}: can't write it ({error.strerror or error}); what was there before still is"
    )


def _sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
