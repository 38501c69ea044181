import tracemalloc
import zipfile

import pyarrow as pa
import pytest
from pictures import png

from privimage.data import ImageShape, write_parquet
from privimage.release.writers import folder_names, write_folder, write_npz, write_zip

PNG = png(0, channels=1)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "Größe 5", "犬"], ["cat", "Größe 5", "犬"]),
        (["a/b", "..", "", " x", "x."], [f"class-{label}" for label in range(5)]),
        (["Cat", "cat"], ["Cat", "class-1"]),
        (["class-1", "/", "class-1_"], ["class-1", "class-1_", "class-2"]),
    ],
)
def test_every_class_has_a_folder_of_its_own(names, expected):
    assert folder_names(names) == expected


def test_no_name_leads_out_of_the_folder(tmp_path):
    names = ["../up", "/root", "a\0b", "x" * 300, ".hidden"]
    files = [(b"png", label) for label in range(len(names))]
    (tmp_path / "in").mkdir()
    assert write_folder(tmp_path / "in", files, names) == 3 * len(names)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert len(list((tmp_path / "in").iterdir())) == len(names)


def test_an_unlabelled_set_is_flat(tmp_path):
    write_folder(tmp_path, [(b"one", None), (b"two", None)], ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000.png", "0000001.png"]
    write_zip(tmp_path / "x.zip", [(b"one", None)], (), "card")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.namelist() == ["README.md", "0000000.png"]


def _peak(write, count):
    """Bytes that Python and Arrow hold at most while `count` images of 1 KiB and more pass by."""

    def files():
        for row in range(count):
            yield PNG + bytes(1024), row % 2

    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        write(files(), count)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


@pytest.mark.parametrize("form", ["folder", "zip", "npz", "parquet"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, form):
    shape = ImageShape(8, 1)
    write = {
        "folder": lambda files, _: write_folder(tmp_path, files, ("a", "b")),
        "zip": lambda files, _: write_zip(tmp_path / "x.zip", files, ("a", "b"), "card"),
        "npz": lambda files, n: write_npz(tmp_path / "x.npz", files, ("a", "b"), n, shape),
        "parquet": lambda files, _: write_parquet(tmp_path / "x.parquet", files, ("a", "b"), {}),
    }[form]
    few, many = (_peak(write, count) for count in (2000, 5000))
    # A zip's directory and a NumPy archive's labels take some bytes an image; an image takes 1100.
    assert many - few < 3000 * 100
