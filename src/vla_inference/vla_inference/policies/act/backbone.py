"""ResNet up to its last feature map, with batch norms that keep their statistics.

Names of tensors are those of torchvision, which publishes the weights.

Source: arXiv:1512.03385; the stride of a bottleneck is in its 3 x 3 convolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5


class Variant(NamedTuple):
    """blocks: of each of the four stages. bottleneck: of 1 x 1, 3 x 3, 1 x 1, not 3 x 3 twice."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool

    @property
    def channels(self) -> int:
        """Of the last feature map."""
        return 2048 if self.bottleneck else 512


VARIANTS = {
    "resnet10": Variant(
        (1, 1, 1, 1), False
    ),  # for small models; torchvision, and LeRobot, lack it
    "resnet18": Variant((2, 2, 2, 2), False),
    "resnet34": Variant((3, 4, 6, 3), False),
    "resnet50": Variant((3, 4, 6, 3), True),
    "resnet101": Variant((3, 4, 23, 3), True),
    "resnet152": Variant((3, 8, 36, 3), True),
}


class FrozenBatchNorm(nn.Module):
    """Batch norm with stored statistics, in training as well: [B, C, H, W]"""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(value)))

    def affine(self) -> tuple[Tensor, Tensor]:
        """The factor and the summand [C] that it comes down to."""
        scale = self.weight * (self.running_var + EPS).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.affine()
        return x * scale[:, None, None] + shift[:, None, None]


class Block(nn.Module):
    """A residual block. width: inside a bottleneck; of the output otherwise."""

    def __init__(self, width: int, inputs: int, stride: int, dilation: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width

        def conv(number: int, a: int, b: int, size: int, step: int = 1, apart: int = 1) -> None:
            layer = nn.Conv2d(a, b, size, step, size // 2 * apart, apart, bias=False)
            self.add_module(f"conv{number}", layer)
            self.add_module(f"bn{number}", FrozenBatchNorm(b))

        if bottleneck:
            conv(1, inputs, width, 1)
            conv(2, width, width, 3, stride, dilation)
            conv(3, width, outputs, 1)
        else:
            conv(1, inputs, width, 3, stride)
            conv(2, width, width, 3)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm(outputs)
            )

    def convolutions(self) -> list[tuple[nn.Conv2d, FrozenBatchNorm]]:
        """Along the way that is not the shortcut."""
        return [
            (getattr(self, f"conv{i}"), getattr(self, f"bn{i}"))
            for i in (1, 2, 3)
            if hasattr(self, f"conv{i}")
        ]

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        *first, (conv, norm) = self.convolutions()
        for before, its_norm in first:
            x = F.relu(its_norm(before(x)))
        return F.relu(norm(conv(x)) + shortcut)


class ResNet(nn.Module):
    """Images [B, 3, H, W] -> features [B, C, H / 32, W / 32], sizes rounded up.

    dilated: the last stage keeps the resolution, H / 16.
    """

    def __init__(self, variant: Variant, dilated: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm(64)
        inputs = 64
        for i, count in enumerate(variant.blocks):
            keeps = i == 0 or (dilated and i == 3)
            blocks = []
            for j in range(count):
                stride = 1 if keeps or j else 2
                dilation = 2 if dilated and i == 3 and j else 1
                blocks.append(Block(64 << i, inputs, stride, dilation, variant.bottleneck))
                inputs = (64 << i) * (4 if variant.bottleneck else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

    def stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in self.stages():
            x = stage(x)
        return x
