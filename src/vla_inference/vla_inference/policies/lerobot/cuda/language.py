"""The language model's pass over a prefix on CUDA: it leaves keys and values in a static cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_inference.engines.cuda.llama import FusedLayer
from vla_inference.kernels.cached_attention import attend_cached
from vla_inference.kernels.few_rows import Parts
from vla_inference.kernels.layers import rms_norm, split_heads

Rotary = tuple[Tensor, Tensor]  # cosines and sines, float32 [n, head / 2]


@dataclass(frozen=True)
class Heads:
    """What attends: `heads` of queries, `kv_heads` of keys, each `size` numbers wide."""

    heads: int
    kv_heads: int
    size: int

    @property
    def turned(self) -> int:
        """Numbers that rotary embeddings turn, of queries and keys."""
        return (self.heads + self.kv_heads) * self.size


@dataclass(frozen=True)
class Span:
    """Where a prefix stands in the cache: `slots` of it, of which those from `length` (int32 [1],
    on the device) to `resumes` are padding."""

    length: Tensor
    resumes: int
    slots: int


class CudaLanguage:
    """The layers, and the cache [layers, 2, kv heads, slots, head].

    last_alone: the last slot of a prefix is seen by itself only.
    """

    def __init__(
        self,
        layers: Sequence[FusedLayer],
        heads: Heads,
        eps: float,
        slots: int,
        like: Tensor,
        parts: Parts,
        last_alone: bool = False,
    ):
        self.layers, self.heads, self.eps, self.last_alone = layers, heads, eps, last_alone
        shape = (len(layers), 2, heads.kv_heads, slots, heads.size)
        self.cache = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.parts = parts

    def read(self, x: Tensor, rotary: Rotary, span: Span) -> None:
        """Fills the cache with the prefix x [n, W], which is overwritten."""
        add, n = None, len(x)
        for i, layer in enumerate(self.layers):
            normed, scales = rms_norm(x, add, layer.norm1, self.eps, layer.qkv.activations)
            keys, values = self.cache[i]
            qkv = layer.qkv.matmul(normed, scales)
            q = split_heads(qkv, rotary, keys, values, self.heads.heads)
            if i + 1 == len(self.layers):
                return  # nothing reads what the last layer would answer
            y = attend_cached(
                q.transpose(0, 1).flatten(1),
                keys[:, :n],
                values[:, :n],
                span.length,
                self.parts,
                heads=self.heads.heads,
                resumes=span.resumes,
                last_alone=self.last_alone,
            )
            add = layer.after_attention(x, y, self.eps)
