import gzip
import io
import random
import stat
import tarfile
import zipfile

import pytest
import torch
from pictures import encoded, pixels, png, write_classes

from privimage.data import ImageShape, PersonKey, load_public, load_sensitive, members
from privimage.data.formats import open_source
from privimage.errors import UserError

SHAPE = ImageShape(8, 3)
KINDS = ["x.zip", "x.tar", "x.tar.gz", "x.tgz"]
CLASSES = {"cat/a.png": png(0), "cat/b.png": png(1), "dog/c.png": png(2), "dog/d.png": png(3)}
TRAVERSALS = ["../a.png", "/etc/a.png", "cat/../../a.png", "C:\\a.png", "..\\a.png", "//host/a.png"]


def write_archive(path, contents, links=()):
    """A zip or tar of (name, content) pairs and links, names as they are."""
    pairs = list(contents.items() if isinstance(contents, dict) else contents)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in pairs:
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
            for name in links:
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, "/etc/passwd")
        return path
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name in links:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "/etc/passwd"
                archive.addfile(info)
    return path


def _entries(path):
    return [tuple(entry[:3]) for entry in open_source("--public", path).entries()]


def _public(path, heard):
    return load_public(str(path), SHAPE, heard.append)


def _refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source("--public", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_holds_the_same_set_as_its_folder(tmp_path, kind):
    files = {"cat": {"a.png": png(0), "b.png": png(1)}, "dog": {"c.png": png(2), "d.png": png(3)}}
    folder = load_sensitive(str(write_classes(tmp_path / "set", files)), SHAPE, None)
    for prefix in ("", "./", "set/"):
        path = write_archive(tmp_path / kind, {prefix + name: c for name, c in CLASSES.items()})
        heard = []
        for found in (_public(path, heard), load_sensitive(str(path), SHAPE, None)):
            assert torch.equal(found.images, folder.images)
            assert torch.equal(found.labels, folder.labels)
            assert found.names == folder.names == ("cat", "dog")
        assert heard == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_flat_archive_has_no_labels(tmp_path, kind):
    path = write_archive(tmp_path / kind, {"b.png": b"1", "a.PNG": b"2", "notes.txt": b"3"})
    source = open_source("--sensitive", path)
    assert (source.is_labelled, source.names, source.count) == (False, (), 2)
    assert _entries(path) == [(b"1", None, "b.png"), (b"2", None, "a.PNG")]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_and_what_a_mac_adds_are_passed_over(tmp_path, kind):
    extra = {"__MACOSX/cat/._a.png": b"no", "cat/.b.png": b"no", ".cache/c.png": b"no"}
    path = write_archive(tmp_path / kind, CLASSES | extra)
    assert [entry[0] for entry in _entries(path)] == list(CLASSES.values())


@pytest.mark.parametrize("kind", KINDS)
def test_what_leads_out_of_an_archive_or_is_no_file_is_left_unseen(tmp_path, kind):
    bad = {name: png(9) for name in TRAVERSALS}
    path = write_archive(tmp_path / kind, bad | CLASSES, links=["cat/link.png"])
    assert [entry[0] for entry in _entries(path)] == list(CLASSES.values())
    heard = []
    assert _public(path, heard).names == ("cat", "dog")
    assert len(heard) == 2
    assert f"{len(TRAVERSALS)} names are left out, as they lead out" in heard[0]
    assert "links or special files ('cat/link.png'" in heard[1]
    assert not any("\n" in line for line in heard)
    assert sorted(found.name for found in tmp_path.iterdir()) == [kind]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_occurs_twice_is_two_images(tmp_path, kind):
    path = write_archive(tmp_path / kind, [*CLASSES.items(), ("cat/a.png", png(7))])
    heard = []
    assert len(_public(path, heard)) == 5
    assert len(heard) == 1
    assert "1 names occur more than once; each counts ('cat/a.png')" in heard[0]
    assert [entry[0] for entry in _entries(path)][-1] == png(7)


def _hostile():
    damaged = bytearray(png(5, side=40))
    damaged[len(damaged) // 2] ^= 255
    return {
        "cat/damaged.png": bytes(damaged),
        "cat/empty.png": b"",
        "cat/text.png": b"no image",
        "dog/gif.jpg": encoded(pixels(9, 11, 1), "GIF"),
        "dog/bomb.png": bytes(2 * 2**20),
        "emu/alone.png": png(6),
        "outside.png": png(7),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_removing_one_member_removes_its_row_and_nothing_else(tmp_path, kind, recwarn, capfd):
    members_ = CLASSES | _hostile()
    names = ("dog", "cat")
    path = write_archive(tmp_path / kind, members_)
    whole = load_sensitive(str(path), SHAPE, names)
    assert whole.labels.tolist() == [1, 1, 0, 0, 1, 1, 1, 0, 0, 2, 2]
    assert (whole.images[[5, 6, 8]] == 128).all()
    for row, name in enumerate(members_):
        rest = {other: content for other, content in members_.items() if other != name}
        kept = [other for other in range(len(members_)) if other != row]
        found = load_sensitive(str(write_archive(tmp_path / kind, rest)), SHAPE, names)
        assert torch.equal(found.images, whole.images[kept])
        assert torch.equal(found.labels, whole.labels[kept])
    assert (recwarn.list, capfd.readouterr()) == ([], ("", ""))


@pytest.mark.parametrize("person", [None, PersonKey(level=1)])
@pytest.mark.parametrize("kind", [*KINDS, "folder"])
def test_no_image_decides_whether_declared_names_count(tmp_path, kind, person):
    """The names are declared, so they must be the same for a set in which nothing has a class."""
    place = "patient/" if person else ""
    files = {f"{place}{number}.png": png(number) for number in range(3)}
    for number, extra in enumerate(({}, {f"{place}cat/3.png": png(3)})):
        path = tmp_path / f"{number}-{kind}"
        if kind != "folder":
            write_archive(path, files | extra)
        else:
            for name, content in (files | extra).items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
        found = load_sensitive(str(path), SHAPE, ("cat", "dog"), person=person)
        assert found.names == ("cat", "dog")
        assert set(found.labels.tolist()) <= {0, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_declared_names_are_never_matched_by_number(tmp_path, kind):
    path = write_archive(tmp_path / kind, CLASSES)
    assert load_sensitive(str(path), SHAPE, ("x", "y")).labels.tolist() == [2, 2, 2, 2]


def test_a_zip_member_that_unpacks_to_too_much_is_never_unpacked(tmp_path):
    path = write_archive(tmp_path / "x.zip", CLASSES | {"dog/bomb.png": bytes(100 * 2**20)})
    assert _entries(path)[-1] == (b"", 1, "dog/bomb.png")
    heard = []
    assert len(_public(path, heard)) == 4
    assert "1 of 5 images" in heard[0]
    # A flat picture packs well too, and is none the worse for it.
    flat = encoded(pixels(500, 500) * 0, "BMP")
    assert _entries(write_archive(tmp_path / "x.zip", {"a.bmp": flat})) == [(flat, None, "a.bmp")]


def test_a_size_that_a_zip_understates_does_not_help_it(tmp_path):
    path = write_archive(tmp_path / "x.zip", {"a.png": bytes(100 * 2**20)})
    content = path.read_bytes()
    size = (100 * 2**20).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (1000).to_bytes(4, "little")))
    (entry,) = _entries(path)
    assert len(entry[0]) <= 1000


@pytest.mark.parametrize("flag", ["encrypted", "method", "checksum"])
def test_a_zip_member_that_can_not_be_unpacked_is_an_image_without_content(tmp_path, flag):
    path = write_archive(tmp_path / "x.zip", {"a.png": png(0), "b.png": png(1)})
    content = bytearray(path.read_bytes())
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    if flag == "encrypted":
        content[local + 6] |= 1
        content[central + 8] |= 1
    elif flag == "method":
        content[local + 8] = content[central + 10] = 97
    else:
        content[local + 14] ^= 1
        content[central + 16] ^= 1
    path.write_bytes(content)
    assert _entries(path) == [(b"", None, "a.png"), (png(1), None, "b.png")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_is_cut_short_is_one_line(tmp_path, kind):
    path = write_archive(tmp_path / kind, {f"cat/{n}.png": png(n, side=30) for n in range(20)})
    whole = path.read_bytes()
    for part in (0.05, 0.3, 0.5, 0.7):
        path.write_bytes(whole[: int(part * len(whole))])
        _refused(path, f"^--public: '{path}' is not readable as an archive")
    path.write_bytes(b"")
    _refused(path, "is not readable as an archive")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_archive_is_one_line(tmp_path, kind):
    for content in (png(0, side=40), b"PK\x03\x04", gzip.compress(b"no tar" * 200), bytes(3000)):
        (tmp_path / kind).write_bytes(content)
        _refused(tmp_path / kind, "is not readable as an archive|there are no images")


def test_a_damaged_header_inside_a_tar_is_not_taken_for_its_end(tmp_path):
    path = write_archive(tmp_path / "x.tar", {f"cat/{n}.png": png(n) for n in range(9)})
    content = bytearray(path.read_bytes())
    content[content.index(b"cat/4.png")] ^= 1
    path.write_bytes(content)
    _refused(path, "a header in it is damaged")


def test_a_tar_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "_FREE_STREAM_BYTES", 2**20)
    path = write_archive(tmp_path / "x.tar.gz", {"a.png": bytes(30 * 2**20), "b.png": png(0)})
    _refused(path, "unpacks to far more than it holds")


def test_a_tar_header_that_asks_for_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, 2**33
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    _refused(tmp_path / "x.tar", "unpacks to far more than it holds")


@pytest.mark.parametrize("kind", KINDS)
def test_more_members_than_anybody_has_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(members, "_MOST_MEMBERS", 3)
    _refused(write_archive(tmp_path / kind, CLASSES), "more than 3 members")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_without_images_is_refused(tmp_path, kind):
    _refused(write_archive(tmp_path / kind, {"a.txt": b"1"}), "there are no images in")


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_raises_anything_but_one_line(tmp_path, kind):
    path = write_archive(tmp_path / kind, CLASSES)
    whole, randomness, refused = path.read_bytes(), random.Random(0), []
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(randomness.choice([1, 3, 9])):
            content[randomness.randrange(len(content))] = randomness.randrange(256)
        path.write_bytes(content)
        try:
            load_sensitive(str(path), SHAPE, ("cat", "dog"))
        except UserError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in line for line in refused)


def _with_folders(path, contents, *folders):
    """An archive with entries for these folders, as most programs write them."""
    if path.suffix == ".zip":
        write_archive(path, contents)
        with zipfile.ZipFile(path, "a") as archive:
            for folder in folders:
                archive.writestr(f"{folder}/", b"")
        return path
    with tarfile.open(path, "w") as archive:
        for folder in folders:
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


SPLITS = {
    **{f"set/train/{name}/{number}.png": png(number) for number, name in enumerate("aab")},
    **{f"set/test/{name}/{number}.png": png(number) for number, name in enumerate("abc")},
}


@pytest.mark.parametrize("kind", ["x.zip", "x.tar"])
def test_an_archive_of_several_splits_is_refused_and_one_of_them_can_be_named(tmp_path, kind):
    path = _with_folders(tmp_path / kind, SPLITS, "set", "set/train", "set/test")
    _refused(path, rf"several splits \('test', 'train'\); name one, such as '.*/{kind}/set/train'")
    source = open_source("--public", path / "set/train")
    assert (source.count, source.names) == (3, ("a", "b"))
    assert [tuple(entry[1:3]) for entry in source.entries()] == [
        *((0, "a/0.png"), (0, "a/1.png"), (1, "b/2.png"))
    ]
    with_person = open_source("--sensitive", path / "set/test", PersonKey(level=1))
    assert [entry.person for entry in with_person.entries()] == ["a", "b", "c"]
    _refused(path / "set/tset", "no images in .*set/tset")


def test_a_folder_of_several_splits_is_refused_too(tmp_path):
    path = write_classes(tmp_path / "set", {"train/a": {"0.png": png(0)}, "test/a": {}})
    _refused(path, r"several splits \('test', 'train'\); name one, such as '.*/set/train'")
    assert open_source("--public", path / "train").count == 1


def test_no_image_can_have_a_set_refused_for_its_splits(tmp_path):
    """What decides are entries for folders; a public set's owner hears of the rest."""
    training = {name: content for name, content in SPLITS.items() if "train" in name}
    folders = ("set", "set/train")
    path = _with_folders(tmp_path / "x.zip", training, *folders)
    one_more = training | {"set/test/c/9.png": png(9)}
    other = _with_folders(tmp_path / "y.zip", one_more, *folders)
    names = ("a", "b", "c")
    fewer, more = (load_sensitive(str(place), SHAPE, names) for place in (path, other))
    assert torch.equal(more.images[: len(fewer)], fewer.images)
    assert len(more) == len(fewer) + 1
    heard = []
    _public(other, heard)
    assert any("all of 'test', 'train' is taken as one set" in line for line in heard)
