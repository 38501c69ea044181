"""Loads image sets by their roles, public, sensitive and test, whose mistakes differ."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from privimage.data.decode import Steps, decode_all
from privimage.data.formats import open_source
from privimage.data.images import ImageSet, ImageShape
from privimage.data.labels import (
    SENSITIVE,
    all_known,
    declared_names,
    numbered_as,
    numerals,
    tested_as,
)
from privimage.data.persons import PersonKey, numbered
from privimage.data.source import Content, Source, UnreadableSet, some
from privimage.errors import UserError
from privimage.seeds import generator

_LEFT_OUT = "can't be decoded; left out (`privimage data inspect` names them)"


def check_source(name: str, source: str, person: PersonKey | None = None) -> None:
    """Raises UserError unless `source` is empty or an image set that opens."""
    if source:
        with _without_numbers(name):
            open_source(name, Path(source), person)


def load_public(
    source: str, shape: ImageShape, warn: Callable[[str], None], steps: Steps | None = None
) -> ImageSet:
    """Labelled public images in the declared form.

    What is odd about the set is said to `warn`, a line each: images that can't be decoded and
    classes without images, which are both left out, and what its format has to remark.

    Args:
        source: as `open_source` takes it.
        shape: the declared form.
        warn: takes one line.
        steps: shows how far the reading of a large set is.

    Raises:
        UserError: the set is missing, empty, unlabelled, of one class, or a label has no name.
    """
    opened = open_source("--public", Path(source))
    for remark in opened.remarks:
        warn(f"--public: '{source}': {remark}")
    if not opened.is_labelled:
        raise UserError(
            f"--public: '{source}' has no labels; give a Parquet file with a column 'label', a "
            "folder or archive with one subfolder a class, or a flat folder with a labels.csv"
        )
    images, is_good, labels, _ = _decoded(opened, shape, steps)
    bad = len(images) - int(is_good.sum())
    if bad:
        warn(f"--public: {bad} of {len(images)} images in '{source}' {_LEFT_OUT}")
    values = [label for label, good in zip(labels, is_good, strict=True) if good]
    names = opened.names or numerals(values)
    numbers, present = np.unique(all_known(source, values, names), return_inverse=True)
    empty = sorted(set(names) - {names[number] for number in numbers})
    if len(numbers) < 2:
        raise UserError(
            f"--public: '{source}' has {len(values)} images of {'one' if values else 'no'} class; "
            "at least two classes are needed to tell what the sensitive images resemble"
        )
    if empty:
        warn(
            f"--public: {len(empty)} of {len(names)} classes in '{source}' have no images; left "
            f"out ({some(empty)})"
        )
    return ImageSet(
        torch.from_numpy(_compacted(images, is_good)),
        torch.from_numpy(present.reshape(-1)),
        tuple(names[number] for number in numbers),
    )


def load_sensitive(
    source: str,
    shape: ImageShape,
    names: tuple[str, ...] | None,
    role: str = SENSITIVE,
    steps: Steps | None = None,
    person: PersonKey | None = None,
) -> ImageSet:
    """Sensitive images in the declared form, each mapped by itself.

    Formal guarantee: an image's row in the result is a function of that image and of the arguments
    alone, and no image can raise, warn or leave itself out: one that can't be decoded becomes grey,
    a label that is missing or not declared becomes "no label"
    (tests/data/test_load.py::test_no_content_can_stop_a_sensitive_set,
    tests/data/test_archive.py::test_removing_one_member_removes_its_row_and_nothing_else). Layout,
    format and, unless `names` declares others, the names of the labels are facts of the set. Which
    images share a person is a function of their own names for the person (`persons.numbered`).

    Args:
        source: as `open_source` takes it.
        shape: the declared form.
        names: declared names of the labels; None to take those that the set itself declares, which
            are then treated as public. With names, classes are matched by name.
        role: how messages call the set.
        steps: shows how far the reading of a large set is, and so how large it is.
        person: where its persons are named; None if every image stands for itself.

    Raises:
        UserError: the set is missing, empty, of no known format or damaged as a whole (such as an
            archive cut short), declares no names while it has labels, or names no persons. Of a
            set in the role "--sensitive" it says no number that the images decide
            (tests/privacy/test_refusals.py).
    """
    with _without_numbers(role):
        opened = open_source(role, Path(source), person)
        names = declared_names(opened, names, role)
        images, _, labels, persons = _decoded(opened, shape, steps)
    return ImageSet(
        torch.from_numpy(images),
        numbered_as(labels, opened.names, names, opened.names_by_image),
        names,
        None if person is None else numbered(persons),
    )


def load_test(
    source: str, shape: ImageShape, names: tuple[str, ...], warn: Callable[[str], None]
) -> ImageSet:
    """Real images that their owner declares public, with the labels of the synthetic ones.

    Args:
        source: as `open_source` takes it.
        shape: the declared form.
        names: the labels of the synthetic images; () if they have none.
        warn: takes one line, if some of the images have other labels, which then count as none, and
            one, if some can't be decoded, which are left out and counted (`ImageSet.damaged`).

    Raises:
        UserError: as `load_sensitive`, or the synthetic images have labels and all of these others,
            or no image can be decoded.
    """
    opened = open_source("--test", Path(source))
    images, is_good, labels, _ = _decoded(opened, shape, None)
    bad = len(images) - int(is_good.sum())
    if bad == len(images):
        raise UserError(f"--test: none of the {bad} images in '{source}' can be decoded")
    if bad:
        warn(f"--test: {bad} of {len(images)} images in '{source}' {_LEFT_OUT}")
    labels = [label for label, good in zip(labels, is_good, strict=True) if good]
    names = names if opened.is_labelled else ()
    numbers = torch.zeros(len(labels), dtype=torch.int64)
    if names:
        numbers = tested_as(source, labels, opened.names, names, opened.names_by_image, warn)
    return ImageSet(torch.from_numpy(_compacted(images, is_good)), numbers, names, damaged=bad)


def load_sample(
    source: str, shape: ImageShape, names: tuple[str, ...] | None, role: str, most: int, seed: int
) -> ImageSet:
    """At most `most` images, drawn by chance from a set of any size that needn't fit into memory.

    Args:
        source: as `open_source` takes it.
        shape: the declared form.
        names: as in `load_sensitive`.
        role: how messages call the set.
        most: how many images there are at most.
        seed: decides which.

    Returns:
        The images in their own order, mapped as by `load_sensitive`.

    Raises:
        UserError: as `load_sensitive`.
    """
    opened = open_source(role, Path(source))
    names = declared_names(opened, names, role)
    rows = torch.randperm(opened.count, generator=generator(seed, "sample"))[:most]
    images, _, labels, _ = _decoded(opened, shape, None, {*rows.tolist()})
    return ImageSet(
        torch.from_numpy(images),
        numbered_as(labels, opened.names, names, opened.names_by_image),
        names,
    )


@contextmanager
def _without_numbers(role: str) -> Iterator[None]:
    """Has a message about the sensitive set say what is wrong with it, and not how large it is."""
    try:
        yield
    except UnreadableSet as error:
        if role != SENSITIVE:
            raise
        raise UserError(
            f"{error.what}; `privimage data inspect` says more, which no ε covers"
        ) from None


def _decoded(
    opened: Source,
    shape: ImageShape,
    steps: Steps | None,
    rows: Collection[int] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[int | None], list[str]]:
    """The images, which of them could be decoded, their labels and the names of their persons.

    All of them, or those at the places `rows`.
    """
    labels: list[int | None] = []
    persons: list[str] = []

    def contents() -> Iterator[Content]:
        for row, (content, label, _, person) in enumerate(opened.entries()):
            if rows is None or row in rows:
                labels.append(label)
                persons.append(person)
                yield content

    count = opened.count if rows is None else len(rows)
    images, is_good = decode_all(contents(), count, shape, steps)
    if len(labels) != count:
        raise UserError(f"'{opened.path}' changed while it was read")
    return images, is_good, labels, persons


def _compacted(images: np.ndarray, is_good: np.ndarray) -> np.ndarray:
    """The good images, moved together in place: a copy would need as much memory again."""
    good = np.flatnonzero(is_good)
    if len(good) < len(images):
        for place, row in enumerate(good):
            images[place] = images[row]
    return images[: len(good)]
