"""The smallest run of DP fine-tuning, and what of it can be seen from outside."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from privimage.data import ImageSet
from privimage.dp.noise import TEST_KEY
from privimage.seeds import initialising
from privimage.synthesis.finetuner import Finetuner, FinetuneSettings
from privimage.threads import Workers

NAMES = ("a", "b", "c")
PUBLIC_SIZE = 10
_CPU = torch.device("cpu")
_WORKERS = Workers(1)


class Network(nn.Module):
    """The smallest denoiser that has every kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(len(NAMES) + 1, 8)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(
        self, x: torch.Tensor, noise_condition: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Images [rows, 1, height, width], noise levels and labels [rows] to images."""
        shift = self.table(labels) * noise_condition[:, None]
        h = self.first(x) + shift[:, :, None, None]
        return self.last(nn.functional.silu(self.norm(h)))  # type: ignore[no-any-return]


def images(count: int) -> ImageSet:
    """`count` images; the first ones are always the same, so that sets differ at their end."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 1, 4, 4), generator=random, dtype=torch.uint8)
    return ImageSet(pixels[:count], torch.arange(count) % (len(NAMES) + 1), NAMES)


def tuner(
    made_up: ImageSet,
    sample_rate: float = 1.0,
    noise_multiplier: float = 1.0,
    seed: int = 0,
    device: torch.device = _CPU,
) -> Finetuner:
    """The `Finetuner` of the pipeline on the smallest network."""
    settings = FinetuneSettings(
        sample_rate=sample_rate, draws=2, max_grad_norm=0.01, ema_decay=0.9, steps=100
    )
    with initialising(seed):
        network = Network().to(device)
    return Finetuner(made_up, network, settings, noise_multiplier, PUBLIC_SIZE, _WORKERS)


@contextmanager
def known_key() -> Iterator[None]:
    """Noise, sampling and draws from a key that everybody knows: two runs differ by data alone."""
    before = os.environ.get(TEST_KEY)
    os.environ[TEST_KEY] = "known"
    try:
        yield
    finally:
        del os.environ[TEST_KEY]
        if before is not None:
            os.environ[TEST_KEY] = before


def gradients(system: Finetuner, steps: int, batch_size: float) -> torch.Tensor:
    """What Adam was given in each step, in clipping norms: [steps, parameters], as released."""
    mean, rows = torch.zeros(0), []
    for _ in range(steps):
        system.step()
        now = system.tensors()["exp_avg"].double().cpu()
        rows.append((now - 0.9 * (mean if len(mean) else torch.zeros_like(now))) / 0.1)
        mean = now.clone()
    return torch.stack(rows) * batch_size
