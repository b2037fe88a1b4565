"""OpenVLA-OFT's L1 regression head and its proprioception projector (arXiv 2502.19645)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class ResBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class MLPResNet(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, blocks: int = 2):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        made = nn.ModuleList(ResBlock(hidden_dim) for _ in range(blocks))
        self.mlp_resnet_blocks = cast("Sequence[ResBlock]", made)  # which is what iterating gives
        self.layer_norm2 = nn.LayerNorm(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1ActionHead(nn.Module):
    """Reads the hidden states of one chunk step's slots (7 in OpenVLA-OFT) side by side."""

    def __init__(self, hidden_size: int, action_dim: int, slots_per_step: int):
        super().__init__()
        self.slots_per_step = slots_per_step
        self.model = MLPResNet(hidden_size * slots_per_step, hidden_size, action_dim)

    def forward(self, hidden: Tensor) -> Tensor:  # [B, slots, H] -> [B, chunk, dim]
        return self.model(hidden.unflatten(1, (-1, self.slots_per_step)).flatten(2))


class ProprioProjector(nn.Module):
    """Normalised proprioception -> one embedding that follows the patches."""

    def __init__(self, proprio_dim: int, hidden_size: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # [B, P] -> [B, 1, H]
        return self.fc2(F.gelu(self.fc1(x)))[:, None]
