"""Folders of image files: one subfolder a class, or flat, with or without a CSV of labels.

Where a folder names the person, folders may lie in folders, and the class is read as in archives.
Otherwise a CSV of labels makes a folder a flat one, whatever folders lie in it.
"""

import csv
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from privimage.data.persons import (
    PersonKey,
    no_column,
    person_and_class,
    refuse_persons,
    too_deep,
)
from privimage.data.source import (
    MOST_BYTES,
    SUFFIXES,
    Entry,
    Source,
    UnreadableSet,
    no_images,
    refuse_splits,
    some,
)
from privimage.errors import UserError

LABELS = "labels.csv"
_PERSONS = {
    "--sensitive": ", or say --unit person --person folder:1 if the outer folders are persons",
    "data inspect": ", or say --person folder:1 if the outer folders are persons",
}


class File(NamedTuple):
    """One image file: its path below the set's folder, its label, and whose it is."""

    name: str
    label: int | None
    person: str = ""


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """Files below `path`, by class or folder, then by name."""

    form = "folder of images"
    names_by_image = True
    files: tuple[File, ...]

    def entries(self) -> Iterator[Entry]:
        """A file that can't be read, or is too large for an image, has no content."""
        for name, label, person in self.files:
            try:
                with open(self.path / name, "rb") as file:
                    is_image = os.fstat(file.fileno()).st_size <= MOST_BYTES
                    content = file.read() if is_image else b""
            except OSError:
                content = b""
            yield Entry(content, label, name, person)


def open_folder(name: str, path: Path, person: PersonKey | None = None) -> Source:
    """The image set in the folder `path`.

    Raises:
        UserError: there are no images, the folders are those of several splits, the CSV of labels
            is not readable as one, or nothing names a person in the way of `person`.
    """
    classes = tuple(_subfolders(path))
    refuse_splits(name, path, {folder: path / folder for folder in classes})
    by_folder = person is not None and not person.column
    if (path / LABELS).is_file() and not by_folder:
        return _open_with_csv(name, path, classes, person)
    if person is not None:
        return _open_with_persons(name, path, person)
    files = [
        File(f"{folder}/{file}", label)
        for label, folder in enumerate(classes)
        for file in _image_files(path / folder)
    ]
    if not classes:
        files = [File(file, None) for file in _image_files(path)]
    return _source(name, path, classes, files, is_labelled=bool(classes))


def files_of_other_kinds(path: Path) -> list[str]:
    """The files in the folder `path` and the folders in it whose names are not those of images."""
    return [
        str(place.relative_to(path))
        for folder in _folders(path)
        for place in sorted(folder.iterdir())
        if place.suffix.lower() not in SUFFIXES
        and place.name[0] != "."
        and place != path / LABELS
        and place.is_file()
    ]


def _open_with_persons(name: str, path: Path, person: PersonKey) -> Source:
    """A folder with folders of persons, in which or around which are the classes."""
    if person.column:
        refuse_persons(name, path, person)
    places = [file.relative_to(path) for file in _image_files_below(path)]
    found = [person_and_class(place.parts[:-1], person) for place in places]
    if found and not any(whose for whose, _ in found):
        raise too_deep(name, path, person)
    classes = tuple(sorted({label for _, label in found if label}))
    number_of = {label: number for number, label in enumerate(classes)}
    files = [
        File(str(place), number_of.get(label), whose)
        for place, (whose, label) in zip(places, found, strict=True)
    ]
    return _source(name, path, classes, files, is_labelled=bool(classes))


def _open_with_csv(
    name: str, path: Path, subfolders: tuple[str, ...], person: PersonKey | None
) -> Source:
    """A flat folder whose files' labels stand in a CSV; the first row of a file counts."""
    row_of = _read_csv(name, path / LABELS, None if person is None else person.column)
    values = {label for label, _ in row_of.values() if label}
    # "10" comes after "9" where all are numbers, however many digits one has.
    are_numbers = all(value.isdecimal() for value in values)
    names = tuple(sorted(values, key=_by_number if are_numbers else None))
    number_of = {value: number for number, value in enumerate(names)}
    files = []
    for file in _image_files(path):
        label, whose = row_of.get(file, ("", ""))
        files.append(File(file, number_of.get(label), whose))
    missing = sorted(set(row_of) - {file.name for file in files})
    remarks = []
    if subfolders:
        remarks.append(f"has a {LABELS}, so its subfolders are left out ({some([*subfolders])})")
    if missing:
        remarks.append(f"{LABELS} names {len(missing)} files that are not there ({some(missing)})")
    if not files and subfolders:
        raise UserError(
            f"{name}: there are no images right in '{path}', whose {LABELS} says that it is flat; "
            "put them there, or take it away if the subfolders are the classes"
        )
    return _source(name, path, names, files, is_labelled=True, remarks=tuple(remarks))


def _read_csv(name: str, path: Path, column: str | None) -> dict[str, tuple[str, str]]:
    """File → its label and its person, whom `column` names, if any; all as text."""
    row_of: dict[str, tuple[str, str]] = {}
    limit = csv.field_size_limit(sys.maxsize)  # A cell that is too long would refuse all others.
    try:
        # Two names of persons may differ in nothing but bytes that are no UTF-8.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file)
            known = reader.fieldnames = [cell.strip() for cell in reader.fieldnames or ()]
            if not {"file", "label"} <= set(known):
                # Without a header these are the file and the label of an image.
                found = some([" ".join(_printable(cell)[:40].split()) for cell in known])
                raise UnreadableSet(
                    f"{name}: '{path}' needs the columns 'file' and 'label' in its first line, "
                    "separated by commas",
                    f"found: {found or 'nothing'}",
                )
            if column is not None and column not in known:
                raise no_column(name, path, column, map(_printable, known))
            for row in reader:
                label, person = _printable(row["label"]), row[column] if column else ""
                row_of.setdefault(_printable(row["file"]), (label, person or ""))
    finally:
        csv.field_size_limit(limit)
    return row_of


def _by_number(digits: str) -> tuple[int, str, str]:
    """What decimal numbers are to be sorted by, as text: `int` refuses very long ones."""
    significant = digits.lstrip("0")
    return len(significant), significant, digits


def _printable(text: str | None) -> str:
    """What a cell says, without the bytes in it that are no UTF-8."""
    return (text or "").encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def _source(
    name: str,
    path: Path,
    names: tuple[str, ...],
    files: list[File],
    is_labelled: bool,
    remarks: tuple[str, ...] = (),
) -> Source:
    if not files:
        raise _empty(name, path)
    return FolderSource(
        path=path,
        names=names,
        is_labelled=is_labelled,
        count=len(files),
        files=tuple(files),
        remarks=remarks,
    )


def _empty(name: str, path: Path) -> UserError:
    """The sentence for a folder without images where they are looked for.

    It says where they are, if anywhere, and not how many they are, or how deep one of them lies.
    """
    if any(_image_files_below(path)):
        return UserError(
            f"{name}: the images in '{path}' lie more than one folder deep; name the folder whose "
            f"subfolders are the classes{_PERSONS.get(name, '')}"
        )
    if _has_links(path):
        return UserError(
            f"{name}: there are no images in '{path}', only symbolic links, which are not "
            "followed; name the folder that they lead to, or copy the files"
        )
    return no_images(name, path, ", in subfolders or in the folder itself")


def _has_links(folder: Path) -> bool:
    """Whether a link lies below `folder` that looks like an image file or leads to a folder."""
    return any(
        entry.is_symlink()
        and entry.name[0] != "."
        and (entry.suffix.lower() in SUFFIXES or entry.is_dir())
        for place in _folders(folder)
        for entry in place.iterdir()
    )


def _subfolders(folder: Path) -> list[str]:
    """The folders right in `folder`, by name; none that is hidden or that a link leads to."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and entry.name[0] != "." and not entry.is_symlink()
    )


def _folders(folder: Path) -> Iterator[Path]:
    """`folder` and the folders in it."""
    yield folder
    for name in _subfolders(folder):
        yield from _folders(folder / name)


def _image_files_below(folder: Path) -> Iterator[Path]:
    """The image files in `folder` and the folders in it."""
    return (place / file for place in _folders(folder) for file in _image_files(place))


def _image_files(folder: Path) -> list[str]:
    """The image files right in `folder`, by name; nothing that a link leads to."""
    return sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES
        and file.name[0] != "."
        and file.is_file()
        and not file.is_symlink()
    )
