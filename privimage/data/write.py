"""Writes labelled images as Parquet in the layout of the Hugging Face hub, piece by piece."""

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from privimage.data.images import ImageSet
from privimage.durable import cannot_write

ImageFile = tuple[bytes, int | None]
"""A PNG file's bytes, and the image's label: None in an unlabelled set."""

_ROWS_PER_GROUP = 1000
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(
    path: Path, files: Iterable[ImageFile], names: tuple[str, ...], about: Mapping[str, Any]
) -> None:
    """Writes `files`: a column `image` (PNG bytes and path) and, if labelled, a column `label`.

    The class names stand where the hub's `datasets` library looks for them; `about` is kept as JSON
    under the schema's key "privimage". No more than a thousand images are in memory at a time.

    Args:
        path: the file to write.
        files: the images, in order.
        names: of the labels; empty for an unlabelled set.
        about: JSON values.

    Raises:
        UserError: the file can't be written.
    """
    schema = _schema(names, about)
    rows = enumerate(files)
    try:
        with pq.ParquetWriter(path, schema) as writer:
            while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
                images = [{"bytes": content, "path": file_name(row)} for row, (content, _) in group]
                columns = [pa.array(images, _IMAGE)]
                if names:
                    columns.append(pa.array([label for _, (_, label) in group], pa.int64()))
                writer.write_batch(pa.record_batch(columns, schema=schema))
    except OSError as error:
        raise cannot_write(path, error) from error


def _schema(names: tuple[str, ...], about: Mapping[str, Any]) -> pa.Schema:
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    fields = [pa.field("image", _IMAGE)]
    if names:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
        fields.append(pa.field("label", pa.int64()))
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "privimage": json.dumps(dict(about)),
    }
    return pa.schema(fields, metadata)


def image_files(images: ImageSet) -> Iterator[ImageFile]:
    """The images of a set as PNG files with their labels, in order."""
    for image, label in zip(images.images, images.labels.tolist(), strict=True):
        yield png(image), label if images.names else None


def file_name(row: int) -> str:
    """What the image in row `row` is called."""
    return f"{row:07d}.png"


def png(image: torch.Tensor) -> bytes:
    """A PNG file of one image, uint8 [1 (grey), 3 (RGB) or 4 (RGBA), height, width]."""
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
