"""Folders of image files: one subfolder a class, or flat, with or without a CSV of labels."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from privimage.data.source import SUFFIXES, Entry, Source, no_images, one_line, some
from privimage.errors import UserError

LABELS = "labels.csv"


@dataclass(frozen=True, kw_only=True)
class FolderSource(Source):
    """Files below `path`, each with its label; by class, then by name."""

    form = "folder of images"
    names_by_image = True
    files: tuple[tuple[str, int | None], ...]

    def entries(self) -> Iterator[Entry]:
        """A file that can't be read has no content."""
        for name, label in self.files:
            try:
                content = (self.path / name).read_bytes()
            except OSError:
                content = b""
            yield Entry(content, label, name)


def open_folder(name: str, path: Path) -> Source:
    """The image set in the folder `path`.

    Raises:
        UserError: there are no images, or the CSV of labels is not readable as one.
    """
    classes = tuple(
        sorted(
            entry.name
            for entry in path.iterdir()
            if entry.is_dir() and entry.name[0] != "." and not entry.is_symlink()
        )
    )
    if not classes and (path / LABELS).is_file():
        return _open_with_csv(name, path)
    files: list[tuple[str, int | None]] = [
        (f"{folder}/{file}", label)
        for label, folder in enumerate(classes)
        for file in _image_files(path / folder)
    ]
    if not classes:
        files = [(file, None) for file in _image_files(path)]
    if not files:
        raise no_images(name, path, ", in one subfolder a class or in the folder itself")
    return FolderSource(
        path=path,
        names=classes,
        is_labelled=bool(classes),
        count=len(files),
        files=tuple(files),
    )


def _open_with_csv(name: str, path: Path) -> Source:
    """A flat folder whose files' labels stand in a CSV; the first row of a file counts."""
    value_of = _read_csv(name, path / LABELS)
    values = {value for value in value_of.values() if value}
    # "10" comes after "9" where all are numbers.
    are_numbers = all(value.isdecimal() for value in values)
    names = tuple(sorted(values, key=lambda value: (int(value) if are_numbers else 0, value)))
    number_of = {value: number for number, value in enumerate(names)}
    files = _image_files(path)
    if not files:
        raise no_images(name, path)
    missing = sorted(set(value_of) - set(files))
    remark = f"{LABELS} names {len(missing)} files that are not there ({some(missing)})"
    return FolderSource(
        path=path,
        names=names,
        is_labelled=True,
        count=len(files),
        files=tuple((file, number_of.get(value_of.get(file, ""))) for file in files),
        remarks=(remark,) if missing else (),
    )


def _read_csv(name: str, path: Path) -> dict[str, str]:
    """File → label, both as text."""
    value_of: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise UserError(f"{name}: '{path}' needs the columns 'file' and 'label'")
            for row in reader:
                value_of.setdefault((row["file"] or "").strip(), (row["label"] or "").strip())
    except csv.Error as error:
        raise UserError(f"{name}: '{path}' is not readable as CSV ({one_line(error)})") from error
    return value_of


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
