"""Brings one image file to the declared size and channels, by a rule that no content can break."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps

from privimage.data.images import ImageShape

GREY = 128
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MOST_PIXELS = 64 * 2**20


def decode(content: bytes, shape: ImageShape) -> np.ndarray | None:
    """The image in `content`, or None if it can't be decoded.

    Resized so that its shorter side fits (antialiased), cropped to the middle, converted to the
    declared channels; transparency is put on black. Depends on nothing but its arguments.

    Returns:
        uint8 [channels, size, size].
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            return _fitted(image, shape)
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        OverflowError,
        EOFError,
        ZeroDivisionError,
        AttributeError,
        struct.error,
        MemoryError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):
        # Pillow's decoders raise nearly anything for damaged files; for a sensitive set, no file
        # may make itself known by stopping the run.
        return None


def grey(shape: ImageShape) -> np.ndarray:
    """What stands for an image that can't be decoded: uint8 [channels, size, size]."""
    return np.full((shape.channels, shape.size, shape.size), GREY, dtype=np.uint8)


def _fitted(image: Image.Image, shape: ImageShape) -> np.ndarray:
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip it to 255 instead of scaling.
        values = np.asarray(image, dtype=np.float64) / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    image = image.convert("L" if shape.channels == 1 else "RGB")
    if image.size != (shape.size, shape.size):
        size = (shape.size, shape.size)
        image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if shape.channels == 1 else pixels.transpose(2, 0, 1)
