"""The Llama decoder on CPU: norms folded into linear layers, rotations as complex numbers.

Rows of queries and keys are put in another order, so that the two numbers that rotate together
lie side by side; what they score against each other stays the same.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.engines.cpu.linear import PackedLinear
from vla_inference.openvla.config import LlamaConfig
from vla_inference.openvla.llama import Layer, rotary
from vla_inference.openvla.model import VLA

# Keys and values of each layer [layers, 2, B, positions, heads, head_dim] and how many there are.
Cache = tuple[Tensor, int]


class CpuLayer:
    def __init__(self, layer: Layer, c: LlamaConfig, rows: int, packed: bool | None):
        a, m = layer.self_attn, layer.mlp
        first, second = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        keys = pairs(c.num_key_value_heads, c.head_dim)
        both = torch.cat([keys, torch.arange(len(keys), 2 * len(keys))])
        product = partial(PackedLinear, rows=rows, dtype=first.dtype, packed=packed)
        queries = pairs(c.num_attention_heads, c.head_dim)
        self.q = product([a.q_proj], reads=first, order=queries)
        self.kv = product([a.k_proj, a.v_proj], reads=first, order=both)
        self.o = product([a.o_proj])
        self.gate = product([m.gate_proj], reads=second)
        self.up = product([m.up_proj], reads=second)
        self.down = product([m.down_proj])


class CpuLlama:
    """The decoder on CPU. rows: usual positions per pass. packed: as for `PackedLinear`."""

    def __init__(self, model: VLA, rows: int, packed: bool | None = None):
        self.c, llama = model.config.llm, model.language_model.model
        self.layers = [CpuLayer(layer, self.c, rows, packed) for layer in llama.layers]
        self.norm = llama.norm.weight
        self._cached_rotations = torch.empty(0, 1, 1)

    def encode(
        self, x: Tensor, padding: Tensor | None = None, wanted: slice | None = None
    ) -> Tensor:
        """Bidirectional attention: [B, n, H] -> normed states [B, n, H].

        wanted: the positions whose states are read; the last layer computes no others.
        """
        mask = None if padding is None else ~padding[:, None, None, :]
        return self._run(x, causal=False, mask=mask, wanted=wanted)

    def prefill(self, x: Tensor, room: int) -> tuple[Tensor, Cache]:
        """[B, n, H] -> normed state of the last position [B, H], and a cache with spare room."""
        c, (b, n, _) = self.c, x.shape
        shape = (len(self.layers), 2, b, n + room, c.num_key_value_heads, c.head_dim)
        cache = x.new_empty(shape)
        hidden = self._run(x, causal=n > 1, wanted=slice(n - 1, n), cache=cache)
        return hidden[:, 0], (cache, n)

    def decode(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """[B, 1, H] -> its normed state [B, H]; extends the cache, or moves it when full."""
        store, length = cache
        if length == store.shape[3]:
            store = torch.cat([store, torch.empty_like(store)], dim=3)
        hidden = self._run(x, causal=False, cache=store, begin=length)
        return hidden[:, 0], (store, length + 1)

    def _run(
        self,
        x: Tensor,
        *,
        causal: bool,
        mask: Tensor | None = None,
        wanted: slice | None = None,
        cache: Tensor | None = None,
        begin: int = 0,
    ) -> Tensor:
        c, (b, n, _) = self.c, x.shape
        heads, kv_heads, m = c.num_attention_heads, c.num_key_value_heads, n
        rotations = rotations_q = self._rotations(begin + n)[begin:]
        x = x.reshape(b * n, -1)
        for i, layer in enumerate(self.layers):
            y = self._normed(x)
            k, v = layer.kv(y).view(b, n, 2, kv_heads, -1).unbind(2)
            if wanted is not None and i == len(self.layers) - 1:
                x, y = (t.view(b, n, -1)[:, wanted] for t in (x, y))
                m, rotations_q, causal = x.shape[1], rotations[wanted], False
                x, y = x.reshape(b * m, -1), y.reshape(b * m, -1)
            q, k = rotate(layer.q(y).view(b, m, heads, -1), rotations_q), rotate(k, rotations)
            if cache is not None:
                cache[i, 0, :, begin : begin + n], cache[i, 1, :, begin : begin + n] = k, v
                k, v = cache[i, :, :, : begin + n]
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=causal, enable_gqa=heads != kv_heads
            )
            x = layer.o.join(y.transpose(1, 2).reshape(b * m, -1), x, "add")
            y = self._normed(x)
            y = layer.up.join(y, layer.gate(y, "swish"), "mul")
            x = layer.down.join(y, x, "add")
        return (self._normed(x) * self.norm).view(b, m, -1)

    def _normed(self, x: Tensor) -> Tensor:
        y = x.float()
        squares = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_()
        scale = squares.mul_(1 / y.shape[-1]).add_(self.c.rms_norm_eps).rsqrt_()
        return (y * scale).to(x.dtype)

    def _rotations(self, count: int) -> Tensor:
        """[count, 1, head_dim / 2], complex"""
        if len(self._cached_rotations) < count:
            cos, sin = rotary(torch.arange(max(256, 2 * count)), self.c)
            half = self.c.head_dim // 2
            self._cached_rotations = torch.complex(cos[:, :half], sin[:, :half])[:, None]
        return self._cached_rotations[:count]


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Applies rotary embeddings to [B, n, heads, head_dim], with pairs side by side."""
    y = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * rotations
    return torch.view_as_real(y).flatten(-2).to(x.dtype)


def pairs(heads: int, dim: int) -> Tensor:
    """Row order of a rotated projection in which i and i + dim / 2 are neighbours."""
    one = torch.arange(dim).view(2, -1).T.flatten()
    return (torch.arange(heads)[:, None] * dim + one).flatten()
