import zipfile

import pytest

from privimage.release.writers import folder_names, write_folder, write_zip


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
