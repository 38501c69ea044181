"""The denoising network F of EDM: a DDPM++/NCSN++ UNet conditioned on noise level and label.

Song et al. 2021 (arXiv 2011.13456, appendix H). Parameters are used through conv2d, linear,
group_norm and embedding only, so that an engine of per-example gradients can stand in for them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from privimage.errors import UserError, check_count, check_non_negative

Resampling = Literal["same", "down", "up"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

# The last layer of every branch starts near zero, so that a new network is close to the identity;
# not at zero, where the layers before it would get no gradient at the first step.
NEAR_ZERO = 1e-5


@dataclass(frozen=True)
class UNetShape:
    """The architecture of a `UNet`.

    Attributes:
        image_size: height and width, pixels.
        image_channels: 1 for grey, 3 for RGB.
        channels: nf, the number of feature maps that `multipliers` multiply.
        multipliers: one a level; each level has half the resolution of the one before.
        attention: resolutions (pixels) with self-attention; the middle always has it.
        classes: number of labels; 0 leaves the label table out.
        blocks_per_level: residual blocks a level (one more on the way up).

    Raises:
        UserError: a count below 1, levels that don't fit the image, attention at no level's size.
    """

    image_size: int
    image_channels: int
    channels: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...] = ()
    classes: int = 0
    blocks_per_level: int = 2

    def __post_init__(self) -> None:
        for name in ("image_size", "image_channels", "channels", "blocks_per_level"):
            check_count(name, getattr(self, name))
        for multiplier in self.multipliers:
            check_count("multipliers", multiplier)
        check_non_negative("classes", self.classes)
        if self.channels % 4:
            raise UserError(f"channels must be a multiple of 4, got {self.channels}")
        levels = len(self.multipliers)
        if not levels or self.image_size % 2 ** (levels - 1):
            raise UserError(
                f"multipliers: {levels} levels don't fit an image of {self.image_size} pixels, "
                "which must halve without a remainder between levels"
            )
        if not set(self.attention) <= set(self.resolutions):
            raise UserError(f"attention: resolutions of this network are {self.resolutions}")

    @property
    def resolutions(self) -> list[int]:
        """Height and width of each level, pixels, finest first."""
        return [self.image_size >> level for level in range(len(self.multipliers))]

    @property
    def levels(self) -> list[tuple[int, bool]]:
        """(feature maps, attention?) of each level, finest first."""
        attention = [size in self.attention for size in self.resolutions]
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        return list(zip(widths, attention, strict=True))


class UNet(nn.Module):
    """F(x, c_noise, label) of the EDM preconditioning (Karras et al. 2022, eq. 7)."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.condition = Conditioning(shape.channels, shape.classes)
        self.stem = conv(shape.image_channels, shape.channels, 3)
        self.encoder = nn.ModuleList(_encoder(shape))
        finest, coarsest = shape.levels[0][0], shape.levels[-1][0]
        self.middle = nn.ModuleList(
            ResidualBlock(coarsest, coarsest, 4 * shape.channels, "same", attention)
            for attention in (True, False)
        )
        self.decoder = nn.ModuleList(_decoder(shape))
        self.head_norm = group_norm(finest)
        self.head = conv(finest, shape.image_channels, 3, gain=NEAR_ZERO)

    def forward(
        self, x: torch.Tensor, noise_condition: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The raw network output [rows, image_channels, image_size, image_size], dtype of `x`.

        Args:
            x: [rows, image_channels, image_size, image_size] of about unit variance.
            noise_condition: [rows], c_noise = ln(sigma) / 4.
            labels: int64 [rows]; `classes` means no label; ignored without a label table.
        """
        condition = self.condition(noise_condition.to(x.dtype), labels)
        h = self.stem(x)
        skips = [h]
        for block in self.encoder:
            h = block(h, condition)
            skips.append(h)
        for block in self.middle:
            h = block(h, condition)
        for block in self.decoder:
            if block.resampling == "same":
                h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, condition)
        output: torch.Tensor = self.head(F.silu(self.head_norm(h)))
        return output


class Conditioning(nn.Module):
    """Noise level and label -> the vector [rows, 4 channels] that every residual block reads."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels = channels
        self.table = nn.Embedding(classes + 1, channels) if classes else None
        self.first = linear(channels, 4 * channels)
        self.second = linear(4 * channels, 4 * channels)

    def forward(self, noise_condition: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[rows], int64 [rows] -> [rows, 4 channels], SiLU already applied."""
        h = sinusoid(noise_condition, self.channels)
        if self.table is not None:
            h = h + self.table(labels)
        return F.silu(self.second(F.silu(self.first(h))))


class ResidualBlock(nn.Module):
    """(skip(x) + branch(x, condition)) / sqrt(2), then self-attention where asked for."""

    def __init__(
        self, inputs: int, outputs: int, condition: int, resampling: Resampling, attention: bool
    ) -> None:
        super().__init__()
        self.resampling = resampling
        self.norm1 = group_norm(inputs)
        self.conv1 = conv(inputs, outputs, 3)
        self.project = linear(condition, outputs)
        self.norm2 = group_norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, gain=NEAR_ZERO)
        plain = inputs == outputs and resampling == "same"
        self.skip = nn.Identity() if plain else conv(inputs, outputs, 1)
        self.attend = SelfAttention(outputs) if attention else nn.Identity()

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """[rows, inputs, H, W], [rows, 4 channels] -> [rows, outputs, H', W']."""
        h = self.conv1(resample(F.silu(self.norm1(x)), self.resampling))
        h = h + self.project(condition)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        x = self.skip(resample(x, self.resampling))
        output: torch.Tensor = self.attend((x + h) / math.sqrt(2))
        return output


class SelfAttention(nn.Module):
    """Single-head self-attention over the pixels, with a skip: (x + attention(x)) / sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v = (conv(channels, channels, 1) for _ in range(3))
        self.o = conv(channels, channels, 1, gain=NEAR_ZERO)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, H, W] -> the same."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT.unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # [rows, 1 head, H W, channels]
        output: torch.Tensor = self.o(h.squeeze(1).mT.reshape(x.shape))
        return (x + output) / math.sqrt(2)


def sinusoid(position: torch.Tensor, channels: int) -> torch.Tensor:
    """[rows] -> [rows, channels]: cosines, then sines, of frequencies from 1 towards 1/10000."""
    even = torch.arange(0, channels, 2, dtype=position.dtype, device=position.device)
    angles = position[:, None] * 10000.0 ** (-even / channels)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def resample(x: torch.Tensor, resampling: Resampling) -> torch.Tensor:
    """Averages 2x2 pixels ("down"), repeats each one 2x2 times ("up"), or neither ("same")."""
    if resampling == "same":
        return x
    return F.avg_pool2d(x, 2) if resampling == "down" else F.interpolate(x, scale_factor=2.0)


def _encoder(shape: UNetShape) -> Iterator[ResidualBlock]:
    """Finest level first; between levels a block that halves the resolution."""
    inputs = shape.channels
    for level, (outputs, attention) in enumerate(shape.levels):
        if level > 0:
            yield ResidualBlock(inputs, inputs, 4 * shape.channels, "down", False)
        for _ in range(shape.blocks_per_level):
            yield ResidualBlock(inputs, outputs, 4 * shape.channels, "same", attention)
            inputs = outputs


def _decoder(shape: UNetShape) -> Iterator[ResidualBlock]:
    """Coarsest level first; each block but "up" also reads the encoder's map of its own depth."""
    skips = [shape.channels]
    for inputs, _ in shape.levels:
        skips += [inputs] * (shape.blocks_per_level + 1)  # the last one is the halving block's
    skips.pop()
    for level, (outputs, attention) in reversed(list(enumerate(shape.levels))):
        for remaining in reversed(range(shape.blocks_per_level + 1)):
            attend = attention and remaining == 0
            yield ResidualBlock(inputs + skips.pop(), outputs, 4 * shape.channels, "same", attend)
            inputs = outputs
        if level > 0:
            yield ResidualBlock(inputs, inputs, 4 * shape.channels, "up", False)


def group_norm(channels: int) -> nn.GroupNorm:
    """The normalisation before every SiLU: groups of at least four feature maps."""
    groups = min(channels // 4, 32)
    if channels % groups:
        raise UserError(f"multipliers: {channels} maps meet, which is no multiple of {groups}")
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv(inputs: int, outputs: int, taps: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution of `taps` x `taps` that keeps the image's size."""
    return _initialised(nn.Conv2d(inputs, outputs, taps, padding=taps // 2), gain)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer."""
    return _initialised(nn.Linear(inputs, outputs), gain=1.0)


def _initialised(layer: Layer, gain: float) -> Layer:
    """Uniform weights of variance gain^2 * 2 / (fan in + fan out), zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer
