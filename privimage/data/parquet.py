"""Parquet as on the Hugging Face hub: `image` (struct with `bytes`), `label`; file or shards."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from privimage.data.source import Entry, Source, one_line, some
from privimage.errors import UserError

_BATCH_ROWS = 512
_SHARD = re.compile(r"(.+)-\d+-of-\d+")


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Source):
    """One file, or several of one schema, in the order given."""

    form = "Parquet"
    shards: tuple[Path, ...]

    def entries(self) -> Iterator[Entry]:
        """In row order, batch by batch."""
        for shard in self.shards:
            try:
                yield from self._entries_of(shard)
            except (pa.ArrowException, OSError) as error:
                raise UserError(
                    f"'{shard}' is damaged as a Parquet file ({one_line(error)})"
                ) from error

    def _entries_of(self, shard: Path) -> Iterator[Entry]:
        columns = ["image.bytes", "label"] if self.is_labelled else ["image.bytes"]
        row = 0
        # With buffers Arrow keeps all row groups that it has read: the whole file in the end.
        with pq.ParquetFile(shard, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                images = batch.column("image").field("bytes").to_pylist()
                is_null = batch.column("image").is_null().to_pylist()
                labels = batch.column("label").to_pylist() if self.is_labelled else None
                for place, content in enumerate(images):
                    known = b"" if content is None or is_null[place] else content
                    label = None if labels is None else labels[place]
                    yield Entry(known, label, f"{shard.name} row {row}")
                    row += 1


def open_parquet(name: str, path: Path, shards: list[Path]) -> Source:
    """The image set of `shards`, which `path` (a file, folder or pattern) stands for.

    Raises:
        UserError: a shard is no Parquet file of images, the shards differ in their columns or
            names, or belong to several splits.
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
    is_labelled = "label" in first.names
    return ParquetSource(
        path=path,
        names=_names_of(first) if is_labelled else (),
        is_labelled=is_labelled,
        count=rows,
        shards=tuple(shards),
    )


def _opened(name: str, path: Path) -> tuple[pa.Schema, int]:
    """Schema and number of rows of one file, checked."""
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{name}: '{path}' is not readable as Parquet ({one_line(error)})"
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


def _names_of(schema: pa.Schema) -> tuple[str, ...]:
    """The class names that the hub keeps beside the schema; empty if there are none."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in info["info"]["features"]["label"]["names"])
    except (KeyError, ValueError, TypeError):
        return ()
