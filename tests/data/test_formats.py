import csv
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import png, write_classes, write_hub

from privimage.data import ImageShape, PersonKey, load_sensitive, parquet
from privimage.data.formats import open_source, share_images
from privimage.errors import UserError


def _pairs(source):
    return [(entry.content, entry.label) for entry in source.entries()]


def _entries(path):
    return _pairs(open_source("--public", path))


def test_parquet_comes_in_row_order_with_labels_and_names(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 3)
    contents = [png(seed) for seed in range(8)]
    labels = [0, 1, 1, 0, None, 7, -1, 0]
    path = write_hub(tmp_path / "x.parquet", contents, labels, ["cat", "dog"])
    source = open_source("--public", path)
    assert (source.names, source.is_labelled, source.count) == (("cat", "dog"), True, 8)
    assert _pairs(source) == list(zip(contents, labels, strict=True))


def test_of_a_large_row_group_no_two_rows_are_in_memory_at_a_time(tmp_path, monkeypatch):
    contents = [png(seed) for seed in range(8)]
    path = write_hub(tmp_path / "x.parquet", contents, range(8), map(str, range(8)))
    with pq.ParquetFile(path) as file:
        for bound, sizes in ((2**30, {8}), (100, {1})):
            monkeypatch.setattr(parquet, "_LARGE_GROUP", bound)
            assert {len(batch) for batch in parquet._batches(file, ["label"])} == sizes
            assert _entries(path) == list(zip(contents, range(8), strict=True))


def test_a_null_image_has_no_bytes_and_keeps_its_label(tmp_path):
    path = write_hub(tmp_path / "x.parquet", [png(0), None, b"", png(1)], [0, 1, 1, 0])
    assert _entries(path) == [(png(0), 0), (b"", 1), (b"", 1), (png(1), 0)]


def test_parquet_without_labels_or_names(tmp_path):
    path = write_hub(tmp_path / "x.parquet", [png(0)])
    source = open_source("--public", path)
    assert (source.names, source.is_labelled) == ((), False)
    assert _pairs(source) == [(png(0), None)]
    path = write_hub(tmp_path / "y.parquet", [png(0)], [5])
    assert open_source("--public", path).names == ()


@pytest.mark.parametrize("metadata", [b"{", b"[]", b"{}", b'{"info": 3}', b'{"info": []}'])
def test_metadata_that_is_not_the_hubs_names_nothing(tmp_path, metadata):
    path = write_hub(tmp_path / "x.parquet", [png(0)], [0])
    table = pq.read_table(path).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, path)
    assert open_source("--public", path).names == ()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("width", [pa.int8(), pa.uint16(), pa.int64()])
def test_bytes_and_integers_of_any_width_are_read(tmp_path, kind, width):
    image = pa.array([{"bytes": png(0)}], pa.struct([("bytes", kind)]))
    pq.write_table(
        pa.table({"image": image, "label": pa.array([1], width)}), tmp_path / "x.parquet"
    )
    assert _entries(tmp_path / "x.parquet") == [(png(0), 1)]


def test_more_columns_do_no_harm(tmp_path):
    path = write_hub(tmp_path / "x.parquet", [png(0)], [0], ["cat"])
    table = pq.read_table(path).append_column("note", pa.array(["x"]))
    pq.write_table(table, path)
    assert _entries(path) == [(png(0), 0)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"x"]}, "needs a column 'image'.* its columns are picture"),
        ({"image": [b"x"]}, "needs a column 'image', a struct"),
        ({"image": [{"path": "x"}]}, "needs a column 'image', a struct"),
        ({"image": [{"bytes": b"x"}], "label": ["cat"]}, "'label' must hold integers"),
        ({"image": [{"bytes": b"x"}], "label": [0.5]}, "'label' must hold integers"),
        ({"image": [{"bytes": b"x"}], "label": [True]}, "'label' must hold integers"),
    ],
)
def test_columns_of_another_kind_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=f"^--public: .*{message}"):
        open_source("--public", tmp_path / "x.parquet")


def test_no_rows_are_no_image_set(tmp_path):
    path = write_hub(tmp_path / "x.parquet", [], [], ["cat"])
    with pytest.raises(UserError, match="--sensitive: there are no images in"):
        open_source("--sensitive", path)


def test_what_is_not_parquet_is_refused_in_one_line(tmp_path):
    for content in (b"", b"PAR1", b"a,b\n1,2\n", png(0)):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(UserError, match="not readable as Parquet") as caught:
            open_source("--public", tmp_path / "x.parquet")
        assert "\n" not in str(caught.value)


def test_damage_inside_a_parquet_file_is_one_line(tmp_path):
    path = write_hub(tmp_path / "x.parquet", [png(seed, side=30) for seed in range(9)], [0] * 9)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    source = open_source("--public", path)
    with pytest.raises(UserError, match="damaged as a Parquet file") as caught:
        list(source.entries())
    assert "\n" not in str(caught.value)


def test_another_extension_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(png(0))
    with pytest.raises(UserError, match=r"no image set of a known format: \.parquet, \.zip"):
        open_source("--public", tmp_path / "x.png")


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--test: there is no file or folder .*nowhere"):
        open_source("--test", tmp_path / "nowhere")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refused)
    with pytest.raises(UserError, match=r"can't be read \(Permission denied"):
        open_source("--public", tmp_path)


def test_class_folders_come_in_the_order_of_their_names(tmp_path):
    write_classes(
        tmp_path,
        {
            "dog": {"b.PNG": b"1", "a.jpeg": b"2"},
            "cat": {"z.tiff": b"3", "notes.txt": b"no", ".hidden.png": b"no"},
            ".cache": {"x.png": b"no"},
        },
    )
    source = open_source("--public", tmp_path)
    assert (source.names, source.is_labelled, source.count) == (("cat", "dog"), True, 3)
    assert _pairs(source) == [(b"3", 0), (b"2", 1), (b"1", 1)]


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ("b.png", "a.webp"):
        (tmp_path / name).write_bytes(name.encode())
    source = open_source("--sensitive", tmp_path)
    assert (source.names, source.is_labelled, source.count) == ((), False, 2)
    assert _pairs(source) == [(b"a.webp", None), (b"b.png", None)]


def test_nothing_that_a_link_leads_to_is_read(tmp_path):
    write_classes(tmp_path / "elsewhere", {"secret": {"x.png": b"secret"}})
    write_classes(tmp_path / "set", {"cat": {"a.png": b"1"}, "dog": {"b.png": b"2"}})
    (tmp_path / "set/cat/link.png").symlink_to(tmp_path / "elsewhere/secret/x.png")
    (tmp_path / "set/bird").symlink_to(tmp_path / "elsewhere/secret")
    source = open_source("--public", tmp_path / "set")
    assert source.names == ("cat", "dog")
    assert _pairs(source) == [(b"1", 0), (b"2", 1)]


def test_what_only_looks_like_an_image_file_is_passed_over(tmp_path):
    (tmp_path / "cat/folder.png").mkdir(parents=True)
    os.mkfifo(tmp_path / "cat/pipe.png")
    (tmp_path / "cat/a.png").write_bytes(b"1")
    source = open_source("--public", tmp_path)
    assert source.count == 1
    assert _pairs(source) == [(b"1", 0)]


@pytest.mark.parametrize("inside", [{}, {"cat": {}}, {"cat": {"x.txt": b"no"}}])
def test_a_folder_without_images_is_refused(tmp_path, inside):
    write_classes(tmp_path, inside)
    with pytest.raises(UserError, match=r"there are no images in .*looked for \.bmp, \.gif"):
        open_source("--public", tmp_path)


@pytest.mark.parametrize("role", ["--public", "--test", "--sensitive", "data inspect"])
def test_images_that_lie_deeper_are_said_to(tmp_path, role):
    write_classes(tmp_path / "ann", {"cat": {"1.png": b"1"}, "dog": {"2.png": b"2"}})
    write_classes(tmp_path / "bob", {"cat": {"3.png": b"3"}})
    with pytest.raises(UserError, match=f"^{role}: .* lie more than one folder deep; ") as caught:
        open_source(role, tmp_path)
    assert "\n" not in str(caught.value)
    assert ("--person folder:1" in str(caught.value)) == (role in ("--sensitive", "data inspect"))
    # Both of what it advises works.
    assert open_source(role, tmp_path / "ann").names == ("cat", "dog")
    source = open_source(role, tmp_path, PersonKey(level=1))
    assert [(entry.label, entry.person) for entry in source.entries()] == [
        (0, "ann"),
        (1, "ann"),
        (0, "bob"),
    ]


@pytest.mark.parametrize("of", ["files", "folders"])
def test_a_folder_of_nothing_but_links_is_told_that_they_are_not_followed(tmp_path, of):
    write_classes(tmp_path / "elsewhere", {"cat": {"a.png": b"1"}})
    (tmp_path / "set/cat").mkdir(parents=True)
    link = tmp_path / ("set/cat/a.png" if of == "files" else "set/dog")
    link.symlink_to(tmp_path / ("elsewhere/cat/a.png" if of == "files" else "elsewhere/cat"))
    with pytest.raises(UserError, match="only symbolic links, which are not followed"):
        open_source("--public", tmp_path / "set")


# ---------------------------------------------------------------------------------------- shards


def test_shards_come_in_the_order_of_their_names(tmp_path):
    for number in (1, 0, 2):
        path = tmp_path / f"train-0000{number}-of-00003.parquet"
        write_hub(path, [png(2 * number), png(2 * number + 1)], [0, 1], ["cat", "dog"])
    for path in (tmp_path, tmp_path / "train-*.parquet"):
        source = open_source("--public", path)
        assert (source.names, source.is_labelled, source.count) == (("cat", "dog"), True, 6)
        assert _pairs(source) == [(png(number), number % 2) for number in range(6)]


def test_shards_of_several_splits_are_refused(tmp_path):
    for split in ("train", "test"):
        write_hub(tmp_path / f"{split}-00000-of-00001.parquet", [png(0)], [0], ["cat"])
    with pytest.raises(UserError, match=r"holds several splits \('test', 'train'\)"):
        open_source("--sensitive", tmp_path)
    assert open_source("--sensitive", tmp_path / "train-*.parquet").count == 1


@pytest.mark.parametrize("second", [([0], ["dog"]), ([0], None), (None, None)])
def test_shards_of_different_columns_or_names_are_refused(tmp_path, second):
    write_hub(tmp_path / "a.parquet", [png(0)], [0], ["cat"])
    write_hub(tmp_path / "b.parquet", [png(0)], *second)
    with pytest.raises(UserError, match=r"b\.parquet' has other columns or class names than"):
        open_source("--public", tmp_path)


def test_a_pattern_that_finds_nothing_or_something_else_is_a_missing_path(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    for pattern in ("*.parquet", "*"):
        with pytest.raises(UserError, match="there is no file or folder"):
            open_source("--public", tmp_path / pattern)


# ------------------------------------------------------------------------------------------- CSV


def _flat(path, table, names="abc"):
    for number, name in enumerate(names):
        (path / f"{name}.png").write_bytes(png(number))
    (path / "labels.csv").write_text(table)
    return path


def test_a_flat_folder_takes_its_labels_from_the_csv(tmp_path):
    _flat(tmp_path, '\ufefflabel,file,more\ndog,c.png,1\n"cat, grey",a.png,2\ndog, b.png ,3\n')
    source = open_source("--public", tmp_path)
    assert (source.names, source.is_labelled, source.count) == (("cat, grey", "dog"), True, 3)
    assert _pairs(source) == [(png(0), 0), (png(1), 1), (png(2), 1)]
    assert source.remarks == ()


@pytest.mark.parametrize("inside", [{}, {"c.png": b"no"}, {"note.txt": b"no"}])
@pytest.mark.parametrize("folder", ["thumbs", "@eaDir", "__MACOSX"])
def test_a_flat_folder_with_a_csv_may_hold_folders(tmp_path, folder, inside):
    _flat(tmp_path, "file,label\na.png,dog\nb.png,cat\n", "ab")
    alone = open_source("--sensitive", tmp_path)
    write_classes(tmp_path, {folder: inside})
    source = open_source("--sensitive", tmp_path)
    assert _pairs(source) == _pairs(alone) == [(png(0), 1), (png(1), 0)]
    assert (source.names, source.is_labelled) == (("cat", "dog"), True)
    assert source.remarks == (f"has a labels.csv, so its subfolders are left out ('{folder}')",)


def test_folders_beside_a_csv_can_still_name_persons(tmp_path):
    write_classes(tmp_path, {"ann": {"1.png": b"1"}, "bob": {"2.png": b"2"}})
    (tmp_path / "labels.csv").write_text("file,label\n1.png,cat\n")
    source = open_source("--sensitive", tmp_path, PersonKey(level=1))
    assert [entry.person for entry in source.entries()] == ["ann", "bob"]


def test_classes_beside_a_csv_without_images_are_refused(tmp_path):
    write_classes(tmp_path, {"cat": {"1.png": b"1"}, "dog": {"2.png": b"2"}})
    (tmp_path / "labels.csv").write_text("file,label\n1.png,cat\n")
    with pytest.raises(UserError, match=r"no images right in .*labels\.csv says that it is flat"):
        open_source("--public", tmp_path)


def test_numbers_as_labels_come_in_their_own_order(tmp_path):
    _flat(tmp_path, "file,label\na.png,10\nb.png,9\nc.png,02\n")
    assert open_source("--public", tmp_path).names == ("02", "9", "10")


def test_a_csv_that_says_too_much_or_too_little(tmp_path):
    _flat(tmp_path, "file,label\na.png,dog\nz.png,cat\nb.png\na.png,cat\n\n../a.png,cat\n")
    source = open_source("--public", tmp_path)
    assert [entry.label for entry in source.entries()] == [1, None, None]
    assert source.remarks == ("labels.csv names 2 files that are not there ('../a.png', 'z.png')",)
    found = load_sensitive(str(tmp_path), ImageShape(8, 3), ("cat", "dog"))
    assert found.labels.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ("", "nothing"),
        ("name,label\na.png,cat\n", "'name', 'label'"),
        ("file;label\na.png;cat\n", "'file;label'"),
        ("a.png\n", "'a.png'"),
        ("\0\0", ".*"),
        ('"a\nb",c\n', "'a b', 'c'"),
        ("x" * 100_000, "'x{40}'"),
    ],
)
def test_a_csv_without_its_columns_is_refused(tmp_path, table, found):
    message = r"labels\.csv' needs the columns 'file' and 'label' in its first line, separated by"
    with pytest.raises(UserError, match=rf"{message} commas \(found: {found}\)") as caught:
        open_source("--public", _flat(tmp_path, table))
    assert "\n" not in str(caught.value)


def test_white_space_around_the_columns_of_a_csv_is_none_of_their_names(tmp_path):
    _flat(tmp_path, " file , label,who \na.png,cat,ann\nb.png,dog,bob\nc.png,cat,ann\n")
    source = open_source("--sensitive", tmp_path, PersonKey(column="who"))
    assert [(entry.label, entry.person) for entry in source.entries()] == [
        (0, "ann"),
        (1, "bob"),
        (0, "ann"),
    ]


@pytest.mark.parametrize("huge", ["x" * 200_000, "3" * 5_000])
def test_no_cell_of_a_csv_is_too_long_or_too_large_a_number(tmp_path, huge):
    path = _flat(tmp_path, f"file,label\na.png,2\nb.png,{huge}\nc.png,10\n")
    limit = csv.field_size_limit()
    assert set(open_source("--sensitive", path).names) == {"2", "10", huge}
    assert load_sensitive(str(path), ImageShape(8, 3), ("2", "10")).labels.tolist() == [0, 2, 1]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("shards", "shards/a.parquet", True),
        ("shards/*.parquet", "shards/../shards/a.parquet", True),
        ("shards/a.parquet", "shards/b.parquet", False),
        ("scans", "scans/test", True),
        ("scans/train", "scans/test", False),
        ("scans", "scans/mine.zip", False),  # A folder's images are files of images.
        ("scans/mine.zip", "scans/mine.zip/test", True),
        ("scans/mine.zip/test", "scans/mine.zip/test/cats", True),
        ("scans/mine.zip/train", "scans/mine.zip/test", False),
        ("scans", "scans/mine.zip/test", False),
        ("cifar", "cifar/data_batch_1.bin", True),
        ("cifar", "cifar/test_batch.bin", False),
        ("link", "scans/test", True),
        ("builtin:digits", "builtin:digits", True),
        ("builtin:digits", "builtin:glyphs", False),
    ],
)
def test_sets_that_share_images_are_known(tmp_path, monkeypatch, one, other, expected):
    monkeypatch.chdir(tmp_path)
    for folder in ("scans/test", "scans/train", "shards", "cifar"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("scans/mine.zip", "shards/a.parquet", "shards/b.parquet"):
        (tmp_path / file).touch()
    for file in ("batches.meta.txt", "data_batch_1.bin", "test_batch.bin"):
        (tmp_path / "cifar" / file).touch()
    (tmp_path / "link").symlink_to("scans")
    assert share_images(one, other) == share_images(other, one) == expected
