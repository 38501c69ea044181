"""Synthetic images in a picture, beside those from before DP fine-tuning."""

import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from privimage.data import ImageSet
from privimage.errors import UserError

_COLUMNS = 10
_ROWS = 20
_LONGEST_NAME = 24


def comparison_picture(path: Path, synthetic: ImageSet, before: ImageSet | None) -> None:
    """Draws synthetic images, one row a label, beside those from before DP fine-tuning.

    Raises:
        UserError: the file can't be written.
    """
    sets = [("synthetic", synthetic)]
    if before is not None:
        sets.insert(0, ("before DP fine-tuning", before))
    rows = [_tiled(images) for _, images in sets]
    height = 0.45 * rows[0].shape[0] / synthetic.images.shape[-1] + 0.8
    figure = Figure(figsize=(5.2 * len(sets), height), dpi=110, layout="constrained")
    for index, ((title, images), tiles) in enumerate(zip(sets, rows, strict=True)):
        axes = figure.add_subplot(1, len(sets), index + 1)
        axes.imshow(tiles, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(title)
        names = [_shortened(name) for name in images.names[:_ROWS]]
        side = images.images.shape[-1] + 1
        places = [side * row + side / 2 for row in range(len(names))]
        # A label may hold a dollar sign, and means no formula by it.
        axes.set_yticks(places, names, parse_math=False)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(path)
    except OSError as error:
        raise UserError(f"{path}: can't write the picture ({error.strerror})") from error


def _shortened(name: str) -> str:
    name = name.encode(errors="replace").decode()  # A folder's name need not be UTF-8.
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _tiled(images: ImageSet) -> np.ndarray:
    """The first images of each label in a grid, [height, width] or [height, width, 3]."""
    labels = range(min(max(len(images.names), 1), _ROWS))
    channels, side = images.images.shape[1], images.images.shape[-1] + 1
    rows = len(labels) if images.names else _COLUMNS
    tiles = torch.full((channels, rows * side, _COLUMNS * side), 255, dtype=torch.uint8)
    for row in range(rows):
        if images.names:
            chosen = images.images[torch.nonzero(images.labels == row).flatten()[:_COLUMNS]]
        else:
            chosen = images.images[row * _COLUMNS : (row + 1) * _COLUMNS]
        for column, image in enumerate(chosen):
            top, left = row * side, column * side
            tiles[:, top : top + side - 1, left : left + side - 1] = image
    return (tiles[0] if channels == 1 else tiles.permute(1, 2, 0)).numpy()
