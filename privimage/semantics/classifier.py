"""The semantic query function: a classifier of the public images, trained in the open."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from privimage.acceleration import MOST_PIXELS, memory_format, mixed_precision, sent
from privimage.data import ImageSet, randomly_flipped, to_unit_range
from privimage.data.decode import Steps
from privimage.errors import check_choice, check_count, check_positive
from privimage.loop import resumable_steps
from privimage.networks import NETWORKS, build_network
from privimage.progress import Reporter
from privimage.seeds import generator, initialising

_HELD_OUT = 0.05
_MOST_HELD_OUT = 10_000
_WARMUP = 0.05
PREDICT_ROWS = 250


@dataclass(frozen=True)
class ClassifierSettings:
    """How the classifier is trained: SGD with Nesterov momentum, cosine schedule, warm-up of 5 %.

    Attributes:
        network: cnn (three convolutions), resnet9, wrn40_4, or resnet50 (the paper's).
        steps: number of steps.
        batch_size: images a step.
        learning_rate: the highest one.
        weight_decay: of all weights.
        flip: mirror half of the images left to right (not for letters).
    """

    network: str = "cnn"
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    flip: bool = False

    def __post_init__(self) -> None:
        check_choice("classifier.network", self.network, NETWORKS)
        check_count("classifier.steps", self.steps)
        check_count("classifier.batch_size", self.batch_size)
        check_positive("classifier.learning_rate", self.learning_rate)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0 … steps - 1."""
        warmup = _WARMUP * self.steps
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        done = (step - warmup) / (self.steps - warmup)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


class ClassifierTraining:
    """One step after another; what a loop saves and restores."""

    def __init__(
        self,
        model: nn.Module,
        images: ImageSet,
        rows: torch.Tensor,
        settings: ClassifierSettings,
        seed: int,
    ) -> None:
        self._model = model
        self._images = images
        self._rows = rows  # of the images to learn from: a copy of them might not fit into memory
        self._settings = settings
        self._seed = seed
        self._device = next(model.parameters()).device
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=settings.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )

    def step(self, index: int) -> None:
        """Takes step `index`; its batch depends on the seed and the index alone.

        A batch that is too large for memory goes through in equal pieces, which batch normalisation
        sees one by one.
        """
        random = generator(self._seed, "classifier", index)
        size = self._settings.batch_size
        rows = self._rows[torch.randint(len(self._rows), (size,), generator=random)]
        images = sent(self._images.images[rows], self._device)
        if self._settings.flip:
            images = randomly_flipped(images, random)
        labels = sent(self._images.labels[rows], self._device)
        count = -(-images[:, 0].numel() // MOST_PIXELS)
        pieces = zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
        self._optimizer.zero_grad()
        for piece, wanted in pieces:
            with mixed_precision(self._device):
                found = self._model(memory_format(to_unit_range(piece)))
                loss = F.cross_entropy(found, wanted)
            (loss * (len(piece) / size)).backward()
        self._optimizer.param_groups[0]["lr"] = self._settings.learning_rate_at(index)
        self._optimizer.step()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Weights and momenta."""
        tensors = {f"model/{name}": value for name, value in self._model.state_dict().items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors[f"momentum/{index}"] = moments["momentum_buffer"]
        return tensors, {}

    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        model = {
            name.removeprefix("model/"): value
            for name, value in tensors.items()
            if name.startswith("model/")
        }
        self._model.load_state_dict(model)
        moments = {
            int(name.removeprefix("momentum/")): {"momentum_buffer": value}
            for name, value in tensors.items()
            if name.startswith("momentum/")
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})


def train_classifier(
    model: nn.Module,
    public: ImageSet,
    settings: ClassifierSettings,
    seed: int,
    folder: Path,
    reporter: Reporter,
) -> float:
    """Trains `model` in place on all but 5 %, at most 10,000, of the public images.

    Args:
        model: from `build`, on its device.
        public: labelled public images.
        settings: the recipe.
        seed: decides the held-out images and every batch.
        folder: for checkpoints.
        reporter: for progress; asks the loop to stop.

    Returns:
        The accuracy on the held-out public images, a fraction.

    Raises:
        Stopped: the reporter asked for it; the checkpoint is saved.
    """
    order = torch.randperm(len(public), generator=generator(seed, "held out"))
    count = min(int(_HELD_OUT * len(public)), _MOST_HELD_OUT)
    held_out, kept = order[:count], order[count:]
    training = ClassifierTraining(model, public, kept, settings, seed)
    model.train()
    for step in resumable_steps(training, settings.steps, folder, "classifier", reporter):
        training.step(step)
    model.eval()
    if not len(held_out):
        return 0.0
    found = predict(model, public.images[held_out]).argmax(dim=1)
    return float((found == public.labels[held_out]).float().mean())


def build(settings: ClassifierSettings, channels: int, classes: int, seed: int) -> nn.Module:
    """An untrained classifier of images with `channels` into `classes`."""
    with initialising(seed):
        return build_network(settings.network, channels, classes)


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, steps: Steps | None = None) -> torch.Tensor:
    """The logits of each image, which depend on no other image.

    Libraries may choose another algorithm for another batch size, and the last bits differ; so
    every batch has the same physical shape, the last one being padded.

    Formal guarantee: an image's logits are the same bits in every place, whoever else is there
    (tests/semantics/test_query.py::test_an_image_s_logits_are_the_same_bits_whoever_else_is_there).

    Args:
        model: in evaluation mode.
        images: uint8 [images, channels, height, width].
        steps: shows how far it is, and so how many images there are.

    Returns:
        float32 [images, classes], on the CPU.
    """
    device = next(model.parameters()).device
    rows, pieces = [], images.split(PREDICT_ROWS)  # One that is empty, if there is no image.
    for index in range(len(pieces)) if steps is None else steps("query", len(pieces)):
        piece = pieces[index]
        padded = torch.zeros((PREDICT_ROWS, *images.shape[1:]), dtype=torch.uint8)
        padded[: len(piece)] = piece
        rows.append(model(to_unit_range(padded.to(device))).float().cpu()[: len(piece)])
    return torch.cat(rows)
