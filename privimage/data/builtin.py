"""The image sets that come with the package: handwritten digits, and drawn letters and signs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from privimage.data import digits, glyphs
from privimage.data.images import ImageSet
from privimage.data.source import Entry, Source
from privimage.errors import UserError, nearest

PREFIX = "builtin:"
_SETS: dict[str, Callable[[], ImageSet]] = {
    "builtin:digits-train": digits.train,
    "builtin:digits-test": digits.test,
    "builtin:glyphs": glyphs.glyphs,
}


@dataclass(frozen=True, kw_only=True)
class BuiltinSource(Source):
    """Grey images that are in memory already."""

    form = "built-in set"
    images: ImageSet

    def entries(self) -> Iterator[Entry]:
        """In their order."""
        labels = self.images.labels.tolist()
        for row, (image, label) in enumerate(zip(self.images.images, labels, strict=True)):
            yield Entry(image[0].numpy(), label, f"row {row}")


def open_builtin(name: str, path: Path) -> Source:
    """The built-in set `path`.

    Raises:
        UserError: there is none; offers the nearest name.
    """
    if str(path) not in _SETS:
        raise UserError(f"{name}: '{path}' is no built-in set; {nearest(str(path), _SETS)}")
    images = _SETS[str(path)]()
    return BuiltinSource(
        path=path, names=images.names, is_labelled=True, count=len(images), images=images
    )
