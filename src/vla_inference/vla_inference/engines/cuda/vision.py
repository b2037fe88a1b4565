"""Vision encoders and projector on CUDA: both encoders in parallel, fused small kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.kernels.attention import attention
from vla_inference.kernels.layers import gelu_, layer_norm
from vla_inference.openvla.model import VLA
from vla_inference.openvla.vision import EPS, PatchEmbed, Projector, VisionEncoder


class CudaVisionEncoder:
    """A vision encoder's blocks, with its own weights, on the rows [I * n, D] of all images."""

    def __init__(self, encoder: VisionEncoder):
        self.encoder = encoder

    def __call__(self, images: Tensor) -> Tensor:  # [I, 3, S, S] -> [I, patches, D]
        t, count = self.encoder, len(images)
        x = self._patches(images) + t.pos_embed
        prefix = [p.expand(count, -1, -1) for p in (t.cls_token, t.reg_token) if p is not None]
        x = torch.cat([*prefix, x], 1) if prefix else x.contiguous()
        n, x = x.shape[1], x.flatten(0, 1)
        add = gamma = None
        for block in t.blocks:
            a, m = block.attn, block.mlp
            y = layer_norm(x, add, gamma, block.norm1.weight, block.norm1.bias, EPS)
            qkv = a.qkv(y).view(count, n, 3, a.heads, -1).permute(2, 0, 3, 1, 4)
            add = a.proj(attention(*qkv))
            gamma = getattr(block.ls1, "scale_factor", None)
            y = layer_norm(x, add, gamma, block.norm2.weight, block.norm2.bias, EPS)
            add = m.fc2(gelu_(m.fc1(y)))
            gamma = getattr(block.ls2, "scale_factor", None)
        if add is not None:
            x = x + (add if gamma is None else add * gamma)
        return x.view(count, n, -1)[:, t.prefix :]

    def _patches(self, images: Tensor) -> Tensor:
        embed = self.encoder.patch_embed
        return (
            embed_patches(images, embed.proj) if isinstance(embed, PatchEmbed) else embed(images)
        )


def embed_patches(images: Tensor, by: nn.Conv2d) -> Tensor:
    """[I, 3, S, S] -> [I, patches, D]: a convolution whose windows don't overlap is a product."""
    d, c, p, _ = by.weight.shape
    count, side = len(images), images.shape[-1] // p
    cut = images[..., : side * p, : side * p].view(count, c, side, p, side, p)
    cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(count, side * side, -1)
    # 3 x 14 x 14 inputs are no multiple of 8, which the fast products want.
    spare = -cut.shape[-1] % 8
    weight = F.pad(by.weight.view(d, -1), (0, spare))
    return F.linear(F.pad(cut, (0, spare)), weight, by.bias)


class CudaVision:
    """Normalised images [B, images * vision encoders * 3, S, S] -> embeddings [B, P, H]"""

    def __init__(self, model: VLA):
        backbone = model.vision_backbone
        self.encoders = [CudaVisionEncoder(getattr(backbone, key)) for key in backbone.keys]
        self.projector: Projector = model.projector
        weight = model.projector.fc1.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.streams = [torch.cuda.Stream() for _ in self.encoders[1:]]

    def __call__(self, pixels: Tensor) -> Tensor:
        # [B, images, encoders, 3, S, S]
        each = pixels.unflatten(1, (-1, len(self.encoders), 3))
        features = []
        here = torch.cuda.current_stream()
        for stream in self.streams:
            stream.wait_stream(here)
        # The vision encoders don't need each other, and neither fills the chip.
        for i, encoder in enumerate(self.encoders):
            with torch.cuda.stream(self.streams[i - 1] if i else here):
                features.append(encoder(each[:, :, i].flatten(0, 1).contiguous()))
        for stream in self.streams:
            here.wait_stream(stream)
        x = self.projector.fc1(torch.cat(features, dim=-1))
        for i in range(2, self.projector.layers + 1):
            x = getattr(self.projector, f"fc{i}")(gelu_(x))
        return x.view(len(pixels), -1, x.shape[-1])
