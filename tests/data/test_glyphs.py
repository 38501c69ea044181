import hashlib
import unicodedata
from pathlib import Path

import matplotlib as mpl
import torch
from fontTools.pens.recordingPen import RecordingPen
from fontTools.ttLib import TTFont

from privimage.data import glyphs as module
from privimage.data.glyphs import NAMES, glyphs


def test_no_name_is_a_digit():
    assert len(set(NAMES)) == len(NAMES) == 103
    assert not [name for name in NAMES if unicodedata.category(name).startswith("N")]
    assert not [name for name in NAMES if unicodedata.normalize("NFKD", name).isdigit()]


def _outline(font, glyph):
    pen = RecordingPen()
    font.getGlyphSet()[glyph].draw(pen)
    return repr(pen.value)


def test_no_font_draws_a_digit_or_another_character_for_a_name():
    used = {font.path for held in module._fonts_by_character().values() for font in held}
    fonts_with_digits = 0
    for path in sorted(used):
        font = TTFont(path)
        held = font.getBestCmap()
        digits = {_outline(font, held[ord(digit)]) for digit in "0123456789" if ord(digit) in held}
        drawn = [_outline(font, held[ord(name)]) for name in NAMES if ord(name) in held]
        assert not digits.intersection(drawn), path
        assert len(set(drawn)) == len(drawn), path
        fonts_with_digits += bool(digits)
    assert fonts_with_digits > 10


def test_there_are_160_images_of_each_of_103_classes():
    found = glyphs()
    assert found.images.shape == (103 * 160, 1, 8, 8)
    assert found.images.dtype == torch.uint8
    assert found.labels.bincount().tolist() == [160] * 103
    assert found.names == NAMES


def test_the_set_is_always_the_same(monkeypatch):
    expected = glyphs().images[: 3 * 160]  # made and kept before names are taken away
    monkeypatch.setattr(module, "NAMES", NAMES[:3])
    drawn_again = glyphs.__wrapped__()
    assert torch.equal(drawn_again.images, expected)


def test_what_the_set_is_made_of_has_not_changed():
    # Names, labels and fonts: pixels move by a step from one FreeType to the next.
    made_of = [
        (name, [Path(font.path).name for font in fonts])
        for name, fonts in module._fonts_by_character().items()
    ]
    text = repr((made_of, glyphs().labels.tolist(), tuple(glyphs().images.shape)))
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == "c7b44ab15d924a8d0294ee0cb47849fb6818b1612637295684255a1da0c85a86", (
        f"matplotlib {mpl.__version__} brings other fonts"
    )


def test_images_are_as_varied_and_as_black_as_scanned_digits():
    images = glyphs().images
    different = len({image.numpy().tobytes() for image in images})
    assert different > 0.95 * len(images)
    ink = images.flatten(1).bool().float().mean(1)
    assert 0.25 < ink.mean() < 0.75
    assert ink.min() > 0
    # Every image is drawn to the height or the width of its frame.
    rows, columns = images.amax(3)[:, 0] > 0, images.amax(2)[:, 0] > 0
    assert ((rows[:, 0] & rows[:, -1]) | (columns[:, 0] & columns[:, -1])).float().mean() > 0.99


def test_every_character_has_several_fonts():
    assert min(len(held) for held in module._fonts_by_character().values()) >= 3
