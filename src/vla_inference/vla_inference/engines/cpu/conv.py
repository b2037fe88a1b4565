"""Convolutions of the CPU engine: weights packed for oneDNN once, batch norm and ReLU fused in.

A 3 x 3 convolution of stride 1 with many channels is done in Winograd's form F(4 x 4, 3 x 3): for
4 x 4 outputs it multiplies 36 times for each pair of channels instead of 144. With few channels
its transforms cost more than that saves. In float32 its error is 2e-6 of the output.

Source: arXiv:1509.09308 (Lavin and Gray, 2015).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAST = torch.channels_last
TILES = (300, 1)  # of usual images; weights laid out for thousands are slow with 512 channels
WINOGRAD = 128  # channels from which it is faster
TILE, STEP = 6, 4  # a tile of inputs, and how many outputs it gives, each way
PLACES = TILE * TILE

# The transforms of inputs, weights and outputs, along one axis.
INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
WEIGHT = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
ONE = TILE + 1  # of the 36 products, the one that all outputs take once: where a bias is added


class CpuConv:
    """conv(x) * scale + shift, then ReLU, of images with channels last.

    scale, shift: of each output channel [C].
    usual: height and width that weights are laid out for; others work as well.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        scale: Tensor,
        shift: Tensor,
        usual: tuple[int, int] = (60, 80),
    ):
        weight, dtype = conv.weight.detach(), conv.weight.dtype
        folded = weight.float() * scale.float()[:, None, None, None]
        self.bias, self.groups = shift.to(dtype), conv.groups
        self.padding, self.stride, self.dilation = (
            [int(n) for n in numbers] for numbers in (conv.padding, conv.stride, conv.dilation)
        )
        self.weight = folded.to(dtype).contiguous(memory_format=LAST)
        self.packed = packs_convolutions()
        if self.packed:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks arguments
            size = [1, conv.in_channels, *usual]
            self.weight = reorder(self.weight.to_mkldnn(), *self._how, size)

    @property
    def _how(self) -> tuple[list[int], list[int], list[int], int]:
        return self.padding, self.stride, self.dilation, self.groups

    def __call__(self, x: Tensor, relu: bool = True) -> Tensor:
        if not self.packed:
            y = self._plain(x)
            return y.relu_() if relu else y
        after = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self._how, after, [], ""
        )

    def join(self, x: Tensor, other: Tensor) -> Tensor:
        """The result and another added, then ReLU; may write over the other."""
        if not self.packed:
            return self._plain(x).add_(other).relu_()
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, self.weight, self.bias, *self._how, "add", 1.0, "relu", [], ""
        )

    def _plain(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self._how
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)


class WinogradConv:
    """`CpuConv` in Winograd's form.

    The products of the 36 places in a tile are a convolution of 1 x 1 in 36 groups.
    """

    def __init__(self, conv: nn.Conv2d, scale: Tensor, shift: Tensor):
        weight = conv.weight.detach().double() * scale.double()[:, None, None, None]
        one = torch.tensor(WEIGHT, dtype=torch.float64)
        places = torch.einsum("ia,ocab,jb->ijoc", one, weight, one).flatten(0, 2).float()
        products = nn.Conv2d(PLACES * conv.in_channels, len(places), 1, groups=PLACES)
        products.weight = nn.Parameter(places[:, :, None, None], requires_grad=False)
        bias = torch.zeros(PLACES, len(shift))
        bias[ONE] = shift.float()
        self.products = CpuConv(products, torch.ones(len(places)), bias.flatten(), TILES)
        self.inputs, self.outputs = (
            torch.kron(t, t) for t in (torch.tensor(m).float() for m in (INPUT, OUTPUT))
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._convolve(x).relu_()

    def join(self, x: Tensor, other: Tensor) -> Tensor:
        """The result and another added, then ReLU."""
        return self._convolve(x).add_(other).relu_()

    def _convolve(self, x: Tensor) -> Tensor:
        b, channels, height, width = x.shape
        rows, columns = -(-height // STEP), -(-width // STEP)
        x = x.permute(0, 2, 3, 1)
        x = F.pad(x, (0, 0, 1, STEP * columns + 1 - width, 1, STEP * rows + 1 - height))
        tiles = x.unfold(1, TILE, STEP).unfold(2, TILE, STEP).permute(0, 1, 2, 4, 5, 3)
        y = self.inputs @ tiles.reshape(-1, PLACES, channels)  # [tiles, 36, C]
        y = self.products(y.view(1, len(y), 1, -1).permute(0, 3, 1, 2), relu=False)
        y = self.outputs @ y.permute(0, 2, 3, 1).reshape(b * rows * columns, PLACES, -1)
        y = y.view(b, rows, columns, STEP, STEP, -1).transpose(2, 3)
        y = y.reshape(b, STEP * rows, STEP * columns, -1)
        return y[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def suits_winograd(conv: nn.Conv2d) -> bool:
    return (
        conv.weight.dtype == torch.float32
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and min(conv.in_channels, conv.out_channels) >= WINOGRAD
    )


def packs_convolutions() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_convolution_pointwise"
    )
