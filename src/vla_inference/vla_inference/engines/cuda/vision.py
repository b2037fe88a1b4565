"""Vision towers and projector on CUDA: both towers at once, small kernels between the products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.kernels.attention import attention
from vla_inference.kernels.layers import gelu_, layer_norm
from vla_inference.policies.openvla.model import VLA
from vla_inference.policies.openvla.vision import EPS, PatchEmbed, Projector, VisionTower


class CudaTower:
    """The tower's blocks on [n, D] of one picture; its own weights, nothing folded."""

    def __init__(self, tower: VisionTower):
        self.tower = tower

    def __call__(self, picture: Tensor) -> Tensor:  # [3, S, S] -> [patches, D]
        t = self.tower
        x = self._patches(picture) + t.pos_embed[0]
        prefix = [p[0] for p in (t.cls_token, t.reg_token) if p is not None]
        x = torch.cat([*prefix, x]) if prefix else x.contiguous()
        add = gamma = None
        for block in t.blocks:
            a, m = block.attn, block.mlp
            y = layer_norm(x, add, gamma, block.norm1.weight, block.norm1.bias, EPS)
            add = a.proj(attention(*a.qkv(y).view(len(x), 3, a.heads, -1).permute(1, 2, 0, 3)))
            gamma = getattr(block.ls1, "scale_factor", None)
            y = layer_norm(x, add, gamma, block.norm2.weight, block.norm2.bias, EPS)
            add = m.fc2(gelu_(m.fc1(y)))
            gamma = getattr(block.ls2, "scale_factor", None)
        x = x + (add if gamma is None else add * gamma)
        return x[t.prefix :]

    def _patches(self, picture: Tensor) -> Tensor:
        embed = self.tower.patch_embed
        if not isinstance(embed, PatchEmbed):
            return embed(picture[None])[0]
        # A convolution whose windows don't overlap is a product.
        d, c, p, _ = embed.proj.weight.shape
        side = picture.shape[-1] // p
        cut = picture.view(c, side, p, side, p).permute(1, 3, 0, 2, 4).reshape(side * side, -1)
        # 3 x 14 x 14 inputs are no multiple of 8, which the fast products want.
        spare = -cut.shape[1] % 8
        weight = F.pad(embed.proj.weight.view(d, -1), (0, spare))
        return F.linear(F.pad(cut, (0, spare)), weight, embed.proj.bias)


class CudaVision:
    """Normalised pictures [1, images * towers * 3, S, S] -> embeddings [1, P, H]"""

    def __init__(self, model: VLA):
        backbone = model.vision_backbone
        self.towers = [CudaTower(getattr(backbone, key)) for key in backbone.keys]
        self.projector: Projector = model.projector
        self.streams = [torch.cuda.Stream() for _ in self.towers[1:]]

    def __call__(self, pixels: Tensor) -> Tensor:
        pictures = pixels[0].split(3)
        towers = len(self.towers)
        features = []
        here = torch.cuda.current_stream()
        for stream in self.streams:
            stream.wait_stream(here)
        # The towers don't need each other, and neither fills the chip.
        for i, tower in enumerate(self.towers):
            with torch.cuda.stream(self.streams[i - 1] if i else here):
                features.append(torch.cat([tower(p) for p in pictures[i::towers]]))
        for stream in self.streams:
            here.wait_stream(stream)
        x = self.projector.fc1(torch.cat(features, dim=1))
        for i in range(2, self.projector.layers + 1):
            x = getattr(self.projector, f"fc{i}")(gelu_(x))
        return x[None]
