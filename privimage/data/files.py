"""The formats in which image sets come: each yields the bytes and the label of every image."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from privimage.errors import UserError

_BATCH_ROWS = 4096
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}

Entry = tuple[bytes, int | None]
"""The bytes of an image file, empty if there are none, and its label, None if there is none."""


@dataclass(frozen=True)
class Source:
    """An opened image set.

    Attributes:
        path: where it is.
        names: of the labels, as the set declares them; empty if it declares none.
        is_labelled: whether it has labels at all.
        count: number of images.
    """

    path: Path
    names: tuple[str, ...]
    is_labelled: bool
    count: int

    def entries(self) -> Iterator[Entry]:
        """Every image in the order of the set."""
        raise NotImplementedError


def open_source(name: str, path: Path) -> Source:
    """Opens the image set at `path`; its images are not looked at.

    Raises:
        UserError: the path is missing, empty, or neither a Parquet file nor a folder of images.
    """
    try:
        if not path.exists():
            raise UserError(f"{name}: there is no file or folder '{path}'")
        if path.is_dir():
            return _open_folder(name, path)
        if path.suffix != ".parquet":
            raise UserError(f"{name}: '{path}' is neither a .parquet file nor a folder of images")
        return _open_parquet(name, path)
    except OSError as error:
        raise UserError(f"{name}: '{path}' can't be read ({error.strerror or error})") from error


class ParquetSource(Source):
    """A Parquet file as on the Hugging Face hub: `image` (struct with `bytes`), `label`."""

    def entries(self) -> Iterator[Entry]:
        """In row order, batch by batch."""
        columns = ["image.bytes", "label"] if self.is_labelled else ["image.bytes"]
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    images = batch.column("image").field("bytes")
                    labels = batch.column("label") if self.is_labelled else [None] * len(images)
                    for image, label in zip(images, labels, strict=True):
                        value = None if label is None else label.as_py()
                        yield image.as_py() or b"", value
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"'{self.path}' is damaged as a Parquet file ({_line(error)})"
            ) from error


class FolderSource(Source):
    """One subfolder a class, or a flat folder without labels; in the order of the names."""

    def entries(self) -> Iterator[Entry]:
        """By class, then by file name."""
        if not self.is_labelled:
            yield from ((_content(file), None) for file in _image_files(self.path))
            return
        for label, name in enumerate(self.names):
            yield from ((_content(file), label) for file in _image_files(self.path / name))


def _open_parquet(name: str, path: Path) -> Source:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: '{path}' is not readable as Parquet ({_line(error)})") from error
    if rows == 0:
        raise UserError(f"{name}: there are no images in '{path}'")
    image = schema.field("image").type if "image" in schema.names else None
    if image is None or not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise UserError(
            f"{name}: '{path}' needs a column 'image', a struct whose field 'bytes' is an image "
            f"file; its columns are {', '.join(schema.names)}"
        )
    is_labelled = "label" in schema.names
    if is_labelled and not pa.types.is_integer(schema.field("label").type):
        raise UserError(f"{name}: '{path}': the column 'label' must hold integers")
    names = _names_of(schema) if is_labelled else ()
    return ParquetSource(path, names, is_labelled, rows)


def _names_of(schema: pa.Schema) -> tuple[str, ...]:
    """The class names that the hub keeps beside the schema; empty if there are none."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in info["info"]["features"]["label"]["names"])
    except (KeyError, ValueError, TypeError):
        return ()


def _open_folder(name: str, path: Path) -> Source:
    folders = tuple(
        sorted(
            entry.name
            for entry in path.iterdir()
            if entry.is_dir() and entry.name[0] != "." and not entry.is_symlink()
        )
    )
    places = [path / folder for folder in folders] or [path]
    count = sum(len(_image_files(place)) for place in places)
    if count == 0:
        raise UserError(
            f"{name}: there are no images in '{path}' (looked for {', '.join(sorted(_SUFFIXES))}, "
            "in one subfolder a class or in the folder itself)"
        )
    return FolderSource(path, folders, bool(folders), count)


def _image_files(folder: Path) -> list[Path]:
    """The image files right in `folder`, by name; nothing that a link leads to."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in _SUFFIXES
        and file.name[0] != "."
        and file.is_file()
        and not file.is_symlink()
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
