"""Vision encoders and projector. Parameter names are those of released checkpoints (timm's)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.openvla.config import VisionEncoderConfig

EPS = 1e-6  # of every LayerNorm in both vision encoders


class PatchEmbed(nn.Module):
    """Cut the image into patches by one convolution."""

    def __init__(self, c: VisionEncoderConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, c.embed_dim, c.patch_size, stride=c.patch_size)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, patches, D]
        return self.proj(x).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Stride-2 convolutions down to the patch grid, then a 1x1 one to the embedding width."""

    def __init__(self, c: VisionEncoderConfig):
        super().__init__()
        halvings = c.patch_size.bit_length() - 1
        widths = [c.embed_dim >> (halvings - 1 - i) for i in range(halvings)]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip([3, *widths], widths, strict=False)):
            # The first convolution sees 6x6 pixels: thin edges are where positions come from.
            kernel, padding = (6, 2) if i == 0 else (3, 1)
            layers += [nn.Conv2d(a, b, kernel, 2, padding), nn.GroupNorm(8, b), nn.GELU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(widths[-1], c.embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.convs(x)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, c: VisionEncoderConfig):
        super().__init__()
        self.heads = c.num_heads
        self.qkv = nn.Linear(c.embed_dim, 3 * c.embed_dim)
        self.proj = nn.Linear(c.embed_dim, c.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, c: VisionEncoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(c.embed_dim, c.mlp_hidden)
        self.fc2 = nn.Linear(c.mlp_hidden, c.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # the exact (erf) GELU, in both vision encoders


class LayerScale(nn.Module):
    def __init__(self, c: VisionEncoderConfig):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(c.embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, c: VisionEncoderConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(c.embed_dim, EPS)
        self.attn = Attention(c)
        self.ls1 = LayerScale(c) if c.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(c.embed_dim, EPS)
        self.mlp = Mlp(c)
        self.ls2 = LayerScale(c) if c.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionEncoder(nn.Module):
    """Patch features after the second-to-last block, without a final norm, prefix stripped."""

    def __init__(self, c: VisionEncoderConfig):
        super().__init__()
        self.prefix = c.prefix_tokens
        self.patch_embed = ConvStem(c) if c.stem == "conv" else PatchEmbed(c)
        self.pos_embed = nn.Parameter(torch.zeros(1, c.num_patches, c.embed_dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim)) if c.cls_token else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, c.reg_tokens, c.embed_dim)) if c.reg_tokens else None
        )
        blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.blocks = cast("Sequence[Block]", blocks)  # which is what iterating gives

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, patches, D]
        x = self.patch_embed(x) + self.pos_embed
        prefix = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None
        ]
        x = torch.cat([*prefix, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix :]


class VisionBackbone(nn.Module):
    """One or two vision encoders; every camera image goes through the same ones."""

    def __init__(self, encoders: tuple[VisionEncoderConfig, ...]):
        super().__init__()
        self.keys = [t.key for t in encoders]
        for encoder in encoders:
            self.add_module(encoder.key, VisionEncoder(encoder))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, images * encoders * 3, H, W] -> [B, images * patches, sum of encoder widths]"""
        images = pixels.split(3 * len(self.keys), dim=1)
        features = []
        for image in images:
            per_encoder = image.split(3, dim=1)
            encoders = [getattr(self, k)(x) for k, x in zip(self.keys, per_encoder, strict=True)]
            features.append(torch.cat(encoders, dim=2))
        return torch.cat(features, dim=1)


class Projector(nn.Module):
    """Maps vision features to the language model's embeddings."""

    fc1: nn.Linear

    def __init__(self, kind: str, vision_dim: int, llm_dim: int):
        super().__init__()
        widths = [vision_dim, llm_dim, llm_dim]
        if kind == "fused-gelu-mlp":
            widths = [vision_dim, 4 * vision_dim, llm_dim, llm_dim]
        self.layers = len(widths) - 1
        for i, (a, b) in enumerate(pairwise(widths), start=1):
            self.add_module(f"fc{i}", nn.Linear(a, b))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for i in range(2, self.layers + 1):
            x = getattr(self, f"fc{i}")(F.gelu(x))
        return x
