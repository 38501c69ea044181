import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from privimage.data import ImageSet, ImageShape, image_files, load_public, load_sensitive
from privimage.data import write as write_module
from privimage.data import write_parquet as write
from privimage.data.formats import open_source
from privimage.errors import UserError

NAMES = ("cat", "dog", "emu")


def _images(count=7, channels=3, names=NAMES):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 9, 9), generator=random, dtype=torch.uint8)
    labels = torch.arange(count) % max(len(names), 1)
    return ImageSet(images, labels, names)


def write_parquet(path, images, about):
    write(path, image_files(images), images.names, about)


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr(write_module, "_ROWS_PER_GROUP", 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pyarrow_reads_back_every_bit(tmp_path, channels):
    images = _images(channels=channels)
    write_parquet(tmp_path / "x.parquet", images, {})
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["label"] for row in rows] == images.labels.tolist()
    for index, (row, expected) in enumerate(zip(rows, images.images, strict=True)):
        assert row["image"]["path"] == f"{index:07d}.png"
        found = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        found = found[None] if channels == 1 else found.transpose(2, 0, 1)
        assert np.array_equal(found, expected)
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [NAMES, ()])
def test_our_own_loader_reads_back_every_bit(tmp_path, channels, names):
    images, shape = _images(channels=channels, names=names), ImageShape(9, channels)
    path = tmp_path / "x.parquet"
    write_parquet(path, images, {})
    loaded = [load_sensitive(str(path), shape, None)]
    if names:
        loaded.append(load_public(str(path), shape, pytest.fail))
    for found in loaded:
        assert torch.equal(found.images, images.images)
        assert torch.equal(found.labels, images.labels)
        assert found.names == names


def test_the_schema_is_the_hubs(tmp_path):
    write_parquet(tmp_path / "x.parquet", _images(), {"epsilon": 1.5, "private": True})
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert schema.names == ["image", "label"]
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
    assert str(schema.field("label").type) == "int64"
    assert json.loads(schema.metadata[b"huggingface"]) == {
        "info": {
            "features": {
                "image": {"_type": "Image"},
                "label": {"names": list(NAMES), "_type": "ClassLabel"},
            }
        }
    }
    assert json.loads(schema.metadata[b"privimage"]) == {"epsilon": 1.5, "private": True}


def test_a_set_without_labels_has_no_column_for_them(tmp_path):
    write_parquet(tmp_path / "x.parquet", _images(names=()), {})
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert schema.names == ["image"]
    assert b"ClassLabel" not in schema.metadata[b"huggingface"]


def test_images_in_any_layout_are_written_alike(tmp_path):
    images = _images()
    other = ImageSet(
        images.images.to(memory_format=torch.channels_last), images.labels, images.names
    )
    write_parquet(tmp_path / "x.parquet", images, {})
    write_parquet(tmp_path / "y.parquet", other, {})
    assert (tmp_path / "x.parquet").read_bytes() == (tmp_path / "y.parquet").read_bytes()


def test_a_place_that_can_not_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"x\.parquet: can't write it") as caught:
        write_parquet(tmp_path / "missing/x.parquet", _images(), {})
    assert "\n" not in str(caught.value)


def test_reading_keeps_no_more_than_a_few_row_groups(tmp_path):
    noise = torch.randint(0, 256, (3000, 1, 32, 32), dtype=torch.uint8)
    images = ImageSet(noise, torch.zeros(3000, dtype=torch.int64), ("x",))
    write_parquet(tmp_path / "x.parquet", images, {})
    before, most = pa.total_allocated_bytes(), 0
    for _ in open_source("x", tmp_path / "x.parquet").entries():
        most = max(most, pa.total_allocated_bytes() - before)
    # 3.3 MB in a thousand row groups: all of it, if buffers are kept.
    assert most < 1_500_000
