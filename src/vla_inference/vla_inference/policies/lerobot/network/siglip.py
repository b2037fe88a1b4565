"""SigLIP, the vision encoder of SmolVLM and PaliGemma.

Source: arXiv:2303.15343; behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.errors import CheckpointError
from vla_inference.policies.lerobot.network.attention import join_heads, split_heads
from vla_inference.policies.lerobot.settings import LAYERS, Settings


@dataclass(frozen=True)
class VisionDims:
    """SigLIP: images of `image` pixels, cut into patches of `patch`."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    image: int = 512
    patch: int = 16
    eps: float = 1e-6


def read_vision(says: Settings, eps: float, shuffle: int = 1) -> VisionDims:
    """The sizes by transformers' names. shuffle: blocks of as many patches become one token."""
    dims = VisionDims(
        says.count("hidden_size"),
        says.count("num_hidden_layers", most=LAYERS),
        says.count("num_attention_heads"),
        says.count("intermediate_size"),
        says.count("image_size"),
        says.count("patch_size"),
        eps,
    )
    if dims.width % dims.heads or dims.image < dims.patch or dims.image // dims.patch % shuffle:
        raise CheckpointError(
            f"{says.where}: a width of {dims.width} for {dims.heads} heads, or images of "
            f"{dims.image} pixels in patches of {dims.patch}, in blocks of {shuffle}",
            "each must be a multiple of the next",
        )
    return dims


class VisionLayer(nn.Module):
    def __init__(self, c: VisionDims):
        super().__init__()
        self.heads = c.heads
        self.norm1, self.norm2 = nn.LayerNorm(c.width, c.eps), nn.LayerNorm(c.width, c.eps)
        self.q, self.k = nn.Linear(c.width, c.width), nn.Linear(c.width, c.width)
        self.v, self.out = nn.Linear(c.width, c.width), nn.Linear(c.width, c.width)
        self.fc1, self.fc2 = nn.Linear(c.width, c.mlp), nn.Linear(c.mlp, c.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (split_heads(part(y), self.heads) for part in (self.q, self.k, self.v))
        x = x + self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class VisionEncoder(nn.Module):
    """Images [B, 3, S, S] in -1 to 1 -> features of their patches [B, patches, width]"""

    def __init__(self, c: VisionDims):
        super().__init__()
        self.patch = nn.Conv2d(3, c.width, c.patch, stride=c.patch)
        self.position = nn.Embedding((c.image // c.patch) ** 2, c.width)
        layers = nn.ModuleList(VisionLayer(c) for _ in range(c.layers))
        self.layers = cast("Sequence[VisionLayer]", layers)
        self.norm = nn.LayerNorm(c.width, c.eps)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position.weight
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
