"""Pre-trains a diffusion network on public images: Adam, EMA, a batch's pieces side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from privimage.acceleration import (
    MOST_PIXELS,
    WORTH_COMPILING,
    Function,
    accelerated,
    in_turns,
    memory_format,
    mixed_precision,
    sent,
)
from privimage.data import randomly_flipped, to_unit_range
from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.denoiser import Denoiser, drop_labels, losses, noise_levels
from privimage.diffusion.ema import Ema
from privimage.diffusion.fused_norms import FusedNorms
from privimage.diffusion.unet import UNet
from privimage.diffusion.words import normals
from privimage.errors import UserError, check_choice, check_count, check_positive
from privimage.loop import resumable_steps
from privimage.progress import Reporter
from privimage.recording import record
from privimage.seeds import generator
from privimage.threads import Workers

# On a CPU a batch is cut into pieces of about this many pixels: 128 images of 8x8, 8 of 32x32.
# Fixed, so that the order of summation does not depend on the number of cores; large enough to
# hide the cost of launching operators, small enough for the caches. A GPU gets `MOST_PIXELS`.
PIECE_PIXELS = 8192

Network = UNet | CompactUNet

Piece = tuple[torch.Tensor, ...]
"""Bytes, noise levels, words of noises and labels of some images of a batch, or of all."""

_CURVE, _POINTS = ("steps", "losses"), 100
_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class PretrainSettings:
    """The recipe of pre-training.

    Attributes:
        steps: Adam steps.
        batch_size: images a step, drawn uniformly with replacement.
        learning_rate: the highest one.
        warmup_steps: steps over which it rises linearly; 0 for none.
        schedule: "constant" after the warm-up, or "linear" down to 0 at the end.
        flip: mirror half of the images left to right (not for digits or text).
        label_dropout: probability that an image is shown without its label.
        ema_decay: limit of the EMA's decay.

    Raises:
        UserError: a value out of its range.
    """

    steps: int = 20_000
    batch_size: int = 1024
    learning_rate: float = 3e-4
    warmup_steps: int = 0
    schedule: str = "constant"
    flip: bool = False
    label_dropout: float = 0.1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        check_count("pretrain.steps", self.steps)
        check_count("pretrain.batch_size", self.batch_size)
        check_positive("pretrain.learning_rate", self.learning_rate)
        check_choice("pretrain.schedule", self.schedule, ("constant", "linear"))
        if not 0 <= self.warmup_steps < self.steps:
            raise UserError("pretrain.warmup_steps must be at least 0 and below pretrain.steps")
        if not 0 <= self.label_dropout < 1 or not 0 <= self.ema_decay < 1:
            raise UserError("pretrain.label_dropout and pretrain.ema_decay must lie in [0, 1)")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0 … steps - 1."""
        rise = (step + 1) / max(self.warmup_steps, 1)
        fall = (self.steps - step) / (self.steps - self.warmup_steps)
        return self.learning_rate * min(1.0, rise, fall if self.schedule == "linear" else 1.0)


class Pretraining:
    """One step after another on `network`; what a loop saves and restores.

    Args:
        network: trained in place, on its own device.
        images: uint8 [images, C, H, W], on any device.
        labels: int64 [images] in 0 … classes (the last means no label), beside `images`.
        settings: the recipe.
        seed: decides every batch; step n's batch depends on nothing else.
        workers: where the pieces of a batch are computed when the network is on a CPU.

    Raises:
        UserError: images or labels that the network can't take.
    """

    def __init__(
        self,
        network: Network,
        images: torch.Tensor,
        labels: torch.Tensor,
        settings: PretrainSettings,
        seed: int,
        workers: Workers,
    ) -> None:
        _check_data(network, images, labels)
        self._network = network
        self._images = images
        self._labels = labels
        self._settings = settings
        self._seed = seed
        self._workers = workers
        self._parameters = dict(network.named_parameters())
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=settings.learning_rate, fused=True
        )
        self._ema = Ema(self._parameters, settings.ema_decay)
        self._plain = in_turns(self._piece_gradients, self._device)
        self._of_size: dict[int, Function] = {}
        self._loss = torch.zeros((), device=self._device)
        self._curve: list[list[float]] = []

    @property
    def pieces(self) -> int:
        """Calls that a step makes."""
        return -(-self._settings.batch_size // self._piece_rows)

    def accelerate(self) -> None:
        """Has every step make its calls as recorded, on a GPU compiled and captured: a minute."""

        def gradients(*piece: torch.Tensor) -> torch.Tensor:
            with FusedNorms():
                return self._piece_gradients(*piece)

        for piece in {len(each[0]): each for each in self._divided(self._draw(0))}.values():
            graph = accelerated(record(gradients, *piece), self._device)
            graph(*piece)  # Compiles here, one after the other.
            self._of_size[len(piece[0])] = graph

    def step(self, index: int) -> None:
        """Draws batch `index`, updates the weights and their average."""
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        *gradients, loss = self._gradients(self._draw(index)).split([*sizes, 1])
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient.view(parameter.shape)
        self._optimizer.param_groups[0]["lr"] = self._settings.learning_rate_at(index)
        self._optimizer.step()
        self._ema.update(self._parameters)
        self._loss += loss[0]
        # Looked at once in a while: on a GPU that waits for all that is under way.
        every = -(-self._settings.steps // _POINTS)
        if (index + 1) % every == 0:
            self._curve.append([index + 1, float(self._loss) / every])
            self._loss.zero_()

    def losses(self) -> dict[str, list[float]]:
        """`steps`, and the mean loss of the batches since the one before: `losses`."""
        return {name: [point[i] for point in self._curve] for i, name in enumerate(_CURVE)}

    def averaged(self) -> dict[str, torch.Tensor]:
        """The averaged weights by parameter name, for `network.load_state_dict`."""
        return self._ema.average

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Weights, their average and Adam's moments."""
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"weights/{name}"] = parameter
            tensors[f"average/{name}"] = self._ema.average[name]
            for key in _ADAM_STATE:
                tensors[f"{key}/{name}"] = self._optimizer.state[parameter][key]
        tensors["loss"] = self._loss
        return tensors, {"ema_updates": self._ema.updates, "curve": self._curve}

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[f"weights/{name}"])
        average = {name: tensors[f"average/{name}"] for name in self._parameters}
        self._ema.restore(average, state["ema_updates"])
        self._loss.copy_(tensors["loss"])
        self._curve = [list(point) for point in state["curve"]]
        moments = {
            index: {key: tensors[f"{key}/{name}"] for key in _ADAM_STATE}
            for index, name in enumerate(self._parameters)
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _draw(self, index: int) -> Piece:
        """Batch `index`: bytes, noise levels, words of noises and labels, [batch_size, …] each.

        What is large is made where the network is: a GPU would wait for a host's normal numbers.
        """
        settings, random = self._settings, generator(self._seed, "pretrain", index)
        size = settings.batch_size
        rows = torch.randint(len(self._images), (size,), generator=random)
        images = sent(self._images[rows.to(self._images.device)], self._device)
        if settings.flip:
            images = randomly_flipped(images, random)
        sigma = noise_levels(torch.randn(size, generator=random))
        words = torch.randint(2**63 - 1, (size,), generator=random)
        coins = torch.rand(size, generator=random)
        no_label = self._network.shape.classes
        labels = drop_labels(self._labels[rows].cpu(), coins, settings.label_dropout, no_label)
        return images, *(sent(tensor, self._device) for tensor in (sigma, words, labels))

    def _gradients(self, batch: Piece) -> torch.Tensor:
        """The gradient of the batch's mean loss, flat, and last that loss."""
        return reduce(torch.Tensor.add_, self._parts(self._divided(batch)))

    def _parts(self, pieces: list[Piece]) -> Iterator[torch.Tensor]:
        """What each piece adds, in their order; in memory at most one a worker."""
        for start in range(0, len(pieces), self._workers.threads):
            group = pieces[start : start + self._workers.threads]
            yield from self._workers.map(
                lambda piece: self._of_size.get(len(piece[0]), self._plain)(*piece), group
            )

    def _divided(self, batch: Piece) -> list[Piece]:
        """The pieces of a batch, each of its tensors in each of them."""
        return list(zip(*(tensor.split(self._piece_rows) for tensor in batch), strict=True))

    def _piece_gradients(
        self, pixels: torch.Tensor, sigma: torch.Tensor, words: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """A piece's share of that."""
        images = memory_format(to_unit_range(pixels))
        noise = normals(words, pixels[0].numel()).view(pixels.shape)
        with mixed_precision(self._device):
            loss = losses(Denoiser(self._network), images, sigma, noise, labels).sum()
        share = loss / self._settings.batch_size
        gradients = torch.autograd.grad(share, list(self._parameters.values()))
        return torch.cat([each.flatten() for each in [*gradients, share.detach()]])

    @property
    def _piece_rows(self) -> int:
        most = PIECE_PIXELS if self._device.type == "cpu" else MOST_PIXELS
        return max(1, most // self._images[0, 0].numel())

    @property
    def _device(self) -> torch.device:
        return next(iter(self._parameters.values())).device


def pretrain(
    network: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    settings: PretrainSettings,
    seed: int,
    folder: Path,
    workers: Workers,
    reporter: Reporter,
) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Runs the steps of a `Pretraining` that are still to do; its checkpoints are in `folder`.

    The other arguments are those of `Pretraining`.

    Returns:
        The averaged weights by parameter name, and `Pretraining.losses`.

    Raises:
        Stopped: the reporter asked for it; the checkpoint is saved.
        UserError: data that don't fit, no readable checkpoint in `folder`, or training diverged.
    """
    training = Pretraining(network, images, labels, settings, seed, workers)
    is_on_gpu = next(network.parameters()).is_cuda
    if is_on_gpu and settings.steps * training.pieces >= WORTH_COMPILING:
        reporter.say("  compiling a step, for a minute or two")
        training.accelerate()
    for step in resumable_steps(training, settings.steps, folder, "pre-training", reporter):
        training.step(step)
    average = training.averaged()
    if not all(tensor.isfinite().all() for tensor in average.values()):
        raise UserError(
            "pre-training diverged: its weights are no longer finite; "
            f"lower pretrain.learning_rate, now {settings.learning_rate:g}"
        )
    return average, training.losses()


def _check_data(network: Network, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Raises UserError for images or labels that `network` can't take."""
    shape = network.shape
    expected = (shape.image_channels, shape.image_size, shape.image_size)
    if images.dtype != torch.uint8 or images.shape[1:] != expected or len(images) == 0:
        raise UserError(
            f"images must be uint8 [images, {', '.join(map(str, expected))}] with at least one "
            f"image, got {images.dtype} {list(images.shape)}"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise UserError(
            f"labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}"
        )
    if labels.min() < 0 or labels.max() > shape.classes:
        raise UserError(
            f"labels must lie in 0 … {shape.classes}, got {int(labels.min())} … {int(labels.max())}"
        )
