"""Why a sensitive set is refused is one sentence, whatever its size; of a public set, it counts.

Every form of set is damaged in the ways that a message could count by, and read in both roles.
"""

import shutil
import struct
import tempfile
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import pixels, png, write_hub

from privimage.data import ImageShape, PersonKey, check_source, load_public, load_sensitive
from privimage.data import decode as decode_module
from privimage.errors import UserError

SHAPE = ImageShape(8, 1)
PATIENT = PersonKey(column="patient")


def _stack(count):
    return np.stack([pixels(channels=1, seed=seed) for seed in range(count)])


def _npz(path, count, **arrays):
    np.savez(path / "x.npz", **{"images": _stack(count), "labels": [0, 1] * (count // 2), **arrays})
    return path / "x.npz"


def _npy_cut_short(path, count, name):
    """An archive whose array `name` promises more than there is."""
    good = _npz(path, count, labels=np.zeros(count, np.uint8))
    with zipfile.ZipFile(good) as archive:
        members = {item: archive.read(item) for item in archive.namelist()}
    with zipfile.ZipFile(good, "w") as archive:
        for item, content in members.items():
            archive.writestr(item, content[:-3] if item == f"{name}.npy" else content)
    return good


def _cut(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    return path


def _idx(path, count, labels, promised=0):
    images = struct.pack(">BBBB3I", 0, 0, 8, 3, count + promised, 8, 8) + _stack(count).tobytes()
    (path / "a-images-idx3-ubyte").write_bytes(images)
    beside = struct.pack(">BBBBI", 0, 0, 8, 1, labels) + bytes(labels)
    (path / "a-labels-idx1-ubyte").write_bytes(beside)
    return path / "a-images-idx3-ubyte"


def _cifar(path, count):
    (path / "batches.meta.txt").write_text("a\nb\n")
    (path / "x.bin").write_bytes(bytes(count * 3073 - 1))
    return path / "x.bin"


def _parquet(path, count):
    path = write_hub(path / "x.parquet", map(png, range(count)), [0, 1] * (count // 2), ["a", "b"])
    where = pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[where : where + 60] = b"\xff" * 60
    path.write_bytes(content)
    return path


def _csv_without_header(path, count):
    """A flat folder whose table begins with an image, another one in each size."""
    folder = path / f"of{count}"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number))
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in reversed(range(count))]
    (folder / "labels.csv").write_text("\n".join(rows))
    shutil.rmtree(path / "set", ignore_errors=True)
    return folder.rename(path / "set")


DAMAGED = {
    "csv without header": _csv_without_header,
    "npz labels": lambda path, count: _npz(path, count, labels=[0] * (count - 1)),
    "npz names of persons": lambda path, count: _npz(path, count, patient=[0] * (count - 1)),
    "npz of another type": lambda path, count: _npz(path, count, images=_stack(count) / 255),
    "npz the other way round": lambda path, count: _npz(path, count, images=_stack(count).T),
    "npz images cut short": lambda path, count: _npy_cut_short(path, count, "images"),
    "npz labels cut short": lambda path, count: _npy_cut_short(path, count, "labels"),
    "idx labels": lambda path, count: _idx(path, count, count - 1),
    "idx cut short": lambda path, count: _idx(path, count, count + 1, promised=1),
    "cifar cut short": _cifar,
    "parquet damaged": _parquet,
    "parquet cut short": lambda path, count: _cut(_parquet(path, count), count + 6),
}
COUNTING = {"npz labels", "npz of another type", "npz labels cut short", "idx labels"}
COUNTING |= {"cifar cut short", "csv without header"}


def _refusals(path, read):
    """What `read` says of the set in two sizes."""
    for count in (6, 8):
        with pytest.raises(UserError) as caught:
            read(path(count))
        assert "\n" not in str(caught.value)
        yield str(caught.value)


@pytest.mark.parametrize("damage", DAMAGED)
def test_why_a_sensitive_set_is_refused_does_not_tell_its_size(tmp_path, damage):
    person = PATIENT if "persons" in damage else None

    def sensitive(path):
        check_source("--sensitive", str(path), person)
        load_sensitive(str(path), SHAPE, ("a", "b"), person=person)

    fewer, more = _refusals(lambda count: DAMAGED[damage](tmp_path, count), sensitive)
    assert fewer == more
    assert "inspect" in fewer


@pytest.mark.parametrize("damage", sorted(COUNTING))
def test_why_a_public_set_is_refused_counts(tmp_path, damage):
    """The test above can fail: these are the numbers that it must not see."""

    def public(path):
        check_source("--public", str(path))
        load_public(str(path), SHAPE, pytest.fail)

    fewer, more = _refusals(lambda count: DAMAGED[damage](tmp_path, count), public)
    assert fewer != more


def _deeper(path, count):
    """Images of which one more lies in a folder of its own, deeper still."""
    for number in range(count):
        place = path / f"person{number}/cat" / ("more" * (number % 2))
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(number))
    return path


def _links(path, count):
    for number in range(count):
        (path / f"{number}.png").unlink(missing_ok=True)
        (path / f"{number}.png").symlink_to(f"elsewhere{number}")
    return path


@pytest.mark.parametrize("make", [_deeper, _links])
def test_where_a_sensitive_set_lies_is_said_without_telling_its_size(tmp_path, make):
    def read(path):
        check_source("--sensitive", str(path))

    fewer, more = _refusals(lambda count: make(tmp_path, count), read)
    assert fewer == more
    assert "folder deep" in fewer or "links" in fewer


def test_a_full_disk_under_a_sensitive_set_does_not_tell_its_size(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decode_module, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("os.posix_fallocate", full)
    for load, is_told in (
        (lambda path: load_sensitive(str(path), SHAPE, None), False),
        (lambda path: load_public(str(path), SHAPE, pytest.fail), True),
    ):
        fewer, more = _refusals(lambda count: _npz(tmp_path, count, names=["a", "b"]), load)
        assert "set TMPDIR" in fewer
        assert (fewer != more) == is_told
