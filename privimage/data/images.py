"""What an image set is: uint8 images, a label and perhaps a person for each, names of labels."""

from dataclasses import dataclass

import torch

from privimage.acceleration import sent
from privimage.seeds import generator


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
        persons: int64 [examples], the number of each image's person, 0 … persons - 1, each with an
            image; None where every image stands for itself.
        damaged: of a test set, how many images beside these could not be decoded.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]
    persons: torch.Tensor | None = None
    damaged: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        """Declared facts only: a set may be sensitive, and its size with it."""
        return f"ImageSet({len(self.names)} labels, {tuple(self.images.shape[1:])})"

    @property
    def unit(self) -> str:
        """Whom the set counts by: "image" or "person"."""
        return "image" if self.persons is None else "person"

    @property
    def units(self) -> torch.Tensor:
        """The privacy unit of each image, int64 [examples]: its person, or else the image itself.

        Units are numbered 0 … units - 1, and each has an image.
        """
        return torch.arange(len(self)) if self.persons is None else self.persons

    def by_unit(self) -> tuple[torch.Tensor, ...]:
        """The indices of each privacy unit's images, int64 [images of the unit], ascending."""
        order, counts = self.units.argsort(stable=True), self.units.bincount()
        return tuple(torch.split(order, counts.tolist()))


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape → float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def subsample(images: ImageSet, most: int, seed: int, purpose: str) -> ImageSet:
    """`most` of the images, drawn by chance for this purpose and in their order; or all."""
    if len(images) <= most:
        return images
    order = torch.randperm(len(images), generator=generator(seed, purpose))
    rows = order[:most].sort().values
    return ImageSet(images.images[rows], images.labels[rows], images.names)


def randomly_flipped(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Each of [rows, channels, height, width] flipped left to right with probability 1/2."""
    mirrored = sent(torch.rand(len(images), generator=random) < 0.5, images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Floats of any shape, meant for [-1, 1] → uint8, clamped and rounded."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
