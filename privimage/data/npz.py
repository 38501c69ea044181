"""NumPy archives: `images` uint8, `labels` whole numbers, `names` text; read row by row."""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from privimage.data.members import DAMAGE
from privimage.data.persons import PersonKey, no_column, refuse_persons
from privimage.data.source import MOST_PIXELS, Entry, Source, UnreadableSet, one_line
from privimage.errors import UserError

_CHANNELS = (1, 3, 4)
_DAMAGE = (*DAMAGE, MemoryError)


@dataclass(frozen=True, kw_only=True)
class NpzSource(Source):
    """Images of shape `shape` each, their labels and persons."""

    form = "NumPy archive"
    shape: tuple[int, ...]
    labels: tuple[int, ...] | None
    persons: tuple[str, ...] | None

    def entries(self) -> Iterator[Entry]:
        """In the order of the array, one image in memory at a time."""
        size = math.prod(self.shape)
        channels_first = len(self.shape) == 3 and self.shape[-1] not in _CHANNELS
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("images.npy") as file:
                _header(file)
                for row in range(self.count):
                    pixels = np.frombuffer(file.read(size), np.uint8).reshape(self.shape)
                    if channels_first:
                        pixels = pixels.transpose(1, 2, 0)
                    label = None if self.labels is None else self.labels[row]
                    person = "" if self.persons is None else self.persons[row]
                    yield Entry(pixels, label, f"row {row}", person)
        except _DAMAGE as error:
            raise UnreadableSet(
                f"'{self.path}' is damaged as a NumPy archive", one_line(error)
            ) from error


def open_npz(name: str, path: Path, person: PersonKey | None = None) -> Source:
    """The image set in the NumPy archive `path`.

    Raises:
        UserError: it is none, an array has another shape or type than it should, or there is none
            of persons.
    """
    if person is not None and not person.column:
        refuse_persons(name, path, person)
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
            if "images.npy" not in archive.namelist():
                raise UserError(f"{name}: '{path}' needs an array 'images'; it has {list(arrays)}")
            with archive.open("images.npy") as file:
                shape, is_fortran, dtype = _header(file)
            labels = np.asarray(arrays["labels"]) if "labels" in arrays.files else None
            names = np.asarray(arrays.get("names", np.array((), str)))
            if person is not None and person.column not in arrays.files:
                raise no_column(name, path, person.column, arrays.files)
            persons = None if person is None else np.asarray(arrays[person.column])
    except _DAMAGE as error:
        raise UnreadableSet(
            f"{name}: '{path}' is not readable as a NumPy archive", one_line(error)
        ) from error
    is_image = len(shape) == 3 or (len(shape) == 4 and {shape[1], shape[3]} & {*_CHANNELS})
    has_pixels = 0 < math.prod(shape[1:]) <= 4 * MOST_PIXELS
    if dtype != np.uint8 or is_fortran or not is_image or not has_pixels:
        raise UnreadableSet(
            f"{name}: '{path}': 'images' must be uint8 in C order, [n, height, width], [n, height, "
            "width, channels] or [n, channels, height, width]",
            f"not {dtype} {list(shape)}",
        )
    if shape[0] == 0:
        raise UserError(f"{name}: there are no images in '{path}'")
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != shape[:1]):
        raise UnreadableSet(
            f"{name}: '{path}': 'labels' must be whole numbers, one an image",
            f"not {labels.dtype} {list(labels.shape)} for {shape[0]} images",
        )
    if persons is not None and (persons.dtype.kind not in "iuU" or persons.shape != shape[:1]):
        raise UnreadableSet(
            f"{name}: '{path}': {person} must be texts or whole numbers, one an image",
            f"not {persons.dtype} {list(persons.shape)} for {shape[0]} images",
        )
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UserError(f"{name}: '{path}': 'names' must be a list of text")
    return NpzSource(
        path=path,
        names=() if labels is None else tuple(map(str, names)),
        is_labelled=labels is not None,
        count=shape[0],
        shape=shape[1:],
        labels=None if labels is None else tuple(map(int, labels)),
        persons=None if persons is None else tuple(map(str, persons)),
    )


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type of the array that follows in `file`."""
    if npy.read_magic(file) == (1, 0):
        return npy.read_array_header_1_0(file)
    return npy.read_array_header_2_0(file)
