"""What an image set is: uint8 images, a label for each, and the names of the labels."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ImageShape:
    """The declared form of every image: `size` × `size` pixels, `channels` 1 (grey) or 3 (RGB)."""

    size: int
    channels: int


@dataclass(frozen=True, repr=False)
class ImageSet:
    """Images with labels.

    Attributes:
        images: uint8 [examples, channels, height, width].
        labels: int64 [examples] in 0 … len(names); the last value stands for "no label".
        names: of the labels; empty for an unlabelled set, whose labels are then all 0.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        """Declared facts only: a set may be sensitive, and its size with it."""
        return f"ImageSet({len(self.names)} labels, {tuple(self.images.shape[1:])})"


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape → float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Floats of any shape, meant for [-1, 1] → uint8, clamped and rounded."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
