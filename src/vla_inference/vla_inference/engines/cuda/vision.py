"""Vision encoders and projector on CUDA: both encoders in parallel, fused small kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.kernels.attention import attention
from vla_inference.kernels.layers import gelu_, layer_norm
from vla_inference.policies.openvla.model import VLA
from vla_inference.policies.openvla.vision import EPS, PatchEmbed, Projector, VisionEncoder


class CudaVisionEncoder:
    """A vision encoder's blocks on [n, D] of one image, with its own weights."""

    def __init__(self, encoder: VisionEncoder):
        self.encoder = encoder

    def __call__(self, image: Tensor) -> Tensor:  # [3, S, S] -> [patches, D]
        t = self.encoder
        x = self._patches(image) + t.pos_embed[0]
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
        if add is not None:
            x = x + (add if gamma is None else add * gamma)
        return x[t.prefix :]

    def _patches(self, image: Tensor) -> Tensor:
        embed = self.encoder.patch_embed
        if not isinstance(embed, PatchEmbed):
            return embed(image[None])[0]
        # A convolution whose windows don't overlap is a product.
        d, c, p, _ = embed.proj.weight.shape
        side = image.shape[-1] // p
        cut = image.view(c, side, p, side, p).permute(1, 3, 0, 2, 4).reshape(side * side, -1)
        # 3 x 14 x 14 inputs are no multiple of 8, which the fast products want.
        spare = -cut.shape[1] % 8
        weight = F.pad(embed.proj.weight.view(d, -1), (0, spare))
        return F.linear(F.pad(cut, (0, spare)), weight, embed.proj.bias)


class CudaVision:
    """Normalised images [1, images * vision encoders * 3, S, S] -> embeddings [1, P, H]"""

    def __init__(self, model: VLA):
        backbone = model.vision_backbone
        self.encoders = [CudaVisionEncoder(getattr(backbone, key)) for key in backbone.keys]
        self.projector: Projector = model.projector
        self.streams = [torch.cuda.Stream() for _ in self.encoders[1:]]

    def __call__(self, pixels: Tensor) -> Tensor:
        images = pixels[0].split(3)
        encoders = len(self.encoders)
        features = []
        here = torch.cuda.current_stream()
        for stream in self.streams:
            stream.wait_stream(here)
        # The vision encoders don't need each other, and neither fills the chip.
        for i, encoder in enumerate(self.encoders):
            with torch.cuda.stream(self.streams[i - 1] if i else here):
                features.append(torch.cat([encoder(p) for p in images[i::encoders]]))
        for stream in self.streams:
            here.wait_stream(stream)
        x = self.projector.fc1(torch.cat(features, dim=1))
        for i in range(2, self.projector.layers + 1):
            x = getattr(self.projector, f"fc{i}")(gelu_(x))
        return x[None]
