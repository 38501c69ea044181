"""scikit-learn's handwritten digits: 1,437 to train on, 360 to test on, 8×8 pixels, grey."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from privimage.data.images import ImageSet

LARGEST_VALUE = 16
_TEST_IMAGES = 360
_SPLIT_SEED = 0


def train() -> ImageSet:
    """The 1,437 digits that the preset treats as sensitive."""
    return _split()[0]


def test() -> ImageSet:
    """The 360 digits that the preset declares public; as many of each class as in the whole."""
    return _split()[1]


def from_counts(counts: np.ndarray) -> torch.Tensor:
    """Ink counts 0 … 16, [images, 8, 8] → uint8 images [images, 1, 8, 8]."""
    pixels = np.round(counts * (255 / LARGEST_VALUE)).astype(np.uint8)
    return torch.from_numpy(pixels)[:, None]


def _split() -> tuple[ImageSet, ImageSet]:
    digits = load_digits()
    indices = np.arange(len(digits.target))
    parts = train_test_split(
        indices, test_size=_TEST_IMAGES, stratify=digits.target, random_state=_SPLIT_SEED
    )
    names = tuple(str(digit) for digit in range(10))
    first, second = (
        ImageSet(from_counts(digits.images[part]), torch.from_numpy(digits.target[part]), names)
        for part in parts
    )
    return first, second
