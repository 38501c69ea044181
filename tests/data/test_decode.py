import io
import logging
import random
import struct
import sys
import tempfile
import threading
import warnings
import zlib

import numpy as np
import pytest
from pictures import encoded, pixels, png
from PIL import Image, ImageOps

from privimage.data import decode as decode_module
from privimage.data.decode import decode_all
from privimage.data.images import ImageShape
from privimage.errors import UserError

RGB, GREY = ImageShape(8, 3), ImageShape(8, 1)


def decode(content, shape=RGB):
    return decode_module.decode(content, shape)


def _channels_first(values):
    return values.transpose(2, 0, 1)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_an_image_of_the_declared_form_keeps_every_bit(form):
    values = pixels()
    assert np.array_equal(decode(encoded(values, form)), _channels_first(values))
    values = pixels(channels=1)
    assert np.array_equal(decode(encoded(values, form), GREY), values[None])


@pytest.mark.parametrize("form", ["JPEG", "GIF", "WEBP"])
def test_a_format_that_loses_something_comes_close(form):
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, axis=1)
    found = decode(encoded(ramp, form), ImageShape(64, 1))
    assert np.abs(found[0].astype(int) - ramp).max() <= 8
    assert np.abs(found[0].astype(int) - ramp.T).max() > 100


def test_grey_becomes_rgb_and_rgb_becomes_grey():
    values = pixels(channels=1)
    assert np.array_equal(decode(encoded(values)), np.stack([values] * 3))
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    # ITU-R BT.601: 0.299 of full red.
    assert np.array_equal(decode(encoded(red), GREY), np.full((1, 8, 8), 76))


def test_transparency_is_put_on_black():
    values = pixels(channels=4)
    values[..., 3] = 255
    values[:4, :, 3] = 0
    found = decode(encoded(values))
    assert not found[:, :4].any()
    assert np.array_equal(found[:, 4:], _channels_first(values[4:, :, :3]))
    half = Image.merge("LA", [Image.new("L", (8, 8), 200), Image.new("L", (8, 8), 128)])
    assert np.abs(decode(encoded(half), GREY).astype(int) - 100).max() <= 1


def test_a_palette_means_its_colours():
    values = np.kron(pixels(2, 2), np.ones((4, 4, 1), dtype=np.uint8))
    image = Image.fromarray(values).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert np.array_equal(decode(encoded(image)), _channels_first(values))
    shown = np.asarray(image) != image.getpixel((0, 0))
    seen = decode(encoded(image, transparency=image.getpixel((0, 0))))
    assert np.array_equal(seen, _channels_first(values) * shown)


def test_sixteen_bits_are_scaled_and_not_cut_off():
    values = pixels(channels=1, dtype=np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(values, form), GREY), expected[None])
    assert np.array_equal(decode(encoded(values)), np.stack([expected] * 3))


def test_black_and_white_is_zero_and_255():
    values = (pixels(channels=1) > 127).astype(np.uint8) * 255
    found = decode(encoded(Image.fromarray(values).convert("1")), GREY)
    assert np.array_equal(found, values[None])


def test_another_size_is_fitted_and_cropped_to_the_middle():
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 200
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    for found in (decode(encoded(wide)), decode(encoded(tall)).transpose(0, 2, 1)):
        # Bicubic weights mix two pixels at the edge with the black beside them.
        assert np.abs(found.astype(int) - 200).max() <= 15
        assert (found[:, :, 2:-2] == 200).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (9, 8), (13, 29), (1, 3000), (333, 3)])
@pytest.mark.parametrize("shape", [RGB, GREY, ImageShape(1, 3), ImageShape(33, 1)])
def test_odd_sizes_come_out_in_the_declared_form(size, shape):
    found = decode(encoded(np.full((*size, 3), 90, dtype=np.uint8)), shape)
    assert np.array_equal(found, np.full((shape.channels, shape.size, shape.size), 90))


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _quarters(mode="RGB"):
    """16×16 pixels, each quarter of another brightness."""
    values = np.kron(np.array([[0, 80], [160, 240]], dtype=np.uint8), np.ones((8, 8), np.uint8))
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_upright(form, orientation):
    content = encoded(_quarters(), form, exif=_exif(orientation))
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("L")
    found = decode(content, ImageShape(16, 1))[0]
    assert np.array_equal(found, np.asarray(expected))
    # Which quarter is bright: it is ours, and no two of the first four agree.
    bright = {
        1: (1, 1),
        2: (1, 0),
        3: (0, 0),
        4: (0, 1),
        5: (1, 1),
        6: (1, 0),
        7: (0, 0),
        8: (0, 1),
    }
    rows, columns = bright[orientation]
    assert found[8 * rows + 4, 8 * columns + 4] > 220


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_images_of_every_mode_stand_upright(mode):
    values = np.kron(np.array([[0, 0], [0, 255]], dtype=np.uint8), np.ones((8, 8), np.uint8))
    image = Image.fromarray(values)
    image = Image.fromarray(values.astype(np.uint16) * 257) if "16" in mode else image.convert(mode)
    found = decode(encoded(image, exif=_exif(6)), ImageShape(16, 1))[0]
    assert np.array_equal(found, np.rot90(values, -1))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0" + b"\xff" * 60,
        # The orientation as text.
        b"Exif\0\0MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0x0112, 2, 4, b"six", 0),
        _exif(0).tobytes(),
        _exif(99).tobytes(),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_that_says_nothing_sensible_changes_nothing(form, exif, capfd):
    found = decode_all([encoded(_quarters(), form, exif=exif)], 1, RGB)
    without = decode_all([encoded(_quarters(), form)], 1, RGB)
    assert np.array_equal(found[0], without[0])
    assert found[1].all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "tag",
    [
        struct.pack(">HHI4s", 0x011A, 2, 4, b"abc"),  # A number as text.
        struct.pack(">HHII", 0x0132, 2, 2**31, 9),  # A text far longer than the file.
    ],
)
def test_another_tag_that_is_malformed_leaves_an_image_upright(tag):
    turned = struct.pack(">HHIHH", 0x0112, 3, 1, 3, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + turned + tag + bytes(4)
    ((found,), _) = decode_all([encoded(_quarters(), exif=exif)], 1, ImageShape(16, 1))
    assert found[0, 4, 4] == 240


def test_only_the_first_frame_of_several_counts():
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(content, GREY), np.full((1, 8, 8), 10))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg></svg>", b"%PDF-1.7"],
)
def test_what_is_no_image_is_none(content):
    assert decode(content) is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "PPM"])
def test_a_truncated_file_is_none(form):
    content = encoded(pixels(40, 40), form)
    assert decode(content) is not None
    for length in (1, len(content) // 3, len(content) // 2):
        assert decode(content[:length]) is None


def _png_that_claims(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    lines = chunk(b"IDAT", zlib.compress(bytes(64 * (3 * 64 + 1))))
    return b"\x89PNG\r\n\x1a\n" + header + lines + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_193, 10_000, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_none_before_it_is_unpacked(side, monkeypatch):
    unpacked = []
    load = Image.Image.load
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda self: unpacked.append(self.size) or load(self)
    )
    assert decode(_png_that_claims(side, side)) is None
    assert unpacked == []
    decode(_png_that_claims(64, 64))
    assert unpacked


def _damaged(content, randomness):
    changed = bytearray(content)
    for _ in range(randomness.choice([1, 2, 8])):
        # Headers are where decoders trip, so half of the bytes are changed there.
        end = len(changed) if randomness.random() < 0.5 else min(len(changed), 200)
        changed[randomness.randrange(end)] = randomness.randrange(256)
    cut = randomness.random() < 0.2
    return bytes(changed[: randomness.randrange(len(changed))] if cut else changed)


def _files_of_every_kind():
    values = pixels(23, 31)
    image = Image.fromarray(values)
    compressions = ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"]
    return [
        *(encoded(values, form) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")),
        *(encoded(values, "TIFF", compression=name) for name in compressions),
        *(encoded(image.convert("P"), form) for form in ("PNG", "GIF")),
        encoded(image.convert("1"), "TIFF", compression="group4"),
        encoded(pixels(23, 31, 1, dtype=np.uint16)),
    ]


def test_no_damage_raises_warns_logs_or_prints(capfd, caplog):
    randomness = random.Random(0)
    contents = [
        _damaged(content, randomness) for content in _files_of_every_kind() for _ in range(120)
    ]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found, is_good = decode_all(contents, len(contents), RGB)
    assert heard == []
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert found.shape == (len(contents), 3, 8, 8)
    assert 0.2 * len(found) < (~is_good).sum() < len(found)
    assert (found[~is_good] == 128).all()


def test_what_was_silenced_is_heard_again_afterwards(capfd, caplog):
    decode_all([b"", png(0)], 2, RGB)
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)
    logging.getLogger("PIL").warning("still logged")
    assert caplog.messages == ["still logged"]
    sys.stderr.write("still printed")
    sys.stderr.flush()
    assert "still printed" in capfd.readouterr().err


def test_an_image_depends_on_no_other():
    contents = [png(seed, side=side) for seed, side in enumerate((8, 9, 20, 8))]
    contents += [b"", b"junk", encoded(pixels(channels=4, seed=9))]
    alone = [decode(content) for content in contents]
    order = [3, 6, 0, 4, 1, 5, 2]
    together, is_good = decode_all([contents[index] for index in order], 7, RGB)
    for index, found, good in zip(order, together, is_good, strict=True):
        assert good == (alone[index] is not None)
        assert np.array_equal(found, alone[index] if good else np.full((3, 8, 8), 128))


def test_pixels_go_through_the_same_rule_as_files():
    for values in (pixels(), pixels(13, 29), pixels(channels=1), pixels(9, 9, 4)):
        for shape in (RGB, GREY, ImageShape(5, 3)):
            assert np.array_equal(decode(values, shape), decode(encoded(values), shape))
    values = pixels(channels=1)
    assert np.array_equal(decode(values[..., None], GREY), values[None])
    assert decode(np.zeros((8, 8, 7), dtype=np.uint8), RGB) is None


def test_a_large_set_shows_how_far_it_is_and_a_small_one_does_not(monkeypatch):
    monkeypatch.setattr(decode_module, "_PIECE", 2)
    monkeypatch.setattr(decode_module, "_LEAST_WITH_PROGRESS", 5)
    seen = []

    def steps(label, total):
        for step in range(total):
            seen.append((label, step, total))
            yield step

    decode_all([png(0)] * 4, 4, RGB, steps)
    assert seen == []
    decode_all([png(0)] * 5, 5, RGB, steps)
    assert seen == [("reading images", step, 3) for step in range(3)]


def test_files_are_read_as_they_are_needed(monkeypatch):
    monkeypatch.setattr(decode_module, "_PIECE", 2)
    monkeypatch.setattr("privimage.machine.cores", lambda: 1)
    done = threading.Event()
    alive = []
    decode_one = decode_module.decode

    def slow(content, shape):
        done.wait(5)
        return decode_one(content, shape)

    def contents():
        for number in range(40):
            alive.append(number)
            if number == 12:
                done.set()
            if not done.is_set():
                assert number <= 8, "the whole set was read before any of it was decoded"
            yield png(0)

    monkeypatch.setattr(decode_module, "decode", slow)
    threading.Timer(0.5, done.set).start()
    _, is_good = decode_all(contents(), 40, RGB)
    assert is_good.all()
    assert len(alive) == 40


def test_a_large_set_lies_in_a_file_that_leaves_nothing_behind(monkeypatch, tmp_path):
    contents = [png(value) for value in range(6)]
    expected, _ = decode_all(contents, 6, RGB)
    monkeypatch.setattr(decode_module, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    images, _ = decode_all(contents, 6, RGB)
    assert isinstance(images, np.memmap)
    assert (images == expected).all()
    assert not list(tmp_path.iterdir())


def test_more_images_than_the_disk_holds_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"set TMPDIR .*\([0-9]+ images, [0-9,]+ GiB\)") as caught:
        decode_all([], 2**50, RGB)
    assert "\n" not in str(caught.value)
