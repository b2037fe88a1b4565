"""Attention over a cached prefix, with rotary embeddings.

Shapes: B observations, n tokens, W the language model's width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ROPE_BASE = 10_000.0  # whatever the language model's own configuration says


class Prefix(NamedTuple):
    """What the expert reads of an observation.

    keys, values: of each layer [B, kv heads, n, head]; keys are rotated.
    mask: bool [B, n]; False: padding, which nothing attends to.
    hidden: the language model's output [B, n, W], where it was asked for.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    hidden: Tensor | None = None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, n, heads x head] -> [B, heads, n, head]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of several query heads to each key head. mask: bool [B, 1, queries, keys]"""
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


def rotation(positions: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embeddings, float32 [B, 1, n, head / 2]"""
    exponents = torch.arange(head // 2, device=positions.device, dtype=torch.float32) * 2 / head
    angles = positions[:, None, :, None].float() / ROPE_BASE**exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of halves: x [B, heads, n, head]"""
    (cos, sin), (a, b) = turn, x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
