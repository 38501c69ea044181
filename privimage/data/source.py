"""What every format of image sets becomes: a source of entries, one an image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from privimage.errors import UserError

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
"""What the names of image files end with, and the format that they promise."""

SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
"""Names of folders that are no classes of one set."""

# More than any image set for networks holds; a file that claims more is a decompression bomb.
MOST_PIXELS = 64 * 2**20

# More than any image file has, so that none fills the memory.
MOST_BYTES = 64 * 2**20

Content = bytes | np.ndarray
"""An image file, empty if it can't be had; or pixels, uint8 [height, width] or [height, width,
channels]."""


class Entry(NamedTuple):
    """One image: its content, its label (None if it has none), what to call it, and its person.

    `person` is "" where nobody is named, or was asked for.
    """

    content: Content
    label: int | None
    name: str
    person: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened image set.

    Attributes:
        path: where it is.
        names: of the labels, as the set declares them; empty if it declares none.
        is_labelled: whether it has labels at all.
        count: number of images.
        remarks: what the owner of a public set should hear, a line each.
        form: what to call the format.
        names_by_image: whether the names are gathered from the images' own places or rows, so
            that the place of a name among them is no declared fact.
    """

    path: Path
    names: tuple[str, ...]
    is_labelled: bool
    count: int
    remarks: tuple[str, ...] = ()
    form: ClassVar[str]
    names_by_image: ClassVar[bool] = False

    def entries(self) -> Iterator[Entry]:
        """`count` images in the order of the set; what one holds does not affect another."""
        raise NotImplementedError


class UnreadableSet(UserError):
    """A set can't be read as a whole: what is wrong, and the `numbers`, which can tell its size.

    Attributes:
        what: the sentence without the numbers, for a set whose size is nobody's business.
    """

    def __init__(self, what: str, numbers: str) -> None:
        super().__init__(f"{what} ({numbers})")
        self.what = what


def one_line(error: Exception) -> str:
    """What a library says of a damaged file, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def some(names: list[str]) -> str:
    """The first few of `names`, quoted."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown}, …" if len(names) > 3 else shown


def refuse_splits(name: str, where: object, folders: Mapping[str, object]) -> None:
    """Raises UserError if there are folders (name → path) for several of `SPLITS`."""
    found = sorted(SPLITS & set(folders))
    if len(found) > 1:
        raise UserError(
            f"{name}: '{where}' holds several splits ({some(found)}); name one, such as "
            f"'{folders[found[-1]]}'"
        )


def no_images(name: str, path: Path, where: str = "") -> UserError:
    """The sentence for a set without image files."""
    suffixes = ", ".join(sorted(SUFFIXES))
    return UserError(f"{name}: there are no images in '{path}' (looked for {suffixes}{where})")
