"""Writes labelled images as Parquet in the layout of the Hugging Face hub."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from privimage.data.images import ImageSet
from privimage.durable import cannot_write

_ROWS_PER_GROUP = 1000


def write_parquet(path: Path, images: ImageSet, about: Mapping[str, Any]) -> None:
    """Writes `images`: a column `image` (PNG bytes and path) and, if labelled, a column `label`.

    The class names stand where the hub's `datasets` library looks for them; `about` is kept as JSON
    under the schema's key "privimage".

    Raises:
        UserError: the file can't be written.
    """
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    fields = [pa.field("image", image_type)]
    if images.names:
        features["label"] = {"names": list(images.names), "_type": "ClassLabel"}
        fields.append(pa.field("label", pa.int64()))
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "privimage": json.dumps(dict(about)),
    }
    schema = pa.schema(fields, metadata)
    try:
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, len(images), _ROWS_PER_GROUP):
                rows = range(start, min(start + _ROWS_PER_GROUP, len(images)))
                columns = [pa.array([_file(images, row) for row in rows], image_type)]
                if images.names:
                    columns.append(pa.array(images.labels[rows.start : rows.stop].numpy()))
                writer.write_batch(pa.record_batch(columns, schema=schema))
    except OSError as error:
        raise cannot_write(path, error) from error


def _file(images: ImageSet, row: int) -> dict[str, Any]:
    return {"bytes": png(images.images[row]), "path": f"{row:07d}.png"}


def png(image: torch.Tensor) -> bytes:
    """A PNG file of one image, uint8 [channels, height, width] with 1 or 3 channels."""
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
