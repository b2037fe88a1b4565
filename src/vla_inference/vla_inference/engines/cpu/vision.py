"""Vision encoders and projector on CPU: channels last, activations fused into linear layers."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.engines.cpu.linear import PackedLinear
from vla_inference.openvla.config import VisionEncoderConfig
from vla_inference.openvla.model import VLA
from vla_inference.openvla.vision import EPS, Block, ConvStem, VisionEncoder

LAST = torch.channels_last


class CpuBlock:
    def __init__(self, block: Block, rows: int, packed: bool | None):
        a, m, dtype = block.attn, block.mlp, block.norm1.weight.dtype
        product = partial(PackedLinear, rows=rows, dtype=dtype, packed=packed)
        self.norm1, self.norm2, self.heads = block.norm1, block.norm2, a.heads
        self.qkv = product([a.qkv])
        scale = [getattr(s, "scale_factor", None) for s in (block.ls1, block.ls2)]
        self.proj = product([a.proj], writes=scale[0])
        self.fc1 = product([m.fc1])
        self.fc2 = product([m.fc2], writes=scale[1])

    def __call__(self, x: Tensor, b: int) -> Tensor:  # [B * n, D]
        y = norm(x, self.norm1)
        qkv = self.qkv(y).view(b, len(x) // b, 3, self.heads, -1)
        y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = self.proj.join(y.transpose(1, 2).reshape(x.shape), x, "add")
        return self.fc2.join(self.fc1(norm(x, self.norm2), "gelu"), x, "add")


class CpuVisionEncoder:
    """[B, 3, S, S], best with channels last -> [B, patches, D]"""

    def __init__(self, encoder: VisionEncoder, c: VisionEncoderConfig, packed: bool | None):
        self.encoder, self.c = encoder, c
        rows = c.num_patches + c.prefix_tokens
        embed = encoder.patch_embed
        self.convs: list[tuple[nn.Conv2d, Tensor, nn.GroupNorm]] = []
        self.proj: PackedLinear | None = None
        if isinstance(embed, ConvStem):
            for conv, group, _ in zip(*[iter(embed.convs)] * 3, strict=True):
                weight = conv.weight.detach().contiguous(memory_format=LAST)
                self.convs.append((conv, weight, group))
            flat = nn.Linear(embed.proj.in_channels, c.embed_dim)
            flat.weight = nn.Parameter(embed.proj.weight.detach().flatten(1), False)
            flat.register_parameter("bias", embed.proj.get_parameter("bias"))
            self.proj = PackedLinear([flat], c.num_patches, flat.weight.dtype, packed=packed)
        self.blocks = [CpuBlock(block, rows, packed) for block in encoder.blocks]

    def __call__(self, x: Tensor) -> Tensor:
        t, b = self.encoder, len(x)
        if self.proj is None:
            x = t.patch_embed(x) + t.pos_embed
        else:
            for conv, weight, group in self.convs:
                x = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)
                x = torch.ops.aten.gelu_(group_norm(x, group))
            x = x.permute(0, 2, 3, 1).reshape(b * self.c.num_patches, -1)
            x = self.proj.join(x, t.pos_embed.expand(b, -1, -1).reshape(len(x), -1), "add")
            x = x.view(b, self.c.num_patches, -1)
        prefix = [p.expand(b, -1, -1) for p in (t.cls_token, t.reg_token) if p is not None]
        if prefix:
            x = torch.cat([*prefix, x], dim=1)
        n = x.shape[1]
        x = x.reshape(b * n, -1)
        for block in self.blocks:
            x = block(x, b)
        return x.view(b, n, -1)[:, t.prefix :]


class CpuVision:
    """Both vision encoders and the projector; takes normalised images or bytes."""

    def __init__(self, model: VLA, packed: bool | None = None):
        c, backbone, projector = model.config, model.vision_backbone, model.projector
        pairs = list(zip(backbone.keys, c.encoders, strict=True))
        self.encoders = [CpuVisionEncoder(getattr(backbone, key), t, packed) for key, t in pairs]
        rows = c.head.num_images * c.num_patches
        layers = [getattr(projector, f"fc{i + 1}") for i in range(projector.layers)]
        self.dtype = self.encoders[0].encoder.pos_embed.dtype
        self.projector = [PackedLinear([y], rows, self.dtype, packed=packed) for y in layers]
        mean, std = (torch.tensor([getattr(t, n) for t in c.encoders]) for n in ("mean", "std"))
        self.scale, self.shift = 1 / (255 * std), -mean / std  # [vision encoders, 3]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised images [B, images * vision encoders * 3, S, S] -> [B, P, H]"""
        b, _, *size = pixels.shape
        several = pixels.view(b, -1, len(self.encoders), 3, *size).flatten(0, 1).unbind(1)
        return self._embed([x.contiguous(memory_format=LAST) for x in several], b)

    def from_bytes(self, images: Tensor) -> Tensor:
        """uint8 [B, images, S, S, 3] -> [B, P, H]"""
        # Whole rows of pixels at a time, which is how broadcasting is fast.
        side = images.shape[-2]
        x = images.flatten(0, 1).flatten(2).float()
        scaled = [
            torch.addcmul(b.repeat(side), x, a.repeat(side)).to(self.dtype)
            for a, b in zip(self.scale, self.shift, strict=True)
        ]
        several = [y.view(len(y), side, side, 3).permute(0, 3, 1, 2) for y in scaled]
        return self._embed(several, len(images))

    def _embed(self, images: list[Tensor], b: int) -> Tensor:
        """Input of each vision encoder: [B * images, 3, S, S]."""
        features = [encoder(x) for encoder, x in zip(self.encoders, images, strict=True)]
        x = features[0] if len(features) == 1 else torch.cat(features, dim=2)
        x = x.reshape(-1, x.shape[2])
        for layer in self.projector[:-1]:
            x = layer(x, "gelu")
        x = self.projector[-1](x)
        return x.view(b, len(x) // b, -1)


def group_norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    """[B, C, H, W] with channels last; float32 in place.

    PyTorch's own sums up one number after the other where channels are last, and takes
    E[x^2] - E[x]^2: even surfaces lose most digits of the variance. bfloat16 has fewer anyway.
    """
    groups, weight, bias = layer.num_groups, layer.weight, layer.bias
    if x.dtype != torch.float32:
        return F.group_norm(x, groups, weight, bias, layer.eps)
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).view(b, h * w, c)

    def mean(values: Tensor) -> Tensor:  # [B, h * w, c] -> [B, groups, 1], columns first
        columns = torch.matmul(values.new_full((1, h), 1 / h), values.view(b, h, w * c))
        return columns.view(b, w, groups, c // groups).mean((1, 3))[..., None]

    def spread(values: Tensor) -> Tensor:  # [B, groups, 1] -> [B, 1, c]
        return values.expand(b, groups, c // groups).reshape(b, 1, c)

    pixels.sub_(spread(mean(pixels)))
    scale = spread(mean(pixels.square()).add_(layer.eps).rsqrt_()) * weight
    torch.addcmul(bias, pixels, scale, out=pixels)
    return x


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, EPS)
