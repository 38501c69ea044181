"""Who is in which image: columns, arrays and folder levels, and what names nobody."""

import io
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import pixels, png, write_hub

from privimage.data import ImageSet, ImageShape, PersonKey, check_source, load_sensitive
from privimage.data.persons import numbered
from privimage.errors import UserError

SHAPE = ImageShape(8, 3)
PATIENT = PersonKey(column="patient")
# Names as a column may hold them, and the persons that they are: no name is a person of its own.
NAMES = ["b", None, "a", "", "b", " a ", "  ", None]
PERSONS = [0, 1, 2, 3, 0, 2, 4, 5]


def _persons(path, key, names=("x",)):
    return load_sensitive(str(path), SHAPE, names, person=key).persons.tolist()


def _refused(path, key, message):
    for call in (
        lambda: check_source("--sensitive", str(path), key),
        lambda: load_sensitive(str(path), SHAPE, ("x",), person=key),
    ):
        with pytest.raises(UserError, match=f"^--sensitive: .*{message}") as caught:
            call()
        assert "\n" not in str(caught.value)


def _hub(path, column, labels=None):
    """A Parquet file with a column `patient`."""
    write_hub(path, [png(seed) for seed in range(len(column))], labels)
    pq.write_table(pq.read_table(path).append_column("patient", column), path)
    return path


def _tree(path, files, kind):
    """The files, by path, as a folder or as an archive."""
    contents = {name: png(seed) for seed, name in enumerate(files)}
    if kind == "folder":
        for name, content in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    elif kind == "zip":
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        path = path.with_suffix(".tar")
        with tarfile.open(path, "w") as archive:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_an_image_without_a_name_is_a_person_of_its_own():
    assert numbered(["" if name is None else name for name in NAMES]).tolist() == PERSONS
    assert numbered([]).tolist() == []


def test_every_image_is_a_unit_where_no_persons_are_named(tmp_path):
    found = load_sensitive(str(write_hub(tmp_path / "x.parquet", map(png, range(3)))), SHAPE, None)
    assert (found.persons, found.unit, found.units.tolist()) == (None, "image", [0, 1, 2])
    assert [images.tolist() for images in found.by_unit()] == [[0], [1], [2]]
    nobody = ImageSet(found.images[:0], found.labels[:0], ())
    assert nobody.by_unit() == ()


def test_the_images_of_a_person_are_found():
    images = torch.zeros(8, 1, 2, 2, dtype=torch.uint8)
    crowd = ImageSet(images, torch.zeros(8, dtype=torch.int64), (), torch.tensor(PERSONS))
    assert crowd.unit == "person"
    assert [one.tolist() for one in crowd.by_unit()] == [[0, 4], [1], [2, 5], [3], [6], [7]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(NAMES),
        pa.array(NAMES, pa.large_string()),
        pa.array(NAMES).dictionary_encode(),
        pa.array([8, None, 0, None, 8, 0, None, None], pa.int8()),
    ],
    ids=lambda column: str(column.type)[:10],
)
def test_a_column_of_parquet(tmp_path, column):
    assert _persons(_hub(tmp_path / "x.parquet", column), PATIENT) == PERSONS


def test_text_that_is_no_utf_8_stops_nothing_and_joins_nobody(tmp_path):
    raw = pa.array([b"\xfc", b"\xf6", b"\xfc", b"u"]).cast(pa.binary())
    column = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    assert _persons(_hub(tmp_path / "x.parquet", column), PATIENT) == [0, 1, 0, 2]


def test_a_parquet_file_without_a_fitting_column_is_refused(tmp_path):
    path = _hub(tmp_path / "x.parquet", pa.array([0.5, 1.0]))
    _refused(path, PATIENT, "'patient' must hold text or integers to name persons, not double")
    _refused(path, PersonKey(column="image"), "must hold text or integers")
    _refused(path, PersonKey(column="doctor"), r"has no 'doctor' .*it has image, patient")
    _refused(path, PersonKey(level=1), "names no persons by folder:1")


def test_an_array_in_a_numpy_archive(tmp_path):
    stack, path = np.stack([pixels(seed=seed) for seed in range(8)]), tmp_path / "x.npz"
    np.savez(path, images=stack, patient=["" if name is None else name for name in NAMES])
    assert _persons(path, PATIENT) == PERSONS
    np.savez(path, images=stack, patient=np.arange(8) // 3)
    assert _persons(path, PATIENT) == [0, 0, 0, 1, 1, 1, 2, 2]
    _refused(path, PersonKey(column="doctor"), r"has no 'doctor' .*it has images, patient")
    _refused(path, PersonKey(level=1), "names no persons by folder:1")
    for wrong in (np.arange(7), np.arange(8) / 2, np.zeros((8, 2), int)):
        np.savez(path, images=stack, patient=wrong)
        _refused(path, PATIENT, "must be texts or whole numbers")


def test_a_column_of_labels_csv(tmp_path):
    for seed in range(8):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))
    rows = [f"{seed}.png,x,{name or ''}" for seed, name in enumerate(NAMES) if seed != 7]
    # A second row of a file does not count; a file without one is nobody's.
    table = "\n".join(["file,label,patient", *rows, "0.png,x,a", "gone.png,x,b"])
    (tmp_path / "labels.csv").write_text(table)
    assert _persons(tmp_path, PATIENT) == PERSONS
    _refused(tmp_path, PersonKey(column="doctor"), "has no 'doctor' .*it has file, label, patient")
    _refused(tmp_path, PersonKey(level=1), "no image lies 1 folders deep")
    names = [b"M\xfcller", b"M\xf6ller", b"M\xfcller"]
    rows = [b"%d.png,\xfc,%s" % pair for pair in enumerate(names)]
    (tmp_path / "labels.csv").write_bytes(b"\n".join([b"file,label,patient", *rows]))
    assert _persons(tmp_path, PATIENT)[:3] == [0, 1, 0]
    assert load_sensitive(str(tmp_path), SHAPE, None, person=PATIENT).names == (
        "\N{REPLACEMENT CHARACTER}",
    )


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("level", [1, 2])
def test_a_folder_level(tmp_path, kind, level):
    """The class is the folder right around an image, but for that of its person."""
    pairs = [("ann", "cat"), ("ann", "dog"), ("bob", "cat"), ("cy", "dog")]
    folders = ["/".join(pair if level == 1 else pair[::-1]) for pair in pairs]
    files = [f"{folder}/{number}.png" for number, folder in enumerate(folders)]
    found = load_sensitive(
        str(_tree(tmp_path / "x", files, kind)), SHAPE, None, person=PersonKey(level=level)
    )
    assert found.names == ("cat", "dog")
    named = zip(found.persons.tolist(), found.labels.tolist(), strict=True)
    if level == 1 or kind != "folder":
        assert list(named) == [(0, 0), (0, 1), (1, 0), (2, 1)]
    else:
        # By class first: cat/ann, cat/bob, dog/ann, dog/cy.
        assert list(named) == [(0, 0), (1, 0), (0, 1), (2, 1)]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_images_beside_the_persons_folders(tmp_path, kind):
    files = ["a.png", "ann/b.png", "ann/cat/c.png", "ann/visit/dog/d.png", "z.png"]
    path = _tree(tmp_path / "x", files, kind)
    found = load_sensitive(str(path), SHAPE, None, person=PersonKey(level=1))
    assert sorted(found.persons.bincount().tolist()) == [1, 1, 3]
    assert sorted(found.labels.tolist()) == [0, 1, 2, 2, 2]
    assert found.names == ("cat", "dog")
    deep = load_sensitive(str(path), SHAPE, None, person=PersonKey(level=3))
    assert sorted(deep.persons.tolist()) == [0, 1, 2, 3, 4]
    _refused(path, PersonKey(level=4), "no image lies 4 folders deep")
    _refused(path, PATIENT, "names no persons by column:patient")


def test_folders_of_persons_alone_have_no_classes(tmp_path):
    _tree(tmp_path / "x", ["ann/a.png", "ann/b.png", "bob/c.png"], "folder")
    (tmp_path / "x/bob/link").symlink_to(tmp_path / "x/ann")
    (tmp_path / "x/.hidden").mkdir()
    (tmp_path / "x/.hidden/d.png").write_bytes(png(0))
    found = load_sensitive(str(tmp_path / "x"), SHAPE, None, person=PersonKey(level=1))
    assert (found.names, found.persons.tolist()) == ((), [0, 0, 1])


def test_sets_without_persons_are_refused(tmp_path):
    _refused("builtin:digits-train", PATIENT, "names no persons by column:patient")
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    for path in (tmp_path, tmp_path / "data_batch_1.bin", tmp_path / "x-images-idx3-ubyte"):
        path.touch()
        _refused(path, PersonKey(level=1), "names no persons by folder:1")
    (tmp_path / "x.odd").touch()
    _refused(tmp_path / "x.odd", PATIENT, "no image set of a known format")


@pytest.mark.parametrize(
    "text", ["patient", "column:", "folder:0", "folder:x", "folder:-1", ":", ""]
)
def test_what_names_persons_is_spelled_in_one_of_two_ways(text):
    with pytest.raises(UserError, match=r"expected column:NAME, .* or folder:LEVEL"):
        PersonKey.parse(text)
    assert str(PersonKey.parse("column:a:b")) == "column:a:b"
    assert PersonKey.parse("folder:2") == PersonKey(level=2)


def test_removing_a_person_removes_its_images_and_joins_or_parts_nobody(tmp_path):
    names = ["b", None, "a", "c", "b", "a", "", "b"]
    whole = load_sensitive(
        str(_hub(tmp_path / "x.parquet", pa.array(names))), SHAPE, None, person=PATIENT
    )
    for person in range(6):
        kept = [row for row in range(8) if whole.persons[row] != person]
        path = tmp_path / "y.parquet"
        pq.write_table(pq.read_table(tmp_path / "x.parquet").take(kept), path)
        without = load_sensitive(str(path), SHAPE, None, person=PATIENT)
        assert torch.equal(without.images, whole.images[kept])
        together = whole.persons[kept][:, None] == whole.persons[kept]
        assert torch.equal(without.persons[:, None] == without.persons, together)
