"""OpenVLA-OFT's L1 head on CUDA, for one observation."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.kernels.layers import layer_norm
from vla_inference.openvla.heads import L1ActionHead


class CudaHead:
    """The head's own weights. The library's LayerNorm of a few long rows keeps a few of the chip's
    multiprocessors busy, and its product of 4,096 inputs and 7 outputs takes 100 us on an H200, of
    8 outputs a tenth: the last layer gets rows of zeros up to a multiple of 8."""

    def __init__(self, head: L1ActionHead):
        self.net, self.slots = head.model, head.slots_per_step
        last = self.net.fc2
        self.outputs = len(last.weight)
        spare = -self.outputs % 8
        self.weight = F.pad(last.weight.data, (0, 0, 0, spare))
        self.bias = F.pad(last.bias.data, (0, spare))

    def __call__(self, hidden: Tensor) -> Tensor:  # [slots, H] -> [chunk, dim]
        net = self.net
        x = hidden.reshape(len(hidden) // self.slots, -1)
        x = torch.relu(net.fc1(_norm(net.layer_norm1, x)))
        add = None  # what the last block adds to x
        for block in net.mlp_resnet_blocks:
            norm, product = cast("nn.LayerNorm", block.ffn[0]), block.ffn[1]
            add = torch.relu(product(_norm(norm, x, add)))
        y = _norm(net.layer_norm2, x, add)
        return F.linear(y, self.weight, self.bias)[:, : self.outputs]


def _norm(norm: nn.LayerNorm, x: Tensor, add: Tensor | None = None) -> Tensor:
    return layer_norm(x, add, None, norm.weight, norm.bias, norm.eps)
