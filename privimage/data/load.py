"""Loads image sets in two roles, public and sensitive, whose mistakes are treated differently."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from privimage.data import digits, glyphs
from privimage.data.decode import decode_all, grey
from privimage.data.files import Source, open_source
from privimage.data.images import ImageSet, ImageShape
from privimage.errors import UserError, nearest

_PREFIX = "builtin:"
# More are no classes: the column holds identifiers.
_MOST_CLASSES = 100_000
_BUILTIN: dict[str, Callable[[], ImageSet]] = {
    "builtin:digits-train": digits.train,
    "builtin:digits-test": digits.test,
    "builtin:glyphs": glyphs.glyphs,
}


def check_source(name: str, source: str) -> None:
    """Raises UserError unless `source` is empty, a built-in set, or an image set that opens."""
    if source and not source.startswith(_PREFIX):
        open_source(name, Path(source))


def load_public(source: str, shape: ImageShape, warn: Callable[[str], None]) -> ImageSet:
    """Labelled public images in the declared form.

    Images that can't be decoded are left out, and `warn` hears how many.

    Args:
        source: a path (Parquet file or folder) or the name of a built-in set.
        shape: the declared form.
        warn: takes one line.

    Raises:
        UserError: the set is missing, empty, unlabelled, of one class, or a label has no name.
    """
    if source.startswith(_PREFIX):
        return _builtin(source, shape)
    opened = open_source("--public", Path(source))
    if not opened.is_labelled:
        raise UserError(
            f"--public: '{source}' has no labels; give a Parquet file with a column 'label' or a "
            "folder with one subfolder a class"
        )
    images, labels = _decoded(opened, shape)
    bad = sum(image is None for image in images)
    if bad:
        warn(f"--public: {bad} of {len(images)} images in '{source}' can't be decoded; left out")
    kept = [image for image in images if image is not None]
    values = [label for image, label in zip(images, labels, strict=True) if image is not None]
    names = opened.names or _numerals(values)
    strange = {label for label in values if label is None or not 0 <= label < len(names)}
    if strange:
        label = min(strange, key=lambda label: -1 if label is None else abs(label))
        wrong = "an image without label" if label is None else f"a label {label} without name"
        raise UserError(f"--public: '{source}' has {wrong}; name every class, or leave it out")
    if len(set(values)) < 2:
        raise UserError(
            f"--public: '{source}' has {len(kept)} images of {len(set(values))} classes; at least "
            "two classes are needed to tell what the sensitive images resemble"
        )
    pixels = torch.from_numpy(np.stack(kept))
    return ImageSet(pixels, torch.tensor(values), names)


def load_sensitive(
    source: str, shape: ImageShape, names: tuple[str, ...] | None, role: str = "--sensitive"
) -> ImageSet:
    """Sensitive images in the declared form, each mapped by itself.

    Formal guarantee: an image's row in the result is a function of that image and of the arguments
    alone, and no image can raise, warn or leave itself out: one that can't be decoded becomes grey,
    a label that is missing or not declared becomes "no label"
    (tests/data/test_load.py::test_no_content_can_stop_a_sensitive_set).

    Args:
        source: a path (Parquet file or folder) or the name of a built-in set.
        shape: the declared form.
        names: declared names of the labels; None to take those that the set itself declares, which
            are then treated as public. With names, a folder's classes are matched by name.
        role: how messages call the set.

    Raises:
        UserError: the set is missing, empty or of no known format, or declares no names while it
            has labels.
    """
    if source.startswith(_PREFIX):
        return _builtin(source, shape)
    opened = open_source(role, Path(source))
    if not opened.is_labelled:
        names = ()
    elif names is None:
        if not opened.names:
            raise UserError(
                f"{role}: '{source}' has labels but no names for them; declare them with --classes "
                "(names, or their number)"
            )
        names = opened.names
    images, labels = _decoded(opened, shape)
    number_of = _numbers(opened, names)
    values = [number_of.get(label, len(names)) for label in labels]
    filled = [grey(shape) if image is None else image for image in images]
    return ImageSet(
        torch.from_numpy(np.stack(filled)), torch.tensor(values, dtype=torch.int64), names
    )


def _numbers(opened: Source, names: tuple[str, ...]) -> dict[int | None, int]:
    """The set's own label → its place among the declared names."""
    if opened.names and set(opened.names) & set(names):
        place = {name: number for number, name in enumerate(names)}
        return {label: place[name] for label, name in enumerate(opened.names) if name in place}
    return {number: number for number in range(len(names))}


def _decoded(opened: Source, shape: ImageShape) -> tuple[list[np.ndarray | None], list[int | None]]:
    """All images, decoded, and their labels."""
    labels: list[int | None] = []

    def contents() -> Iterator[bytes]:
        for content, label in opened.entries():
            labels.append(label)
            yield content

    return decode_all(contents(), shape), labels


def _builtin(source: str, shape: ImageShape) -> ImageSet:
    if source not in _BUILTIN:
        raise UserError(f"'{source}' is no built-in set; {nearest(source, _BUILTIN)}")
    images = _BUILTIN[source]()
    if images.images.shape[1:] != (shape.channels, shape.size, shape.size):
        raise UserError(
            f"'{source}' has images of {images.images.shape[-1]} pixels and "
            f"{images.images.shape[1]} channel(s), not {shape.size} and {shape.channels}"
        )
    return images


def _numerals(labels: list[int | None]) -> tuple[str, ...]:
    """The names 0, 1, … for public labels that have none."""
    classes = 1 + max((label for label in labels if label is not None), default=-1)
    return tuple(map(str, range(min(classes, _MOST_CLASSES))))
