"""Draws emoji as a public image set for pictures of things: `python emoji.py FONT OUT.npz`.

The font is one of colour bitmaps: Noto Color Emoji (Debian: fonts-noto-color-emoji). Faces and
people are left out; each sign is drawn a little differently each time, grey on black.
"""

import sys
import unicodedata

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

FONT_PIXELS, CANVAS, SIDE, IMAGES_PER_CLASS = 109, 136, 28, 60
CODES = range(0x1F300, 0x1FB00)
LEFT_OUT = ("face", "person", "man", "hand", "hair", "heart", "square", "circle", "symbol", "arrow")


def pictures(path: str) -> dict[str, Image.Image]:
    """Each sign that the font draws, by its Unicode name, cut to its ink."""
    held, font = TTFont(path).getBestCmap(), ImageFont.truetype(path, FONT_PIXELS)
    found = {}
    for code in CODES:
        name = unicodedata.name(chr(code), "").lower()
        if code not in held or not name or any(word in name for word in LEFT_OUT):
            continue
        canvas = Image.new("RGBA", (CANVAS, CANVAS))
        ImageDraw.Draw(canvas).text((0, 0), chr(code), font=font, embedded_color=True)
        if box := canvas.getchannel("A").getbbox():
            found[name] = canvas.crop(box)
    return found


def varied(picture: Image.Image, random: np.random.Generator) -> np.ndarray:
    """Turned, stretched, mirrored, lighter or darker, fitted to the frame: uint8 [28, 28]."""
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(random.normal(0, 8), Image.Resampling.BILINEAR, expand=True)
    stretch = np.exp(random.normal(0, 0.15))
    width, height = picture.width * stretch, picture.height / stretch
    scale = SIDE * random.uniform(0.8, 1.0) / max(width, height)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    small = picture.resize(size, Image.Resampling.BOX)
    frame = Image.new("RGBA", (SIDE, SIDE), "black")
    frame.alpha_composite(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    grey = np.asarray(frame.convert("L"), dtype=np.float64) / 255
    return (255 * grey ** np.exp(random.normal(0, 0.5))).astype(np.uint8)


def main(font: str, out: str) -> int:
    """Writes `images` [n, 28, 28], `labels` and `names`; returns the number of classes."""
    signs, random = pictures(font), np.random.default_rng(0)
    images = [varied(sign, random) for sign in signs.values() for _ in range(IMAGES_PER_CLASS)]
    labels = np.arange(len(signs)).repeat(IMAGES_PER_CLASS)
    np.savez_compressed(out, images=np.stack(images), labels=labels, names=np.array([*signs]))
    return len(signs)


if __name__ == "__main__":
    print(main(*sys.argv[1:3]), "classes")
