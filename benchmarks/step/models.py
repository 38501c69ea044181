"""The networks that the benchmarks train, each with a micro-batch of made-up data."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from privimage.acceleration import mixed_precision
from privimage.diffusion.compact_unet import CompactUNet
from privimage.diffusion.denoiser import Denoiser, losses
from privimage.diffusion.unet import UNet, UNetShape
from privimage.dp import most_examples

Batch = tuple[torch.Tensor, ...]

CIFAR = UNetShape(32, 3, 32, (1, 2, 2), (16,), 10)
GREY = UNetShape(28, 1, 32, (1, 2, 2), (14,), 10)
WIDE = UNetShape(32, 3, 64, (1, 2, 2), (16,), 10)
WIDER = UNetShape(32, 3, 128, (1, 2, 2), (16,), 10)
DIGITS = UNetShape(8, 1, 16, (1, 2), (), 10, blocks_per_level=1)


@dataclass(frozen=True)
class Setting:
    """A network and a micro-batch of examples x draws.

    Attributes:
        name: of the network.
        build: makes it.
        image: channels, height and width.
        denoises: whether it is trained to denoise; else to classify.
        examples: of the micro-batch.
        draws: rows an example.
        device: where all of it lies.
    """

    name: str
    build: Callable[[], nn.Module]
    image: tuple[int, int, int]
    denoises: bool
    examples: int
    draws: int
    device: str = "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether that is a GPU."""
        return self.device == "cuda"

    def network(self) -> nn.Module:
        """The same weights every time."""
        torch.manual_seed(0)
        with torch.device(self.device):
            return self.build()

    def batch(self, examples: int | None = None) -> Batch:
        """Images, for denoising noise levels and noise, labels; an example's draws consecutive."""
        examples = self.examples if examples is None else examples
        torch.manual_seed(1)
        with torch.device(self.device):
            images = torch.rand(examples, *self.image) * 2 - 1
            images = images.repeat_interleave(self.draws, dim=0)
            labels = torch.randint(0, 10, (examples,)).repeat_interleave(self.draws)
            if not self.denoises:
                return images, labels
            return images, torch.rand(len(images)) + 0.2, torch.randn(images.shape), labels

    def losses(self, network: nn.Module | Denoiser, *batch: torch.Tensor) -> torch.Tensor:
        """One a row; on a GPU activations are bfloat16, whoever asks."""
        with mixed_precision(batch[0].device):
            if self.denoises:
                denoiser = network if isinstance(network, Denoiser) else Denoiser(network)
                return losses(denoiser, *batch).float()
            images, labels = batch
            return F.cross_entropy(network(images), labels, reduction="none")


def settings(
    names: list[str], draws: list[int], device: str = "cpu", sweep: Sequence[int] = ()
) -> list[Setting]:
    """Those of these names, with the micro-batch that suits two cores or a GPU, or with each given.

    Raises SystemExit with the names that there are.
    """
    found = []
    for name in names:
        if name not in MODELS:
            raise SystemExit(f"no model '{name}'; there are {', '.join(MODELS)}")
        build, image, denoises, rows = MODELS[name]
        for count in draws:
            usual = max(min(rows // count, rows // 2), 2)
            if device == "cuda":
                usual = most_examples(torch.device(device), count) * min(rows, 32) // 32
            for examples in sweep or [usual]:
                found.append(Setting(name, build, image, denoises, examples, count, device))
    return found


class Vit(nn.Module):
    """ViT-Ti on patches of 4 pixels (Dosovitskiy et al., arXiv 2010.11929): 5.4 million weights."""

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.place = nn.Embedding(64, width)
        self.blocks = nn.ModuleList(_VitBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 3, 32, 32] -> [rows, 10]."""
        h = self.patches(x).flatten(2).mT
        h = h + self.place(torch.arange(64, device=x.device).expand(len(x), 64))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(1))


class _VitBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class ResNet(nn.Module):
    """ResNet-18 for 32 pixels, GroupNorm (He et al., arXiv 1512.03385): 11.2 million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.GroupNorm(16, 64)
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(*(_ResNetBlock(i, o) for i, o in itertools.pairwise(widths)))
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 3, 32, 32] -> [rows, 10]."""
        h = self.blocks(F.silu(self.norm(self.stem(x))))
        return self.head(h.mean((2, 3)))


class _ResNetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(16, outputs), nn.GroupNorm(16, outputs)
        plain = stride == 1
        self.skip = nn.Identity() if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(F.silu(self.norm1(self.conv1(x))))
        return F.silu(self.norm2(h) + self.skip(x))


def _mnist() -> nn.Module:
    """The network of Opacus' MNIST example: 26 thousand weights."""
    first = nn.Sequential(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1))
    second = nn.Sequential(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1))
    head = nn.Sequential(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10))
    return nn.Sequential(first, second, head)


def _perceptron() -> nn.Module:
    """Three linear layers: 670 thousand weights, of which each example uses each once."""
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512))
    return nn.Sequential(wide, nn.ReLU(), nn.Linear(512, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], bool, int]] = {
    "cifar10": (lambda: UNet(CIFAR), (3, 32, 32), True, 32),
    "grey28": (lambda: UNet(GREY), (1, 28, 28), True, 32),
    "wide": (lambda: UNet(WIDE), (3, 32, 32), True, 16),
    "wider": (lambda: UNet(WIDER), (3, 32, 32), True, 8),
    "digits": (lambda: CompactUNet(DIGITS), (1, 8, 8), True, 256),
    "vit": (Vit, (3, 32, 32), False, 16),
    "resnet18": (ResNet, (3, 32, 32), False, 16),
    "mnist": (_mnist, (1, 28, 28), False, 512),
    "perceptron": (_perceptron, (1, 28, 28), False, 512),
}
"""Name -> network, image, whether it denoises, rows that make a good micro-batch on
two cores; where they are fewer than 32, the part of a GPU's that does."""
