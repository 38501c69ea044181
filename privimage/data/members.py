"""The members of zip and tar archives, read in memory one after the other; nothing is unpacked."""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from privimage.data.source import MOST_BYTES

DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
)
"""What reading an archive raises when it is cut short or is none."""

_MOST_MEMBERS = 20_000_000
# Deflate packs up to 1,032 bytes into one; images, which are packed already, come nowhere near.
_MOST_RATIO = 200
_FREE_MEMBER_BYTES = 2**20
_FREE_STREAM_BYTES = 2**30
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """One member: its own facts, and how to read a number of bytes from its beginning.

    `size` is what it claims to unpack to, and neither format ever gives more; `most` is what it may
    unpack to: a bound on bytes and on their ratio to what it takes up.
    """

    name: str
    is_folder: bool
    is_file: bool
    size: int
    most: int
    read: Callable[[int], bytes]

    def content(self) -> bytes:
        """All bytes of the member; none if they can't be had or are more than `most`."""
        return self.read(self.size) if self.size <= self.most else b""


def members(path: Path) -> Iterator[Member]:
    """Every member in the order of the archive; each must be read before the next is asked for.

    Raises:
        one of DAMAGE: the archive as a whole is damaged or too large.
    """
    read = _zip_members if path.suffix.lower() == ".zip" else _tar_members
    for number, member in enumerate(read(path)):
        if number == _MOST_MEMBERS:
            raise ValueError(f"it has more than {_MOST_MEMBERS:,} members")
        yield member


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            # 0 is what programs write that know no file types.
            is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            ratio_bound = _FREE_MEMBER_BYTES + _MOST_RATIO * info.compress_size
            yield Member(
                name=info.filename,
                is_folder=info.is_dir(),
                is_file=is_file,
                size=info.file_size,
                most=min(MOST_BYTES, ratio_bound),
                read=partial(_read_zipped, archive, info),
            )


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, count: int) -> bytes:
    try:
        with archive.open(info) as file:
            return file.read(count)
    except Exception:
        # A wrong checksum, a password, an unknown method and more: faults of this member alone,
        # for which zipfile has nearly as many exceptions as the decompressors below it.
        return b""


def _tar_members(path: Path) -> Iterator[Member]:
    with open(path, "rb") as file:
        bounded = _Bounded(file, path.stat().st_size)
        with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:") as archive:
            headers = cast(Any, archive).members
            while (info := archive.next()) is not None:
                # Otherwise tarfile keeps every header.
                headers.clear()
                yield Member(
                    name=info.name,
                    is_folder=info.isdir(),
                    is_file=info.isreg(),
                    size=info.size,
                    most=MOST_BYTES,
                    read=partial(_read_tarred, archive, info),
                )
            # tarfile takes a damaged header in the middle for the end.
            bounded.seek(archive.offset)
            end = bounded.read(_BLOCK)
            if not end or end.strip(b"\0"):
                raise tarfile.ReadError("it is cut short, or a header in it is damaged")


def _read_tarred(archive: tarfile.TarFile, info: tarfile.TarInfo, count: int) -> bytes:
    file = archive.extractfile(info)
    return b"" if file is None else file.read(count)


class _Bounded:
    """A tar file, unpacked if gzipped, that refuses to be read much further than its own size."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        is_gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._file = gzip.GzipFile(fileobj=file) if is_gzipped else file
        self._most = _FREE_STREAM_BYTES + _MOST_RATIO * size

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; headers that claim more than an image may have are refused."""
        if count > MOST_BYTES + _BLOCK or self.tell() + count > self._most:
            raise ValueError("it unpacks to far more than it holds")
        return self._file.read(count)

    def seek(self, position: int) -> int:
        """Goes to `position`, reading on the way if the file is gzipped."""
        if position > self._most:
            raise ValueError("it unpacks to far more than it holds")
        return self._file.seek(position)

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._file.tell()
