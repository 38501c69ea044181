"""Classifiers of small images, each a sequence whose last layer is the linear one."""

from collections.abc import Callable

import torch
from torch import nn

from privimage.errors import check_choice


def build_network(name: str, channels: int, classes: int) -> nn.Sequential:
    """The untrained network `name` (one of `NETWORKS`): [rows, channels, …] → [rows, classes]."""
    check_choice("network", name, NETWORKS)
    return NETWORKS[name](channels, classes)


def cnn(channels: int, classes: int) -> nn.Sequential:
    """Three convolutions and a hidden layer; for images from 8×8."""
    return nn.Sequential(
        _convolution(channels, 32),
        _convolution(32, 64),
        nn.MaxPool2d(2),
        _convolution(64, 128),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def resnet9(channels: int, classes: int) -> nn.Sequential:
    """ResNet-9 (Page, "How to train your ResNet", 2018); for images from 16×16."""
    return nn.Sequential(
        _convolution(channels, 64),
        _convolution(64, 128),
        nn.MaxPool2d(2),
        _Plus(_convolution(128, 128), _convolution(128, 128)),
        _convolution(128, 256),
        nn.MaxPool2d(2),
        _convolution(256, 256),
        nn.MaxPool2d(2),
        _Plus(_convolution(256, 256), _convolution(256, 256)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(256, classes, bias=False),
    )


def resnet50(channels: int, classes: int) -> nn.Sequential:
    """ResNet-50 (He et al., arXiv 1512.03385) with a 3×3 stem and no first pooling, for 32×32."""
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(_Bottleneck(inputs, width, stride if index == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(
        _convolution(channels, 64),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, classes),
    )


def wrn40_4(channels: int, classes: int) -> nn.Sequential:
    """WRN-40-4 (Zagoruyko and Komodakis 2016, arXiv 1605.07146); for images from 16×16."""
    blocks: list[nn.Module] = []
    inputs = 16
    for width, stride in ((64, 1), (128, 2), (256, 2)):
        for index in range(6):
            blocks.append(_PreActivated(inputs, width, stride if index == 0 else 1))
            inputs = width
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        *blocks,
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(inputs, classes),
    )


NETWORKS: dict[str, Callable[[int, int], nn.Sequential]] = {
    "cnn": cnn,
    "resnet9": resnet9,
    "resnet50": resnet50,
    "wrn40_4": wrn40_4,
}


class _Plus(nn.Sequential):
    """x + f(x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, channels, height, width] → the same shape."""
        branch = x
        for layer in self:
            branch = layer(branch)
        return x + branch


class _Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            _convolution(inputs, width, 1),
            _convolution(width, width, 3, stride),
            *list(_convolution(width, outputs, 1))[:-1],
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _convolution(inputs, outputs, 1, stride)[:-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, inputs, height, width] → [rows, outputs, height / stride, width / stride]."""
        return torch.relu(self.body(x) + self.shortcut(x))


class _PreActivated(nn.Module):
    """Two 3×3 convolutions, each after normalisation and ReLU, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        )
        widens = inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if widens else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, inputs, height, width] → [rows, outputs, height / stride, width / stride]."""
        active = self.first(x)
        body: torch.Tensor = self.body(active)
        return body + (x if self.shortcut is None else self.shortcut(active))


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation (the images are public), ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
