"""Parquet as on the Hugging Face hub: `image` (struct with `bytes`), `label`; file or shards."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from privimage.data.persons import PersonKey, no_column, refuse_persons
from privimage.data.source import Entry, Source, UnreadableSet, one_line, some
from privimage.errors import UserError

_BATCH_ROWS = 512
# Arrow can't put 2 GiB into one batch; of a row group that might have them, each row is one.
_LARGE_GROUP = 2**30
_SHARD = re.compile(r"(.+)-\d+-of-\d+")


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Source):
    """One file, or several of one schema, in the order given; `person` is a column of theirs."""

    form = "Parquet"
    shards: tuple[Path, ...]
    person: str | None = None

    def entries(self) -> Iterator[Entry]:
        """In row order, batch by batch."""
        for shard in self.shards:
            try:
                yield from self._entries_of(shard)
            except (pa.ArrowException, OSError) as error:
                raise UnreadableSet(
                    f"'{shard}' is damaged as a Parquet file", one_line(error)
                ) from error

    def _entries_of(self, shard: Path) -> Iterator[Entry]:
        columns = {"image.bytes", *(["label"] if self.is_labelled else [])}
        columns |= {self.person} if self.person else set()
        row = 0
        # With buffers Arrow keeps all row groups that it has read: the whole file in the end.
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            for batch in _batches(file, sorted(columns)):
                images = batch.column("image").field("bytes").to_pylist()
                is_null = batch.column("image").is_null().to_pylist()
                labels = batch.column("label").to_pylist() if self.is_labelled else None
                persons = _texts(batch.column(self.person)) if self.person else None
                for place, content in enumerate(images):
                    known = b"" if content is None or is_null[place] else content
                    label = None if labels is None else labels[place]
                    person = "" if persons is None else persons[place]
                    yield Entry(known, label, f"{shard.name} row {row}", person)
                    row += 1


def _batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a file, group by group."""
    for group in range(file.num_row_groups):
        is_large = file.metadata.row_group(group).total_byte_size >= _LARGE_GROUP
        rows = 1 if is_large else _BATCH_ROWS
        yield from file.iter_batches(rows, row_groups=[group], columns=columns)


def open_parquet(
    name: str, path: Path, shards: list[Path], person: PersonKey | None = None
) -> Source:
    """The image set of `shards`, which `path` (a file, folder or pattern) stands for.

    Raises:
        UserError: a shard is no Parquet file of images, the shards differ in their columns or
            names, or belong to several splits; or there is no column of persons.
    """
    splits = sorted({found[1] for shard in shards if (found := _SHARD.fullmatch(shard.stem))})
    if len(splits) > 1:
        raise UserError(
            f"{name}: '{path}' holds several splits ({some(splits)}); name the files of one, such "
            f"as '{shards[0].parent / splits[0]}-*.parquet'"
        )
    opened = [_opened(name, shard) for shard in shards]
    first, _ = opened[0]
    for (schema, _), shard in zip(opened, shards, strict=True):
        if not schema.equals(first) or _names_of(schema) != _names_of(first):
            raise UserError(
                f"{name}: '{shard}' has other columns or class names than '{shards[0]}'"
            )
    rows = sum(rows for _, rows in opened)
    if rows == 0:
        raise UserError(f"{name}: there are no images in '{path}'")
    if person is not None:
        _check_persons(name, path, person, first)
    is_labelled = "label" in first.names
    return ParquetSource(
        path=path,
        names=_names_of(first) if is_labelled else (),
        is_labelled=is_labelled,
        count=rows,
        shards=tuple(shards),
        person=None if person is None else person.column,
    )


def _opened(name: str, path: Path) -> tuple[pa.Schema, int]:
    """Schema and number of rows of one file, checked."""
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UnreadableSet(
            f"{name}: '{path}' is not readable as Parquet", one_line(error)
        ) from error
    image = schema.field("image").type if "image" in schema.names else None
    if image is None or not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise UserError(
            f"{name}: '{path}' needs a column 'image', a struct whose field 'bytes' is an image "
            f"file; its columns are {', '.join(schema.names)}"
        )
    if "label" in schema.names and not pa.types.is_integer(schema.field("label").type):
        raise UserError(f"{name}: '{path}': the column 'label' must hold integers")
    return schema, rows


def _check_persons(name: str, path: Path, person: PersonKey, schema: pa.Schema) -> None:
    """Raises UserError unless the column that names persons is there, of text or integers."""
    if not person.column:
        refuse_persons(name, path, person)
    if person.column not in schema.names:
        raise no_column(name, path, person.column, schema.names)
    kind = schema.field(person.column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise UserError(
            f"{name}: '{path}': the column '{person.column}' must hold text or integers to name "
            f"persons, not {kind}"
        )


def _texts(column: pa.Array) -> list[str]:
    """Text or integers as text, "" for null; text that is no UTF-8 stays different text."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    values = column.cast(pa.large_binary()).to_pylist()
    return ["" if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def _names_of(schema: pa.Schema) -> tuple[str, ...]:
    """The class names that the hub keeps beside the schema; empty if there are none."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in info["info"]["features"]["label"]["names"])
    except (KeyError, ValueError, TypeError):
        return ()
