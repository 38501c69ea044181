"""Brings image files to the declared size and channels, by a rule that no content can break."""

import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from privimage.data.images import ImageShape

GREY = 128
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MOST_PIXELS = 64 * 2**20


def decode_all(contents: Iterable[bytes], shape: ImageShape) -> list[np.ndarray | None]:
    """Every image of `contents` on all cores: uint8 [channels, size, size], or None if damaged.

    Resized so that its shorter side fits (antialiased), cropped to the middle, converted to the
    declared channels; transparency is put on black. Each depends on its own content and on `shape`
    alone, and nothing that a decoder has to say about it reaches anybody.
    """
    with _silence(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda content: _decode(content, shape), contents))


def grey(shape: ImageShape) -> np.ndarray:
    """What stands for an image that can't be decoded: uint8 [channels, size, size]."""
    return np.full((shape.channels, shape.size, shape.size), GREY, dtype=np.uint8)


def _decode(content: bytes, shape: ImageShape) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            return _fitted(image, shape)
    except Exception:
        # Pillow's decoders raise nearly anything for damaged files; for a sensitive set, no file
        # may make itself known by stopping the run.
        return None


@contextmanager
def _silence() -> Iterator[None]:
    """Drops what decoders say of damaged files: a line about one would tell that it is there.

    Pillow warns and logs; libtiff writes to the process's standard error from C.
    """
    logging_was = logging.root.manager.disable
    stderr = os.dup(2)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            logging.disable()
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logging.disable(logging_was)


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
