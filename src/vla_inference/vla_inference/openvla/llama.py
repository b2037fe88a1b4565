"""The Llama decoder, or Qwen2.5's, fed by embeddings. Names are those of transformers'
checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.openvla.config import LlamaConfig

# Keys and values of each layer so far: [B, heads, positions, head_dim].
KVCache = list[tuple[Tensor, Tensor]]


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rotary(positions: Tensor, c: LlamaConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [..., positions, head_dim] in float32."""
    steps = torch.arange(0, c.head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() / c.rope_theta ** (steps / c.head_dim)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class SelfAttention(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
        )
        self.q_proj = nn.Linear(c.hidden_size, self.heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, self.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, self.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(self.heads * c.head_dim, c.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        causal: bool,
        past: Any,
    ) -> tuple[Tensor, Any]:
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, -1)), (k, v)


class FeedForward(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.self_attn = SelfAttention(c)
        self.mlp = FeedForward(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, *seen: Any) -> tuple[Tensor, Any]:
        """seen: what attention takes beside x."""
        y, kv = self.self_attn(self.input_layernorm(x), *seen)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), kv


class LlamaModel(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.layers = cast("Sequence[Layer]", layers)  # which is what iterating gives
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        *,
        bidirectional: bool = False,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, KVCache]:
        """Embeddings [B, n, H] -> normed hidden states [B, n, H] and the grown cache.

        bidirectional: every position sees every other (OpenVLA-OFT), instead of the past alone.
        padding: bool [B, n], True where a position holds no token and must not be seen.
        """
        begin = cache[0][0].shape[2] if cache else 0
        positions = torch.arange(begin, begin + x.shape[1], device=x.device)
        cos, sin = (t.to(x.dtype) for t in rotary(positions, self.config))
        mask, causal = None, not bidirectional and x.shape[1] > 1
        if causal and begin:  # several new tokens after a prefix: a square mask would not do
            every = torch.arange(begin + x.shape[1], device=x.device)
            mask, causal = every[None, :] <= positions[:, None], False
        if padding is not None:
            seen = ~padding[:, None, None, :]
            if causal:
                seen = seen & (positions[None, :] <= positions[:, None])
            mask, causal = seen, False
        grown: KVCache = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, cos, sin, mask, causal, cache[i] if cache else None)
            grown.append(kv)
        return self.norm(x), grown


class LanguageModel(nn.Module):
    """`model` and `lm_head`, as the checkpoints nest them; tied embeddings need no `lm_head`."""

    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.model = LlamaModel(c)
        self.tied = c.tie_word_embeddings
        if not self.tied:
            self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    @property
    def output(self) -> Tensor:
        """The weight that gives the logits [vocabulary, H]."""
        return self.model.embed_tokens.weight if self.tied else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> [..., vocabulary]"""
        return F.linear(hidden, self.output)
