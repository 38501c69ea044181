"""`privimage data inspect`: what it finds in a set with something wrong in every way."""

import numpy as np
import pytest
from pictures import encoded, pixels, png, write_classes
from PIL import Image
from typer.testing import CliRunner

from privimage import inspection
from privimage.cli import app
from privimage.data import ImageShape
from privimage.errors import UserError


@pytest.fixture
def odd_set(tmp_path):
    whole = encoded(pixels(30, 40), "JPEG")
    files = {
        "cat": {"a.png": png(0), "b.png": encoded(pixels(20, 10, 1)), "c.png": whole},
        "dog": {"cut.jpg": whole[: len(whole) // 2], "text.png": b"no image", "dot.png": png(1)},
        "emu": {},
    }
    files["dog"]["dot.png"] = encoded(pixels(1, 1))
    return write_classes(tmp_path / "set", files)


def test_everything_odd_is_named(odd_set):
    found = inspection.inspect(odd_set, ImageShape(8, 3))
    assert dict(found.count_of) == {"cat": 3, "dog": 3, "emu": 0}
    assert found.damaged == ["dog/cut.jpg", "dog/text.png"]
    assert found.odd == ["cat/c.png: a JPEG file", "dog/dot.png: 1×1 pixels"]
    assert sorted(zip(found.widths, found.heights, strict=True)) == [
        (1, 1),
        (8, 8),
        (10, 20),
        (40, 30),
    ]
    assert found.modes == {"RGB": 3, "L": 1}


def test_the_command_says_it_and_ends_well(odd_set, tmp_path):
    grid = tmp_path / "grid.png"
    result = CliRunner().invoke(
        app, ["data", "inspect", str(odd_set), "--grid", str(grid), "--image-size", "8"]
    )
    assert result.exit_code == 0
    for line in (
        "format    folder of images",
        "images    6",
        "width     1 to 40 pixels, median 8",
        "colours   RGB 3, L 1",
        "  cat: 3",
        "classes without images: 1",
        "can't be decoded: 2",
        "  dog/text.png",
        "odd: 2",
    ):
        assert line in result.stdout.splitlines()
    with Image.open(grid) as image:
        found = np.asarray(image)
    assert found.shape == (2 * 8, 8 * 8, 3)
    assert np.array_equal(found[:8, :8], pixels(seed=0))
    assert not found[:8, 24:].any()


def test_the_help_says_that_it_is_for_public_images():
    result = CliRunner().invoke(app, ["data", "inspect", "--help"])
    assert "may be released" in " ".join(result.stdout.replace("│", " ").split())


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_and_strange_labels(tmp_path, channels):
    images = np.stack([pixels(9, 7, channels, seed) for seed in range(4)])
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 1, 2, -1], names=["cat", "dog"])
    found = inspection.inspect(tmp_path / "x.npz", ImageShape(8, channels))
    assert found.odd == [
        "row 2: label without name (2)",
        "row 3: label without name (-1)",
    ]
    assert found.modes == {"L" if channels == 1 else "RGB": 4}
    inspection.write_grid(tmp_path / "x.png", found)
    np.savez(tmp_path / "x.npz", images=images, labels=[10, 9, 2, 9])
    lines = list(inspection.report(inspection.inspect(tmp_path / "x.npz", ImageShape(8, 3))))
    assert lines[-4:] == ["labels    without names", "  2: 1", "  9: 2", "  10: 1"]
    np.savez(tmp_path / "x.npz", images=images)
    lines = list(inspection.report(inspection.inspect(tmp_path / "x.npz", ImageShape(8, 3))))
    assert lines == [
        "format    NumPy archive",
        "images    4",
        "width     7 to 7 pixels, median 7",
        "height    9 to 9 pixels, median 9",
        f"colours   {'L' if channels == 1 else 'RGB'} 4",
        "labels    none",
    ]


def test_scans_of_twelve_bits_and_files_of_other_kinds_are_named(tmp_path):
    deep = pixels(channels=1, dtype=np.uint16)
    scans = {
        "dark.png": encoded(deep // 16),
        "dark.tif": encoded(deep // 16, "TIFF"),
        "whole.png": encoded(deep),
        "black.png": encoded(pixels(channels=1) // 16),
        "phone.heic": b"heic",
        ".hidden": b"",
    }
    write_classes(tmp_path, {"cat": scans, "dog": {"raw.dcm": b"dicom"}})
    (tmp_path / "readme.txt").write_text("")
    lines = list(inspection.report(inspection.inspect(tmp_path, ImageShape(8, 1))))
    place = lines.index("16-bit, nearly black (scale them to the whole range): 2")
    assert lines[place + 1 : place + 3] == ["  cat/dark.png", "  cat/dark.tif"]
    place = lines.index("files of other kinds, not seen: 3")
    assert lines[place + 1 :] == ["  readme.txt", "  cat/phone.heic", "  dog/raw.dcm"]


def test_long_lists_are_cut(tmp_path):
    write_classes(tmp_path, {f"class{n:02}": {"a.png": b"no"} for n in range(30)})
    lines = list(inspection.report(inspection.inspect(tmp_path, ImageShape(8, 3))))
    assert lines.count("  … and 10 more") == 2
    assert "can't be decoded: 30" in lines


def test_a_missing_set_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UserError, match="data inspect: there is no file or folder"):
        inspection.inspect(tmp_path / "x", ImageShape(8, 3))


def test_persons_are_counted_as_a_run_counts_them(tmp_path):
    files = {
        "ann": {f"{number}.png": png(number) for number in range(3)},
        "bob": {"0.png": png(3)},
    }
    path = write_classes(tmp_path / "set", files)
    (path / "5.png").write_bytes(png(5))
    result = CliRunner().invoke(app, ["data", "inspect", str(path), "--person", "folder:1"])
    assert result.exit_code == 0, result.exception
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "persons 3" in lines
    assert "1 to 3 images each, median 1" in lines
    assert "images that name nobody: 1; each is a person of its own" in lines
    result = CliRunner().invoke(app, ["data", "inspect", str(path), "--person", "folder:4"])
    assert isinstance(result.exception, UserError)
