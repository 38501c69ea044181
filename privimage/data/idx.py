"""IDX, the format of the MNIST family: a file of grey images and one of labels, gzipped or not."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privimage.data.source import MOST_PIXELS, Entry, Source, UnreadableSet, one_line
from privimage.errors import UserError

_DAMAGE = (OSError, EOFError, zlib.error, ValueError)
_UINT8 = 8

_File = gzip.GzipFile | io.BufferedReader


@dataclass(frozen=True, kw_only=True)
class IdxSource(Source):
    """Images of `height` × `width` pixels, and their labels."""

    form = "IDX"
    height: int
    width: int
    labels: bytes | None

    def entries(self) -> Iterator[Entry]:
        """In the order of the file."""
        try:
            with _open(self.path) as file:
                _header(file, dimensions=3)
                for row in range(self.count):
                    pixels = np.frombuffer(file.read(self.height * self.width), np.uint8)
                    label = None if self.labels is None else self.labels[row]
                    yield Entry(pixels.reshape(self.height, self.width), label, f"row {row}")
        except _DAMAGE as error:
            raise UnreadableSet(
                f"'{self.path}' is damaged as an IDX file", one_line(error)
            ) from error


def is_idx(path: Path) -> bool:
    """Whether the name is that of a file of images of the MNIST family."""
    return "idx3-ubyte" in path.name


def open_idx(name: str, path: Path) -> Source:
    """The images in `path` with the labels of the file beside it, if there is one.

    `train-images-idx3-ubyte.gz` has its labels in `train-labels-idx1-ubyte`, gzipped or not.

    Raises:
        UserError: either is no IDX file, or they hold unequal numbers.
    """
    try:
        with _open(path) as file:
            count, height, width = _header(file, dimensions=3)
        if not 0 < height * width <= MOST_PIXELS:
            raise ValueError(f"images of {height}×{width} pixels")
        labels = _labels(path)
    except _DAMAGE as error:
        raise UnreadableSet(f"{name}: '{path}' is not readable as IDX", one_line(error)) from error
    if count == 0:
        raise UserError(f"{name}: there are no images in '{path}'")
    if labels is not None and len(labels) != count:
        raise UnreadableSet(
            f"{name}: '{path}' and the labels beside it are not equally many",
            f"{count} images, {len(labels)} labels",
        )
    return IdxSource(
        path=path,
        names=(),
        is_labelled=labels is not None,
        count=count,
        height=height,
        width=width,
        labels=labels,
    )


def _labels(images: Path) -> bytes | None:
    """The labels that lie beside a file of images, None if there are none."""
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for path in (images.with_name(stem), images.with_name(f"{stem}.gz")):
        if path.is_file() and path != images:
            with _open(path) as file:
                (count,) = _header(file, dimensions=1)
                return file.read(count)
    return None


def _open(path: Path) -> _File:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _header(file: _File, dimensions: int) -> tuple[int, ...]:
    """The sizes that an IDX file of bytes declares."""
    head = file.read(4 + 4 * dimensions)
    if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, _UINT8, dimensions)):
        raise ValueError(f"it is no IDX file of bytes in {dimensions} dimension(s)")
    return struct.unpack(f">{dimensions}I", head[4:])
