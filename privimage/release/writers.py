"""Writes labelled PNG files as class folders, as one zip, or as a NumPy archive, one at a time."""

import io
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from privimage.data import ImageFile, ImageShape, file_name

_LONGEST_NAME = 200
_RESERVED = frozenset('/\\:*?"<>|')


def write_folder(folder: Path, files: Iterable[ImageFile], names: Sequence[str]) -> int:
    """Writes one subfolder a class, or all files side by side if there are no classes.

    Returns:
        How many bytes the files hold.

    Raises:
        OSError: the disk refuses.
    """
    places = [folder / name for name in folder_names(names)] or [folder]
    for place in places:
        place.mkdir(exist_ok=True)
    size = 0
    for row, (content, label) in enumerate(files):
        (places[label or 0] / file_name(row)).write_bytes(content)
        size += len(content)
    return size


def write_zip(path: Path, files: Iterable[ImageFile], names: Sequence[str], card: str) -> None:
    """Writes a zip of class folders and the data card; PNG files are packed already and stored.

    Raises:
        OSError: the disk refuses.
    """
    folders = [f"{name}/" for name in folder_names(names)] or [""]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        members = _Members(archive)
        members.add("README.md", card.encode())
        for row, (content, label) in enumerate(files):
            members.add(folders[label or 0] + file_name(row), content)


def write_npz(
    path: Path, files: Iterable[ImageFile], names: Sequence[str], count: int, shape: ImageShape
) -> int:
    """Writes `images`, uint8 [count, height, width] or [count, height, width, 3], labels, names.

    Returns:
        The size of the archive, bytes.

    Raises:
        OSError: the disk refuses.
    """
    side = (shape.size, shape.size) if shape.channels == 1 else (shape.size, shape.size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *side)}
    labels = array("q")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, header)
            for content, label in files:
                file.write(np.asarray(Image.open(io.BytesIO(content))).tobytes())
                labels.append(label or 0)
        if names:
            _write_array(archive, "labels", np.asarray(labels, dtype=np.int64))
            _write_array(archive, "names", np.array(names, dtype=str))
    return path.stat().st_size


def folder_names(names: Sequence[str]) -> list[str]:
    """A name for each class that any file system takes, no two alike: the class's own if it can be.

    The others are called `class-` and their label's number.
    """
    found: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(names):
        can_be = name.isprintable() and name.strip(" .") == name != "" and not _RESERVED & {*name}
        safe = name if can_be and len(name.encode()) <= _LONGEST_NAME else f"class-{label}"
        while safe.casefold() in taken:
            safe = f"class-{label}" if safe == name else f"{safe}_"
        taken.add(safe.casefold())
        found.append(safe)
    return found


def _write_array(archive: zipfile.ZipFile, name: str, values: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w") as file:
        npy.write_array(file, values, allow_pickle=False)


class _Members:
    """The members of a zip that is being written, at 24 bytes and a short name each.

    `zipfile` keeps more than half a kilobyte for each until it writes the directory at the end,
    which for a million images is most of the memory that writing them takes. This stands in for its
    list and builds an entry when it is asked for.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._numbers = array("Q")
        self._names = bytearray()
        self._ends = array("Q")
        archive.filelist = self  # type: ignore[assignment]

    def add(self, name: str, content: bytes) -> None:
        """Writes one member; no two have the same name."""
        self._archive.writestr(zipfile.ZipInfo(name), content)
        self._archive.NameToInfo.clear()

    def append(self, info: zipfile.ZipInfo) -> None:
        """Called by the archive when a member is written."""
        self._numbers.extend((info.header_offset, info.CRC, info.file_size))
        self._names += info.filename.encode()
        self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        start = 0
        for index, end in enumerate(self._ends):
            info: Any = zipfile.ZipInfo(self._names[start:end].decode())
            info.header_offset, info.CRC, info.file_size = self._numbers[3 * index : 3 * index + 3]
            info.compress_size = info.file_size
            start = end
            yield info
