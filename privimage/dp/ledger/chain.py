"""The ledger's file: one JSON object a line, each holding the hash of the line before it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from privimage.dp.ledger.records import Content, Genesis, from_fields, to_fields
from privimage.errors import UserError

# Whole minutes: the time of a single reservation would tell the size of its batches.
_TIME = "%Y-%m-%dT%H:%MZ"
_NO_HASH = "0" * 64


@dataclass(frozen=True)
class Entry:
    """One line: what it says, when it was written (UTC), and its hash."""

    number: int
    time: str
    content: Content
    hash: str


def successor(entries: Sequence[Entry], content: Content, time: str | None = None) -> Entry:
    """The entry that says `content` after `entries`, now or at `time`."""
    time = time or datetime.now(UTC).strftime(_TIME)
    entry = Entry(len(entries), time, content, "")
    return Entry(entry.number, time, content, digest(_fields(entries, entry)))


def line_of(entries: Sequence[Entry], entry: Entry) -> bytes:
    """The line of `entry`, which follows `entries`."""
    return canonical({**_fields(entries, entry), "hash": entry.hash}).encode() + b"\n"


def parse(data: bytes, path: Path) -> tuple[list[Entry], bytes]:
    """The entries in `data`, and the bytes that they should be: what else there is is a torn tail.

    A last line whose newline is missing or damaged counts if it is whole: a lost bit must not lose
    a reservation. If it is not whole its write never returned, and nothing was released under it.

    Raises:
        UserError: a line is damaged or missing, or of a kind or version that is not known here.
    """
    *lines, tail = data.split(b"\n")
    entries: list[Entry] = []
    whole = b""
    for line in lines:
        entry = _entry(line, entries, path)
        whole += line_of(entries, entry)
        entries.append(entry)
    ends = [end for end in range(1, len(tail) + 1) if tail.endswith(b"}", 0, end)]
    for end in ends:
        if _is_hashed(tail[:end]):
            entry = _entry(tail[:end], entries, path)
            whole += line_of(entries, entry)
            entries.append(entry)
            break
    return entries, whole


def read(path: Path) -> list[Entry]:
    """The entries of the ledger at `path`, without locking or mending it.

    Raises:
        UserError: it is missing, empty, damaged or of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: there is no readable ledger ({error.strerror})") from error
    entries, _ = parse(data, path)
    if not entries:
        raise UserError(f"{path}: the ledger is empty; restore it from a backup")
    return entries


def digest(fields: dict[str, Any]) -> str:
    """The hash of a line: SHA-256 of its canonical spelling without the hash, in hexadecimal."""
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def canonical(fields: dict[str, Any]) -> str:
    """The one spelling of a line that is accepted."""
    return json.dumps(fields, sort_keys=True, allow_nan=False)


def _entry(line: bytes, before: Sequence[Entry], path: Path) -> Entry:
    """The entry in `line`: hash, number, predecessor, kind, fields and spelling must be right."""
    number = len(before)
    if not _is_hashed(line):
        _refuse_damaged(path, number)
    fields = json.loads(line)
    fields.pop("hash")
    time = fields.pop("time", None)
    is_next = fields.pop("n", None) == number and fields.pop("previous", None) == _head(before)
    if not is_next:
        _refuse_damaged(path, number)
    try:
        datetime.strptime(time, _TIME)
        content = from_fields(fields)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: line {number + 1} is of a version that is not known here ({error})"
        ) from error
    entry = successor(before, content, time)
    is_first = isinstance(content, Genesis)
    if line_of(before, entry) != line + b"\n" or is_first != (number == 0):
        _refuse_damaged(path, number)
    return entry


def _is_hashed(line: bytes) -> bool:
    """Whether `line` is a JSON object that holds the hash of the rest of it."""
    try:
        fields = json.loads(line)
        return bool(fields.pop("hash") == digest(fields))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False


def _fields(before: Sequence[Entry], entry: Entry) -> dict[str, Any]:
    place = {"n": entry.number, "previous": _head(before), "time": entry.time}
    return {**place, **to_fields(entry.content)}


def _head(entries: Sequence[Entry]) -> str:
    return entries[-1].hash if entries else _NO_HASH


def _refuse_damaged(path: Path, number: int) -> NoReturn:
    raise UserError(
        f"{path}: line {number + 1} is damaged, so ε can't be stated for this run; "
        "restore the file from a backup"
    )
