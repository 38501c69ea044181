import numpy as np
import pytest
import torch
from PIL import Image

from privimage.data import ImageSet
from privimage.errors import UserError
from privimage.evaluate import comparison_picture
from privimage.evaluate.picture import _tiled


def _images(names, per_label=12, channels=1, side=8):
    count = per_label * max(len(names), 1)
    random = torch.Generator().manual_seed(0)
    shape = (count, channels, side, side)
    images = torch.randint(0, 255, shape, generator=random, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % max(len(names), 1), tuple(names))


def _names(count):
    return tuple(f"label {number}" for number in range(count))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [0, 1, 2, 10, 20, 30])
@pytest.mark.parametrize("with_before", [False, True])
def test_the_picture_has_a_row_a_label_and_a_column_a_set(tmp_path, channels, labels, with_before):
    images = _images(_names(labels), per_label=3 if labels else 100, channels=channels)
    comparison_picture(tmp_path / "x.png", images, images if with_before else None)
    with Image.open(tmp_path / "x.png") as picture:
        width, height = picture.size
        drawn = np.asarray(picture.convert("L"))
    rows = min(labels, 20) if labels else 10
    assert width == 572 * (2 if with_before else 1)
    assert height == pytest.approx(110 * (0.45 * (8 + 1) * rows / 8 + 0.8), abs=1)
    assert 0.05 < (drawn < 250).mean() < 0.9


@pytest.mark.parametrize(
    "name",
    [
        *("$x^2$", "US$ or AU$", r"$\frac$", "猫", "a" * 300, "", "_private", "two\nlines"),
        "caf\udce9",  # A folder whose name is no UTF-8.
    ],
    ids=ascii,
)
def test_a_label_may_be_called_anything(tmp_path, name):
    comparison_picture(tmp_path / "x.png", _images([name, "dog"]), None)
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_each_row_shows_the_first_images_of_its_label():
    images = _images(_names(3), per_label=12)
    tiles = _tiled(images)
    assert tiles.shape == (3 * 9, 10 * 9)
    for row in range(3):
        chosen = images.images[images.labels == row]
        for column in range(10):
            tile = tiles[row * 9 : row * 9 + 8, column * 9 : column * 9 + 8]
            assert np.array_equal(tile, chosen[column, 0])
    assert (tiles[8::9] == 255).all()
    assert (tiles[:, 8::9] == 255).all()


def test_colours_come_last_and_missing_images_stay_white():
    images = _images(_names(2), per_label=4, channels=3)
    tiles = _tiled(images)
    assert tiles.shape == (18, 90, 3)
    assert np.array_equal(tiles[:8, :8], images.images[0].permute(1, 2, 0))
    assert (tiles[:, 4 * 9 :] == 255).all()


def test_images_without_labels_fill_the_rows_in_turn():
    images = _images((), per_label=34)
    tiles = _tiled(images)
    assert tiles.shape == (90, 90)
    assert np.array_equal(tiles[27:35, 27:35], images.images[33, 0])
    assert (tiles[36:] == 255).all()


def test_a_place_that_can_not_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"x\.png: can't write the picture"):
        comparison_picture(tmp_path / "missing/x.png", _images(("a",)), None)
