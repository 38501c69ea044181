"""Synthesises labelled images from a denoiser, piece by piece, so that it can be resumed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from privimage import durable
from privimage.data import to_bytes
from privimage.diffusion.samplers import Denoise, SamplerSettings, sample
from privimage.progress import Reporter, Stopped
from privimage.seeds import generator
from privimage.threads import Workers


@dataclass(frozen=True)
class Order:
    """Which images to make: one for each of `labels` (int64 [images]), of this shape.

    `shape` is (channels, height, width); `no_label` is the label that stands for none; `piece` is
    the number of images made at once, on `device`.
    """

    labels: torch.Tensor
    shape: tuple[int, int, int]
    no_label: int
    piece: int
    seed: int
    device: torch.device


def uniform_labels(classes: int, images_per_label: int) -> torch.Tensor:
    """`images_per_label` of each label in turn; all 0 (no label) for unlabelled data."""
    return torch.arange(max(classes, 1)).repeat(images_per_label)


def make_images(
    denoise: Denoise,
    order: Order,
    settings: SamplerSettings,
    labels: torch.Tensor,
    random: torch.Generator,
) -> torch.Tensor:
    """A piece of `order`, uint8 [labels, channels, height, width] on the CPU; all from `random`."""
    size = (len(labels), *order.shape)
    latents = torch.randn(size, generator=random, device=random.device).to(order.device)
    images = sample(denoise, latents, labels.to(order.device), settings, random, order.no_label)
    return to_bytes(images).cpu()


def synthesise(
    denoise: Denoise,
    order: Order,
    settings: SamplerSettings,
    folder: Path,
    workers: Workers,
    reporter: Reporter,
    label: str = "synthesis",
) -> Iterator[torch.Tensor]:
    """Makes the images of `order`, all before it returns; finished pieces are not made again.

    Each piece has its own generator, so that an image depends on the seed and its place alone,
    not on the number of threads or on where the work was interrupted.

    Returns:
        The images in the order of the labels, uint8 [at most piece, channels, height, width] at a
        time, each piece read from the disk when it is asked for: all of them may be more than fit
        in memory.

    Raises:
        Stopped: the reporter asked for it; finished pieces are kept.
    """
    durable.make_folder(folder)
    pieces = list(order.labels.split(order.piece))
    paths = [folder / f"piece-{index:06d}.safetensors" for index in range(len(pieces))]

    def make(index: int) -> None:
        random = generator(order.seed, "synthesis", index)
        images = make_images(denoise, order, settings, pieces[index], random)
        durable.write_tensors(paths[index], {"images": images})

    missing = [index for index, path in enumerate(paths) if not path.exists()]
    groups = [missing[i : i + workers.threads] for i in range(0, len(missing), workers.threads)]
    for number in reporter.steps(label, len(groups)):
        workers.map(make, groups[number])
        if reporter.must_stop and number + 1 < len(groups):
            raise Stopped(f"{label} stopped after {number + 1} of {len(groups)} rounds")
    return (durable.read_tensors(path)["images"] for path in paths)
