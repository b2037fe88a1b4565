"""ACT on a CPU: batch norms folded into packed convolutions, constants computed once.

What no image and no state changes is computed at load: the latent's token, the positions' part of
queries and keys, and the decoder's first self-attention, which runs over zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.engines.cpu.conv import CpuConv, WinogradConv, suits_winograd
from vla_inference.engines.cpu.engine import keep_memory
from vla_inference.engines.cpu.linear import PackedLinear
from vla_inference.policies.act.backbone import Block, FrozenBatchNorm, ResNet
from vla_inference.policies.act.model import (
    ACT,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    map_positions,
)

PIXELS = 480 * 640  # of images that products are laid out for; others work as well
KEPT = 8  # sizes of images whose positions are kept

Product = Callable[[Sequence[nn.Module]], PackedLinear]


class Positions(NamedTuple):
    """What positions add: to queries and keys of each encoder layer [n, 2 W]; to the keys of the
    decoder's first layer [n, W]. places: the positions themselves [n, W]."""

    places: Tensor
    encoder: list[Tensor]
    decoder: Tensor


class CpuACT:
    """Answers as `ACT.forward` does with a latent of zero."""

    def __init__(self, model: ACT):
        keep_memory()
        self.model, c = model, model.config
        self.dtype = model.action_head.weight.dtype
        rows = 2 + c.cameras * PIXELS // 1024
        product = partial(PackedLinear, rows=rows, dtype=self.dtype)
        with torch.inference_mode():
            self.backbone = CpuResNet(model.backbone)
            seen = model.encoder_img_feat_input_proj
            self.project = product([linear(seen.weight.flatten(1), seen.get_parameter("bias"))])
            self.layers = [CpuEncoderLayer(x, c.activation, product) for x in model.encoder.layers]
            self.decoder = CpuDecoder(model, product)
        self._positions = lru_cache(KEPT)(self._find_positions)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], state: Tensor | None) -> Tensor:
        model, b = self.model, len(images[0])
        maps = self._maps(images)
        tokens = [model.encoder_latent_input_proj.bias.expand(b, 1, -1)]
        if state is not None:
            tokens.append(model.encoder_robot_state_input_proj(state)[:, None])
        for seen in maps:
            rows = seen.permute(0, 2, 3, 1).reshape(-1, seen.shape[1])
            tokens.append(self.project(rows).view(b, -1, model.config.width))
        positions = self._positions(tuple((seen.shape[2], seen.shape[3]) for seen in maps))
        x = torch.cat(tokens, 1)
        for layer, part in zip(self.layers, positions.encoder, strict=True):
            x = layer(x, part)
        return model.action_head(self.decoder(model.encoder.norm(x), positions))

    def _maps(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features of each camera; cameras of one size go together."""
        if len({image.shape for image in images}) > 1:
            return [self.backbone(image) for image in images]
        return list(self.backbone(torch.cat(list(images))).split(len(images[0])))

    def _find_positions(self, sizes: tuple[tuple[int, int], ...]) -> Positions:
        width, device = self.model.config.width, torch.device("cpu")
        tables = [map_positions(*size, width, device).to(self.dtype) for size in sizes]
        places = torch.cat([self.model.encoder_1d_feature_pos_embed.weight, *tables])
        parts = [F.linear(places, layer.at) for layer in self.layers]
        return Positions(places, parts, F.linear(places, self.decoder.at))


class CpuFeedForward:
    def __init__(self, layer: FeedForward, activation: str, product: Product):
        self.activation = activation
        self.linear1, self.linear2 = product([layer.linear1]), product([layer.linear2])

    def __call__(self, x: Tensor) -> Tensor:
        y = self.linear2(self.linear1(x.flatten(0, 1), self.activation))
        return y.view(x.shape)


class CpuEncoderLayer:
    def __init__(self, layer: EncoderLayer, activation: str, product: Product):
        self.layer, attention = layer, layer.self_attn
        self.heads = attention.num_heads
        self.at = attention.in_proj_weight[: -attention.embed_dim]  # of queries and keys
        self.qkv = product([linear(attention.in_proj_weight, attention.in_proj_bias)])
        self.out = product([attention.out_proj])
        self.feed_forward = CpuFeedForward(layer, activation, product)

    def __call__(self, x: Tensor, part: Tensor) -> Tensor:
        """x: [B, n, W]. part: of queries and keys, from positions [n, 2 W]"""

        def attend(y: Tensor) -> Tensor:
            qkv = self.qkv(y.flatten(0, 1)).view(*y.shape[:2], -1)
            qkv[..., : part.shape[1]] += part
            q, k, v = split(qkv, 3, self.heads)
            return self.out(join(F.scaled_dot_product_attention(q, k, v))).view(y.shape)

        layer = self.layer
        return layer.add(layer.add(x, layer.norm1, attend), layer.norm2, self.feed_forward)


class CpuDecoder:
    """Its first layer has constant queries, and packed products; further ones are the model's."""

    def __init__(self, model: ACT, product: Product):
        self.decoder, self.queries = model.decoder, model.decoder_pos_embed.weight
        layer, attention = model.decoder.layers[0], model.decoder.layers[0].multihead_attn
        self.heads = attention.num_heads
        to_q, self.at, to_v = attention.in_proj_weight.chunk(3)
        q_bias, *kv_bias = attention.in_proj_bias.chunk(3)
        self.begin = begin_of(layer, self.queries)
        seen = layer.norm2(self.begin) if layer.pre_norm else self.begin
        (self.q,) = split(F.linear(seen + self.queries, to_q, q_bias), 1, self.heads)
        self.kv = product([linear(torch.cat([self.at, to_v]), torch.cat(kv_bias))])
        self.out = product([attention.out_proj])
        self.feed_forward = CpuFeedForward(layer, model.config.activation, product)

    def __call__(self, read: Tensor, positions: Positions) -> Tensor:
        """The encoder's output [B, n, W] -> states of the steps [B, T, W]"""
        layer, b = self.decoder.layers[0], len(read)
        kv = self.kv(read.flatten(0, 1)).view(b, read.shape[1], -1)
        kv[..., : read.shape[2]] += positions.decoder
        k, v = split(kv, 2, self.heads)
        looked = F.scaled_dot_product_attention(self.q.expand(b, -1, -1, -1), k, v)
        begin = self.begin.expand(b, -1, -1)
        x = layer.add(begin, layer.norm2, lambda _: self.out(join(looked)).view(begin.shape))
        x = layer.add(x, layer.norm3, self.feed_forward)
        for further in self.decoder.layers[1:]:
            x = further(x, self.queries, read, positions.places)
        return self.decoder.norm(x)


def begin_of(layer: DecoderLayer, queries: Tensor) -> Tensor:
    """What the first layer's self-attention makes of zeros [1, T, W]: queries [T, W]"""

    def attend(y: Tensor) -> Tensor:
        return layer.self_attn(y + queries, y + queries, y, need_weights=False)[0]

    return layer.add(torch.zeros_like(queries)[None], layer.norm1, attend)


class CpuBlock:
    def __init__(self, block: Block):
        self.convolutions = [packed(conv, norm) for conv, norm in block.convolutions()]
        self.shortcut = None
        if block.downsample is not None:
            conv, norm = cast("tuple[nn.Conv2d, FrozenBatchNorm]", tuple(block.downsample))
            self.shortcut = CpuConv(conv, *norm.affine())

    def __call__(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x, relu=False)
        *first, last = self.convolutions
        for convolution in first:
            x = convolution(x)
        return last.join(x, shortcut)


class CpuResNet:
    """Answers as `ResNet.forward` does."""

    def __init__(self, resnet: ResNet):
        self.stem = CpuConv(resnet.conv1, *resnet.bn1.affine())
        stages = cast("list[list[Block]]", resnet.stages())
        self.blocks = [CpuBlock(block) for stage in stages for block in stage]

    def __call__(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return x


def packed(conv: nn.Conv2d, norm: FrozenBatchNorm) -> CpuConv | WinogradConv:
    return (WinogradConv if suits_winograd(conv) else CpuConv)(conv, *norm.affine())


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of these parameters: [N, K] and [N]"""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = (nn.Parameter(p.detach(), False) for p in (weight, bias))
    return layer


def split(x: Tensor, count: int, heads: int) -> Tensor:
    """[B, n, count x heads x head] -> [count, B, heads, n, head]"""
    return x.unflatten(-1, (count, heads, -1)).permute(2, 0, 3, 1, 4)


def join(x: Tensor) -> Tensor:
    """[B, heads, n, head] -> rows [B n, heads x head]"""
    return x.transpose(1, 2).flatten(2).flatten(0, 1)
