"""Image files and image sets for the tests of reading them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def pixels(height=8, width=8, channels=3, seed=0, dtype=np.uint8):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encoded(picture, form="PNG", **options):
    """The file of an array of pixels or of a Pillow image."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(seed, channels=3, side=8):
    return encoded(pixels(side, side, channels, seed))


def write_hub(path, contents, labels=None, names=None, image_type=None):
    """A Parquet file in the hub's layout; `contents` are bytes, or None for a null image."""
    image_type = image_type or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if item is None else {"bytes": item, "path": "x.png"} for item in contents]
    columns = {"image": pa.array(rows, image_type)}
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
    if names is not None:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def write_classes(path, classes):
    """A folder with one subfolder a class: {class: {file name: content}}."""
    for name, files in classes.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (path / name / file).write_bytes(content)
    return path
