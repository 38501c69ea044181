"""A step of DP-SGD on sensitive images: a Poisson batch, one gradient a privacy unit, one noise.

Abadi et al. 2016 (arXiv 1607.00133) with the K noise draws of a unit folded into one gradient
(Dockhorn et al. 2022, arXiv 2210.09929). A unit is an image, or a person with all images: the draws
then go round the person's images (`ImageSet.units`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import nn

from privimage.acceleration import accelerated, in_turns, mixed_precision, sent
from privimage.data import ImageSet, to_unit_range
from privimage.diffusion.denoiser import Denoiser, Network, drop_labels, losses
from privimage.diffusion.ema import ema_decay
from privimage.diffusion.words import child, children, normals
from privimage.dp import (
    ClipRule,
    Domain,
    DPAdam,
    ExampleGradients,
    SecretKey,
    most_examples,
    plan,
    planned_clipped_sum,
    poisson_sample,
    rate_threshold,
    record,
    usual_memory,
)
from privimage.errors import UserError, check_count, check_positive, check_probability
from privimage.synthesis.draws import unit_draws
from privimage.threads import Workers

_WORTH_RECORDING = 200
"""Micro-batches: recording one takes as long as some 20, and saves a tenth of each and more."""


@dataclass(frozen=True)
class FinetuneSettings:
    """DP-SGD's hyper-parameters; public, and chosen without the sensitive images.

    Attributes:
        sample_rate: probability with which a privacy unit (image or person) enters a step.
        steps: number of steps T.
        draws: noise levels and noises K a unit and step, and so at most K images of a person.
        max_grad_norm: clipping norm C of a unit's gradient over all parameters.
        learning_rate: of Adam.
        label_dropout: probability with which a draw goes without its label.
        ema_decay: of the averaged weights that are released.
        reservation: steps that the ledger reserves at once; a crash costs at most so many.
    """

    sample_rate: float = 1 / 3
    steps: int = 150
    draws: int = 8
    max_grad_norm: float = 1.0
    learning_rate: float = 3e-4
    label_dropout: float = 0.1
    ema_decay: float = 0.999
    reservation: int = 1

    def __post_init__(self) -> None:
        check_probability("finetune.sample_rate", self.sample_rate)
        check_count("finetune.steps", self.steps)
        check_count("finetune.draws", self.draws)
        check_positive("finetune.max_grad_norm", self.max_grad_norm)
        check_positive("finetune.learning_rate", self.learning_rate)
        check_count("finetune.reservation", self.reservation)
        if not 0 <= self.label_dropout < 1 or not 0 <= self.ema_decay < 1:
            raise UserError("finetune.label_dropout and finetune.ema_decay must lie in [0, 1)")


class Finetuner:
    """One private step after another on `network`.

    Attributes:
        is_secret: whether all randomness comes from a secret key; a test key makes it False.
    """

    def __init__(
        self,
        sensitive: ImageSet,
        network: nn.Module,
        settings: FinetuneSettings,
        noise_multiplier: float,
        public_size: int,
        workers: Workers,
        max_memory: float | None = None,
    ) -> None:
        self._sensitive = sensitive
        self._units = sensitive.by_unit()
        self._settings = settings
        self._workers = workers
        self._threshold = rate_threshold(settings.sample_rate)
        key = SecretKey.from_os()
        self.is_secret = key.is_secret
        self._sampling, self._draws = key.stream(Domain.SAMPLING), key.stream(Domain.EXAMPLES)
        self._gradients = ExampleGradients(network, torch.channels_last)
        self._device = self._gradients.device
        self._images = sensitive.images.to(self._device)
        expected = settings.sample_rate * public_size
        self._optimizer = DPAdam(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            settings.learning_rate,
            noise_multiplier,
            expected,
            key=key,
            ema_decay=partial(ema_decay, limit=settings.ema_decay),
        )
        self._rule = ClipRule(settings.max_grad_norm)
        if max_memory is None:
            max_memory = usual_memory(self._device)
        (self._plan,) = workers.map(  # On a worker's one thread, for which it is to be right.
            lambda batch: plan(
                network,
                batch,
                draws=settings.draws,
                max_memory=max_memory,
                examples=most_examples(self._device, settings.draws, expected),
                losses=_losses,
                memory_format=torch.channels_last,
            ),
            [self._filler(settings.draws)],
        )
        self._sum = in_turns(self._summed, self._device)
        micro_batches = max(expected / self._plan.examples, 1)
        if settings.steps * micro_batches >= _WORTH_RECORDING:
            filler = self._filler(self._plan.examples * settings.draws)
            recorded = record(self._summed, *filler, self._counted(1))
            self._sum = accelerated(recorded, self._device)
            if self._device.type != "cpu":  # Compiles here, and not in the first step.
                self._sum(*filler, self._counted(1))

    def step(self) -> None:
        """Samples a batch, sums its clipped gradients, adds noise and updates weights and EMA."""
        chosen = poisson_sample(len(self._units), self._threshold, self._sampling)
        words = self._draws.words(len(self._units))[chosen]
        size = self._plan.examples
        total = torch.zeros(self._gradients.size, dtype=torch.int64, device=self._device)
        lock = Lock()

        def add(piece: tuple[torch.Tensor, torch.Tensor]) -> None:
            part = self._clipped_sum(piece)
            with lock:  # Integers: the order does not matter.
                total.add_(part)

        if len(chosen):
            self._workers.map(add, zip(chosen.split(size), words.split(size), strict=True))
        self._optimizer.step(total)

    def released(self) -> torch.Tensor:
        """The averaged weights, flat: the only thing that leaves the stage."""
        return self._optimizer.average

    def tensors(self) -> dict[str, torch.Tensor]:
        """Optimiser and EMA: functions of what was released, never of a raw gradient."""
        return self._optimizer.tensors()

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        self._optimizer.restore(tensors)

    def _clipped_sum(self, piece: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The clipped gradients of these units, summed: int64 [parameters].

        Each is the mean over the unit's draws, clipped once. The draws go round the unit's images
        in an order of their own, so a person with more images than draws shows others in other
        steps, and one with fewer shows some again. Every micro-batch has the same physical shape,
        the last one being padded with grey images, so that a unit's gradient does not depend on
        how many others were sampled, nor on how many images they have.

        A unit's order and draws come from a secret word of its own, a function of key, step and
        the unit's number; they need not be cryptographic. The guarantee would survive draws that
        depend on the unit's place in the micro-batch: they would still be independent between
        units, and the clip holds whatever was drawn. But then one unit more would exchange the
        draws of all after it, and that it moves the sum by at most the clip could not be tested on
        the real code, key by key.

        Args:
            piece: the units' numbers and words, int64 [at most micro-batch] each.
        """
        settings, (chosen, words) = self._settings, piece
        order, draws = children(words, 2).unbind(1)
        shown = _going_round([self._units[i] for i in chosen.tolist()], settings.draws, order)
        drawn = unit_draws(draws, settings.draws)
        no_label = len(self._sensitive.names)
        labels = self._sensitive.labels[shown]
        labels = drop_labels(labels, drawn.coins.flatten(), settings.label_dropout, no_label)
        # Nothing in here makes the host wait for a GPU, which is busy with the last micro-batch.
        images, *others = self._filler(self._plan.examples * settings.draws)
        images[: len(shown)] = self._images[sent(shown, self._device)]
        for whole, part in zip(others, (drawn.sigma, drawn.noises, labels), strict=True):
            whole[: len(shown)] = sent(part.flatten(), self._device)
        return self._sum(images, *others, self._counted(len(chosen)))

    def _summed(self, *batch: torch.Tensor) -> torch.Tensor:
        """The clipped sum of a micro-batch, of which its last tensor says how many units count."""
        *tensors, counted = batch
        return planned_clipped_sum(
            self._gradients,
            _losses,
            *tensors,
            plan=self._plan,
            rule=self._rule,
            examples=counted,
        )

    def _counted(self, units: int) -> torch.Tensor:
        return sent(torch.tensor(units), self._device)

    def _filler(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Grey images without label, as `_losses` takes them."""
        shape, there = (rows, *self._images.shape[1:]), self._device
        images = torch.full(shape, 128, dtype=torch.uint8, device=there)
        words = torch.zeros(rows, dtype=torch.int64, device=there)
        labels = torch.full((rows,), len(self._sensitive.names), device=there)
        return images, torch.ones(rows, device=there), words, labels


def _going_round(units: Sequence[torch.Tensor], draws: int, words: torch.Tensor) -> torch.Tensor:
    """`draws` of each unit's images, int64 [units * draws]: none again before all were there.

    Args:
        units: the indices of each one's images, int64 [images of the unit].
        draws: of each unit.
        words: one a unit; a unit's order is a function of its own.
    """
    sizes = torch.tensor([len(images) for images in units], dtype=torch.int64)
    first = sizes.cumsum(0) - sizes
    owner = torch.arange(len(units)).repeat_interleave(sizes)
    places = torch.arange(len(owner)) - first[owner]
    mixed = child(words[owner], places).argsort()
    mixed = mixed[owner[mixed].argsort(stable=True)]
    taken = first[:, None] + torch.arange(draws) % sizes[:, None]
    return torch.cat(list(units))[mixed[taken]].flatten()


def _losses(
    network: Network,
    images: torch.Tensor,
    sigma: torch.Tensor,
    words: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """The denoising losses of uint8 images as a function of the network, [rows].

    The noise of a row is drawn here from its word, where it is needed and compiled with the rest.
    """
    noise = normals(words, images[0].numel()).view(images.shape)
    with mixed_precision(images.device):
        return losses(Denoiser(network), to_unit_range(images), sigma, noise, labels)
