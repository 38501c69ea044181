"""What the stages of a run share: recipe, folder, images, networks, terminal, cores."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from privimage import data, durable, evaluate
from privimage.data import ImageSet, ImageShape
from privimage.data.decode import Steps
from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.pretrain import Network
from privimage.diffusion.unet import UNet, UNetShape
from privimage.progress import Reporter
from privimage.recipe import Recipe
from privimage.run import results
from privimage.run.folder import RunFolder
from privimage.seeds import initialising
from privimage.synthesis.sample import Order
from privimage.threads import Workers


@dataclass
class Run:
    """What the stages share: the recipe, the folder, the images, the terminal, the cores."""

    recipe: Recipe
    folder: RunFolder
    reporter: Reporter
    workers: Workers
    device: torch.device
    max_memory: float | None = None

    @cached_property
    def shape(self) -> ImageShape:
        """Declared size and channels of every image."""
        return ImageShape(self.recipe.data.image_size, self.recipe.data.channels)

    @cached_property
    def public(self) -> ImageSet:
        """The public images."""
        reporter = self.reporter
        return data.load_public(self.recipe.data.public, self.shape, reporter.warn, reporter.steps)

    @property
    def public_names(self) -> tuple[str, ...]:
        """The public classes, as the classifier knows them; without it, as the set does."""
        is_known = self.folder.is_done("classifier")
        return results.public_classes(self.folder) if is_known else self.public.names

    @cached_property
    def sensitive(self) -> ImageSet:
        """The sensitive images.

        Seen by `query` and `finetune`, whose ε covers it; by the checks before a run, which keep
        what is public about the set; and by looks outside ε that the recipe asks for.
        """
        settings, person, steps = self.recipe.data, self.recipe.data.person_key, self.counted_steps
        return data.load_sensitive(
            settings.sensitive, self.shape, settings.classes or None, steps=steps, person=person
        )

    @property
    def counted_steps(self) -> Steps | None:
        """Shows how far a loop over all sensitive images is; None where that must not be shown.

        It tells their number, which is public only where images are counted and no other number was
        declared.
        """
        settings = self.recipe.data
        return None if settings.public_size or settings.person else self.reporter.steps

    @cached_property
    def test(self) -> ImageSet:
        """The images that their owner declared public."""
        test = data.load_test(self.recipe.data.test, self.shape, self.names, self.reporter.warn)
        evaluate.check_test_set(test, self.names)
        return test

    @cached_property
    def declared(self) -> dict[str, Any]:
        """What is public about the sensitive set: label names, number of images or persons."""
        return self.folder.declared()

    @property
    def names(self) -> tuple[str, ...]:
        """The sensitive labels; empty for unlabelled data."""
        return tuple(self.declared["names"])

    @property
    def public_size(self) -> int:
        """The number of sensitive images, or of persons, as a public number."""
        return int(self.declared["public_size"])

    @property
    def network_shape(self) -> UNetShape:
        """The UNet's shape: the recipe's network for the declared images and labels."""
        return self.recipe.network_shape(len(self.names))

    def order(self, labels: torch.Tensor, seed: int) -> Order:
        """An order of synthetic images with these labels, int64 [images]."""
        return Order(
            labels=labels,
            shape=(self.shape.channels, self.shape.size, self.shape.size),
            no_label=len(self.names),
            piece=self.recipe.synthesis.batch_size,
            seed=seed,
            device=self.device,
        )

    def network(self, weights: Path | None = None) -> Network:
        """The UNet on the run's device; from `weights`, or as the seed makes it."""
        with initialising(self.recipe.seed):
            build = CompactUNet if self.recipe.network.kind == "compact" else UNet
            network = build(self.network_shape)
        if weights is not None:
            durable.load_weights(network, weights)
        return network.to(self.device)
