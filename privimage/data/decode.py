"""Brings image files to the declared size and channels, by a rule that no content can break."""

import io
import logging
import math
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from privimage import machine
from privimage.data.images import ImageShape
from privimage.data.source import MOST_PIXELS, Content, UnreadableSet

GREY = 128
# What brings an image upright, by the value of EXIF's tag for its orientation.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_PIECE = 256
# A larger set lies on disk, and the system keeps as much of it in memory as it has room for.
_MOST_IN_MEMORY = 2**30
_LEAST_WITH_PROGRESS = 20_000
_ZEROS = 2**24

Steps = Callable[[str, int], Iterable[int]]
"""Counts the steps of a loop while it shows them: (what is done, number of steps)."""


def decode_all(
    contents: Iterable[Content], count: int, shape: ImageShape, steps: Steps | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images of `contents`, decoded on all cores, each once.

    Turned upright as their EXIF says, resized so that the shorter side fits (antialiased), cropped
    to the middle, converted to the declared channels; transparency is put on black. Each depends on
    its own content and on `shape` alone, and nothing that a decoder has to say about it reaches
    anybody.

    Args:
        contents: image files, or pixels as they are.
        count: how many they are.
        shape: the declared form.
        steps: shows how far a large set is.

    Returns:
        The images, uint8 [count, channels, size, size], and which of them could be decoded, bool
        [count]; the others are grey. Above 1 GiB the images lie in a temporary file without name,
        mapped into memory.

    Raises:
        UnreadableSet: the images don't fit there.
    """
    images = _room(count, shape)
    is_good = np.zeros(count, dtype=bool)
    pieces = range(-(-count // _PIECE))
    counted: Iterable[int] = pieces
    if steps is not None and count >= _LEAST_WITH_PROGRESS:
        counted = steps("reading images", len(pieces))
    waiting: deque[Future[None]] = deque()
    workers, contents = machine.cores(), iter(contents)
    with _silence(), ThreadPoolExecutor(workers) as pool:
        for piece in counted:
            rows = slice(piece * _PIECE, min((piece + 1) * _PIECE, count))
            part = list(islice(contents, _PIECE))
            waiting.append(pool.submit(_decode_into, images[rows], is_good[rows], part, shape))
            # Files that wait take up memory too.
            if len(waiting) > 2 * workers:
                waiting.popleft().result()
        for future in waiting:
            future.result()
    return images, is_good


def _room(count: int, shape: ImageShape) -> np.ndarray:
    """Uninitialised images in memory; large sets in a file without name that is mapped into it."""
    dimensions = (count, shape.channels, shape.size, shape.size)
    size = math.prod(dimensions)
    if size <= _MOST_IN_MEMORY:
        return np.empty(dimensions, dtype=np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            _reserve(file, size)
            return np.memmap(file, dtype=np.uint8, mode="r+", shape=dimensions)
    except (OSError, OverflowError, ValueError) as error:
        raise UnreadableSet(
            f"images of {shape.size}×{shape.size} pixels need more room in "
            f"'{tempfile.gettempdir()}' than there is; set TMPDIR to a folder with more room, "
            "take fewer images or a smaller --image-size",
            f"{count} images, {size / 2**30:,.0f} GiB",
        ) from error


def _reserve(file: IO[bytes], size: int) -> None:
    """Gives an empty file so many bytes of the disk.

    A write to a mapped page for which the disk had no room would kill us.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, _ZEROS):  # macOS
        file.write(bytes(min(_ZEROS, size - start)))
    file.flush()


def _decode_into(
    images: np.ndarray, is_good: np.ndarray, contents: list[Content], shape: ImageShape
) -> None:
    for row, content in enumerate(contents):
        image = decode(content, shape)
        is_good[row] = image is not None
        images[row] = GREY if image is None else image


def decode(content: Content, shape: ImageShape) -> np.ndarray | None:
    """One image: uint8 [channels, size, size], or None if it is damaged."""
    try:
        if isinstance(content, np.ndarray):
            pixels = content[..., 0] if content.shape[2:] == (1,) else content
            return _fitted(Image.fromarray(pixels), shape)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            # Before EXIF is asked for: a file that is cut short must fail here, not be read on.
            image.load()
            return _fitted(_upright(image), shape)
    except Exception:
        # Pillow's decoders raise nearly anything for damaged files; for a sensitive set, no file
        # may make itself known by stopping the run.
        return None


def _upright(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it; as it is stored where its EXIF can't be read.

    `ImageOps.exif_transpose` also writes the other tags anew, and fails where one is malformed.
    """
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        return image if turn is None else image.transpose(turn)
    except Exception:
        # As for decoding: anything may be raised, and the pixels are there already.
        return image


class Look(NamedTuple):
    """What the header of an image says; `form` is the file's format, "pixels" if it is no file."""

    width: int
    height: int
    mode: str
    form: str


def look(content: Content) -> Look:
    """The header of an image that could be decoded."""
    if isinstance(content, np.ndarray):
        channels = content.shape[2] if content.ndim == 3 else 1
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        return Look(content.shape[1], content.shape[0], mode, "pixels")
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return Look(image.width, image.height, image.mode, image.format or "")


def is_nearly_black(content: Content) -> bool:
    """Whether a 16-bit image that could be decoded uses less than a quarter of its range.

    Scans of 12 bits in files of 16 do, and are nearly black.
    """
    if isinstance(content, np.ndarray):
        return False
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        return image.mode.startswith("I") and int(np.asarray(image).max()) < 2**14


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
