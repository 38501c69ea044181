"""Letters and signs, no digit among them, drawn from matplotlib's fonts as the digits were scanned.

The digits set was made by summing ink over 4×4 blocks of 32×32 bitmaps; so are these.
"""

import functools
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from privimage.data.digits import from_counts
from privimage.data.images import ImageSet

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SIGNS = "&?!{}[]()<>/|+=*#%$@~"
GREEK = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρστφχψως"
NAMES = tuple(LATIN + SIGNS + GREEK)

_IMAGES_PER_CLASS = 160
_SEED = 0
_FONT_PIXELS = 48
_CANVAS = 112
_FRAME = 32
_BLOCK = 4
_THRESHOLD = 127
# Fonts of oversized brackets, of signs only, and of boxes that stand for any character.
_LEFT_OUT = (
    "DejaVuSansDisplay",
    "DejaVuSerifDisplay",
    "STIXSiz",
    "STIXNonUni",
    "cmex",
    "cmsy",
    "LastResort",
)
# Computer Modern: letters are where Unicode has them, signs and Greek are not.
_LETTERS_ONLY = "cm"


@functools.cache
def glyphs() -> ImageSet:
    """103 classes of 160 images, 8×8 pixels, grey; always the same."""
    random = np.random.default_rng(_SEED)
    fonts = _fonts_by_character()
    counts = [
        _drawn(name, fonts[name][random.integers(len(fonts[name]))], random)
        for name in NAMES
        for _ in range(_IMAGES_PER_CLASS)
    ]
    labels = torch.arange(len(NAMES)).repeat_interleave(_IMAGES_PER_CLASS)
    return ImageSet(from_counts(np.stack(counts)), labels, NAMES)


def _fonts_by_character() -> dict[str, list[ImageFont.FreeTypeFont]]:
    """The fonts that hold each character, by their own tables."""
    fonts: dict[str, list[ImageFont.FreeTypeFont]] = {name: [] for name in NAMES}
    for path in sorted(Path(mpl.get_data_path(), "fonts/ttf").glob("*.ttf")):
        if path.name.startswith(_LEFT_OUT):
            continue
        held = TTFont(path).getBestCmap() or {}
        font = ImageFont.truetype(path, _FONT_PIXELS)
        letters_only = path.name.startswith(_LETTERS_ONLY)
        for name in NAMES:
            if ord(name) in held and (name in LATIN or not letters_only):
                fonts[name].append(font)
    return fonts


def _drawn(name: str, font: ImageFont.FreeTypeFont, random: np.random.Generator) -> np.ndarray:
    """One character, drawn a little differently each time: ink counts 0 … 16, [8, 8]."""
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    middle = _CANVAS / 2
    stroke = int(random.integers(0, 3))
    pen = ImageDraw.Draw(canvas)
    pen.text((middle, middle), name, 255, font, anchor="mm", stroke_width=stroke)
    angle = math.radians(random.normal(0, 9))
    shear, width = random.normal(0, 0.18), math.exp(random.normal(0, 0.15))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # Pillow asks where each new pixel comes from, so this is the way back.
    back = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([1 / width, 1])
    return _block_counts(_bent(canvas, back))


def _bent(canvas: Image.Image, back: np.ndarray) -> Image.Image:
    """The ink of `canvas` after the inverse of `back`, about the middle."""
    left, top, right, bottom = canvas.getbbox() or (0, 0, 1, 1)
    corners = np.array([[left, left, right, right], [top, bottom, top, bottom]]) - _CANVAS / 2
    moved = np.linalg.solve(back, corners) + _CANVAS / 2
    # Only the part that can hold ink is computed: a quarter of the canvas.
    start = np.floor(moved.min(axis=1)).astype(int) - 1
    size = np.ceil(moved.max(axis=1)).astype(int) + 1 - start
    shift = _CANVAS / 2 + back @ (start - _CANVAS / 2)
    matrix = (*back[0], shift[0], *back[1], shift[1])
    bent = canvas.transform(tuple(size), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    ink = np.asarray(bent) > _THRESHOLD
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return bent.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def _block_counts(image: Image.Image) -> np.ndarray:
    """Makes the ink as high as the frame and counts it in blocks of 4×4: [8, 8].

    Ink that would then be wider than the frame is squeezed into it.
    """
    size = (max(1, min(_FRAME, round(image.width * _FRAME / image.height))), _FRAME)
    fitted = np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > _THRESHOLD
    frame = np.zeros((_FRAME, _FRAME), dtype=bool)
    left = (_FRAME - fitted.shape[1]) // 2
    frame[:, left : left + fitted.shape[1]] = fitted
    blocks = frame.reshape(_FRAME // _BLOCK, _BLOCK, _FRAME // _BLOCK, _BLOCK)
    counts: np.ndarray = blocks.sum(axis=(1, 3))
    return counts
