"""Trains one network on one image set, an epoch at a time, and keeps the best epoch."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from privimage.acceleration import sent
from privimage.data import ImageSet, randomly_flipped, to_unit_range
from privimage.progress import Reporter, Stopped

_BATCH_SIZE = 128
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 1e-2
_HELD_OUT = 0.1
_NOISE = 0.1
# The largest shift is one pixel in so many.
_PIXELS_A_SHIFT = 8
_PREDICT_ROWS = 500


class Training:
    """AdamW with one cycle of the learning rate; a tenth of the images is held out to choose by."""

    def __init__(
        self, model: nn.Module, images: ImageSet, epochs: int, flip: bool, random: torch.Generator
    ) -> None:
        """Begins the training of `model`, on its device, on labelled `images`."""
        self._model = model
        self._device = next(model.parameters()).device
        self._images = images.images.to(self._device)
        self._labels = images.labels.to(self._device)
        self._flip, self._random = flip, random
        order = torch.randperm(len(images), generator=random)
        held_out = int(_HELD_OUT * len(order))
        self._held_out, self._kept = order[:held_out], order[held_out:]
        self._best, self.held_out_accuracy = model, -1.0
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, _LEARNING_RATE, epochs * -(-len(self._kept) // _BATCH_SIZE)
        )

    def epoch(self, reporter: Reporter) -> None:
        """Goes once through the images.

        Raises:
            Stopped: the reporter asked for it; nothing is kept.
        """
        self._model.train()
        order = self._kept[torch.randperm(len(self._kept), generator=self._random)]
        for rows in sent(order, self._device).split(_BATCH_SIZE):
            if reporter.must_stop:
                raise Stopped("training classifiers stopped")
            batch = _augmented(to_unit_range(self._images[rows]), self._flip, self._random)
            self._optimizer.zero_grad()
            F.cross_entropy(self._model(batch), self._labels[rows]).backward()
            self._optimizer.step()
            self._schedule.step()
        found = predicted(self._model, self._images[self._held_out])
        right = found == self._labels[self._held_out].cpu()
        accuracy = float(right.float().mean()) if len(right) else 0.0
        if accuracy >= self.held_out_accuracy:
            self._best, self.held_out_accuracy = copy.deepcopy(self._model), accuracy

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Labels of uint8 `images` by the best epoch, int64 [images], on the CPU."""
        return predicted(self._best, images.to(self._device))


@torch.no_grad()
def predicted(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The labels that `model` gives to uint8 images on its device: int64 [images], on the CPU."""
    model.eval()
    pieces = images.split(_PREDICT_ROWS)
    found = [model(to_unit_range(piece)).argmax(dim=1).cpu() for piece in pieces if len(piece)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def _augmented(images: torch.Tensor, flip: bool, random: torch.Generator) -> torch.Tensor:
    """Shifted, mirrored, and a little noisy: synthetic images are too clean otherwise."""
    height, width = images.shape[2:]
    most = max(height // _PIXELS_A_SHIFT, 1)
    down, right = torch.randint(-most, most + 1, (2,), generator=random)
    padded = F.pad(images, (most,) * 4, value=-1.0)
    top, left = most + int(down), most + int(right)
    shifted = padded[:, :, top : top + height, left : left + width]
    if flip:
        shifted = randomly_flipped(shifted, random)
    return shifted + _NOISE * sent(torch.randn(shifted.shape, generator=random), images.device)
