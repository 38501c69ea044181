"""A look at a public image set: what it holds, and which of its images are damaged or odd."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from statistics import median_low

import numpy as np
import torch

from privimage import durable
from privimage.data import ImageShape, PersonKey, png
from privimage.data.decode import decode_all, is_nearly_black, look
from privimage.data.folder import FolderSource, files_of_other_kinds
from privimage.data.formats import open_source
from privimage.data.source import SUFFIXES, Entry, Source

_PIECE = 1024
_MOST_LINES = 20
_GRID_CLASSES, _GRID_IMAGES = 20, 8
_STRANGE = ("no label", "label without name")


@dataclass
class Inspection:
    """What was found.

    Attributes:
        source: the opened set.
        shape: what the images of the grid were brought to.
        count_of: class → number of images, damaged ones included.
        widths: of the images that can be opened, pixels.
        heights: the same.
        modes: how many have which Pillow mode, such as RGB or L.
        damaged: names of the images that can't be decoded.
        odd: what is strange about others, a line each.
        nearly_black: names of 16-bit images that use less than a quarter of their range.
        unseen: names of the files in a folder that are not taken for images.
        samples: class → its first images, uint8 [channels, size, size] each.
        images_of: person → number of images; None where nobody asked for persons.
        nameless: images that name no person, each a person of its own.
    """

    source: Source
    shape: ImageShape
    count_of: Counter[str] = field(default_factory=Counter)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    nearly_black: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    samples: dict[str, list[np.ndarray]] = field(default_factory=dict)
    images_of: Counter[str] | None = None
    nameless: int = 0


def inspect(path: Path, shape: ImageShape, person: PersonKey | None = None) -> Inspection:
    """Reads every image of the set at `path` once.

    Meant for public sets: the result tells of single images.

    Args:
        path: of the set.
        shape: what the images of the grid are brought to.
        person: where its persons are named; None if nobody asks.

    Raises:
        UserError: the set is missing, empty, of no known format or damaged as a whole, or names no
            persons in that way.
    """
    source = open_source("data inspect", path, person)
    found = Inspection(source, shape, Counter(dict.fromkeys(source.names, 0)))
    if person is not None:
        found.images_of = Counter()
    if isinstance(source, FolderSource):
        found.unseen = files_of_other_kinds(source.path)
    entries = source.entries()
    while piece := list(islice(entries, _PIECE)):
        images, is_good = decode_all((entry.content for entry in piece), len(piece), shape)
        for entry, image, good in zip(piece, images, is_good, strict=True):
            _count(found, entry, image if good else None)
    return found


def report(found: Inspection) -> Iterator[str]:
    """The result in lines for a person."""
    source = found.source
    yield f"format    {source.form}"
    yield f"images    {source.count}"
    if found.images_of is not None:
        yield from _persons(found.images_of, found.nameless)
    if found.widths:
        yield f"width     {_spread(found.widths)}"
        yield f"height    {_spread(found.heights)}"
    yield f"colours   {', '.join(f'{mode} {n}' for mode, n in found.modes.most_common()) or 'none'}"
    yield f"labels    {len(source.names) or 'without names' if source.is_labelled else 'none'}"
    if source.is_labelled:
        yield from _some([f"{name}: {number}" for name, number in _by_class(found)])
    empty = [name for name, number in found.count_of.items() if number == 0]
    for title, lines in (
        ("classes without images", empty),
        ("can't be decoded", found.damaged),
        ("odd", found.odd),
        ("16-bit, nearly black (scale them to the whole range)", found.nearly_black),
        ("files of other kinds, not seen", found.unseen),
        ("remarks", list(source.remarks)),
    ):
        if lines:
            yield f"{title}: {len(lines)}"
            yield from _some(lines)


def write_grid(path: Path, found: Inspection) -> None:
    """Writes a PNG with one row a class, of its first images.

    Raises:
        UserError: the file can't be written.
    """
    rows = list(found.samples.values())[:_GRID_CLASSES]
    size, channels = found.shape.size, found.shape.channels
    grid = np.zeros((max(len(rows), 1), _GRID_IMAGES, channels, size, size), dtype=np.uint8)
    for place, images in enumerate(rows):
        grid[place, : len(images)] = images
    picture = grid.transpose(2, 0, 3, 1, 4).reshape(channels, -1, _GRID_IMAGES * size)
    durable.write_bytes(path, png(torch.from_numpy(picture)))


def _count(found: Inspection, entry: Entry, image: np.ndarray | None) -> None:
    """Adds one image, None if it is damaged, to what was found."""
    name = _class_of(found.source, entry)
    found.count_of[name] += 1
    if found.images_of is not None:
        person = entry.person.strip()
        found.images_of.update([person] if person else [])
        found.nameless += not person
    if name.startswith(_STRANGE):
        found.odd.append(f"{entry.name}: {name}")
    if image is None:
        found.damaged.append(entry.name)
        return
    samples = found.samples.setdefault(name, [])
    if len(samples) < _GRID_IMAGES:
        samples.append(image.copy())
    facts = look(entry.content)
    found.widths.append(facts.width)
    found.heights.append(facts.height)
    found.modes[facts.mode] += 1
    if min(facts.width, facts.height) == 1:
        found.odd.append(f"{entry.name}: {facts.width}×{facts.height} pixels")
    if is_nearly_black(entry.content):
        found.nearly_black.append(entry.name)
    expected = SUFFIXES.get(PurePosixPath(entry.name).suffix.lower(), facts.form)
    if facts.form != expected:
        found.odd.append(f"{entry.name}: a {facts.form} file")


def _persons(images_of: Counter[str], nameless: int) -> Iterator[str]:
    counts = [*images_of.values(), *[1] * nameless]
    yield f"persons   {len(counts)}"
    yield f"          {min(counts)} to {max(counts)} images each, median {median_low(counts)}"
    if nameless:
        yield f"          images that name nobody: {nameless}; each is a person of its own"


def _class_of(source: Source, entry: Entry) -> str:
    label = entry.label
    if not source.is_labelled:
        return "images"
    if label is None:
        return _STRANGE[0]
    if not source.names:
        return str(label)
    return source.names[label] if 0 <= label < len(source.names) else f"{_STRANGE[1]} ({label})"


def _by_class(found: Inspection) -> list[tuple[str, int]]:
    """Classes and numbers of images, in the order of the names or, without them, of the labels."""
    pairs = list(found.count_of.items())
    return pairs if found.source.names else sorted(pairs, key=lambda pair: (len(pair[0]), pair[0]))


def _spread(values: list[int]) -> str:
    return f"{min(values)} to {max(values)} pixels, median {median_low(values)}"


def _some(lines: list[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"  … and {len(lines) - _MOST_LINES} more"
