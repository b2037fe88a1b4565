"""The Llama decoder for one observation on CUDA: fused weights, static cache, few kernels.

A pass over many positions is bound by arithmetic and uses the libraries' matrix products; a
decode pass is bound by bytes and uses `kernels.gemv`, five kernels a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vla_inference.engines.cuda.weights import QuantWeight, make_weight
from vla_inference.errors import VlaError
from vla_inference.kernels.activation_quant import encode
from vla_inference.kernels.attention import Attend, attention
from vla_inference.kernels.launch_settings import tuned
from vla_inference.kernels.layers import (
    Product,
    choose,
    gate_mul,
    quantize_rows,
    rms_norm,
    split_heads,
)
from vla_inference.openvla.llama import Layer, rotary
from vla_inference.openvla.model import VLA


class FusedLayer:
    """A block of a decoder, its weights joined where they read the same input.

    qkv, out, gate_up, down: its linear layers. norms: weights of both RMSNorms. matmul_by: see
    `weights.QuantWeight`. by: the gate's activation, see `layers.activated`.
    """

    def __init__(
        self,
        qkv: Sequence[nn.Module],
        out: nn.Module,
        gate_up: Sequence[nn.Module],
        down: nn.Module,
        norms: tuple[Tensor, Tensor],
        matmul_by: str,
        dtype: torch.dtype,
        by: str = "silu",
    ):
        self.qkv = make_weight(qkv, matmul_by, dtype)
        biased: list[Tensor] = [cast("nn.Linear", layer).bias for layer in qkv]
        # Of queries, keys and values: Qwen2.5's.
        self.bias = torch.cat(biased) if biased[0] is not None else None
        self.o = make_weight([out], matmul_by, dtype)
        self.gate_up = make_weight(gate_up, matmul_by, dtype)
        self.down = make_weight([down], matmul_by, dtype)
        # Norm weights act on the inputs, where they cost nothing: folded into 16-bit weights they
        # would round these a second time.
        self.norm1, self.norm2 = (norm.float() for norm in norms)
        self.inner = cast("nn.Linear", down).in_features
        self.dtype, self.by = dtype, by

    @classmethod
    def of_llama(cls, layer: Layer, matmul_by: str, dtype: torch.dtype) -> FusedLayer:
        a, m = layer.self_attn, layer.mlp
        return cls(
            [a.q_proj, a.k_proj, a.v_proj],
            a.o_proj,
            [m.gate_proj, m.up_proj],
            m.down_proj,
            (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
            matmul_by,
            dtype,
        )

    def after_attention(self, x: Tensor, y: Tensor, eps: float) -> Product:
        """What the layer adds to the residual x [n, H] (which takes up the attention's part), from
        the heads' results y on."""
        add = self.o.matmul(*quantize_rows(y, self.o.activations))
        normed, scales = rms_norm(x, add, self.norm2, eps, self.gate_up.activations)
        both = self.gate_up.matmul(normed, scales)
        return self.down.matmul(*gate_mul(both, self.dtype, self.down.activations, self.by))


def check_bins(bins: int) -> None:
    """The kernel that chooses among action tokens takes a power of two of them."""
    if bins & (bins - 1):
        raise VlaError(
            f"the model has {bins} action tokens, not a power of two", "use engine plain"
        )


class CudaLlama:
    """The decoder on CUDA. positions: size of the cache. matmul_by: see `weights.QuantWeight`."""

    def __init__(self, model: VLA, positions: int, matmul_by: str):
        c = model.config.llm
        check_bins(model.config.n_action_bins)
        words = model.language_model.model.embed_tokens.weight
        self.c, self.dtype, self.device = c, words.dtype, words.device
        self.words, self.eps, self.heads = words, c.rms_norm_eps, c.num_attention_heads
        self.layers = []
        for layer in model.language_model.model.layers:
            self.layers.append(FusedLayer.of_llama(layer, matmul_by, self.dtype))
        self.norm = model.language_model.model.norm.weight.float()
        end, bins = model.config.action_vocab_end, model.config.n_action_bins
        self.first = end - bins
        self.head = model.language_model.output[end - bins : end]
        every = torch.arange(positions, device=self.device)
        half = c.head_dim // 2
        self.rotary = tuple(t[:, :half].contiguous() for t in rotary(every, c))
        shape = (len(self.layers), 2, c.num_key_value_heads, positions, c.head_dim)
        self.coded = self._coded_kind()
        self.attend = Attend(self.heads, c.head_dim, positions, self.device)
        self.cache = torch.zeros(shape, dtype=self.dtype, device=self.device)

    def prefill(self, x: Tensor) -> Tensor:
        """Embeddings [n, H] (overwritten) -> state of the last position, before the norm [H].

        In the last layer only that position goes on beyond keys and values.
        """
        n = len(x)
        add = None
        for i, layer in enumerate(self.layers[:-1]):
            x, add = self._layer(i, layer, x, add, True)
        layer, i = self.layers[-1], len(self.layers) - 1
        normed, scales = rms_norm(x, add, layer.norm1, self.eps, layer.qkv.activations)
        keys, values = self.cache[i]
        qkv = layer.qkv.matmul(normed, scales)
        split_heads(qkv, self.rotary, keys, values, self.heads, bias=layer.bias)
        return self._decode_layer(i, layer, x[n - 1], n - 1, alone=True)

    def decode(self, x: Tensor, position: int) -> Tensor:
        """Embedding [H] of one more position -> its state, before the norm [H]."""
        if self.coded:
            return self._decode_coded(x, position)
        for i, layer in enumerate(self.layers):
            x = self._decode_layer(i, layer, x, position)
        return x

    def _decode_coded(self, x: Tensor, position: int) -> Tensor:
        """A decode pass in which each kernel writes the 8-bit codes that the next one reads."""
        kind, c, new = self.coded, self.c, self._new
        codes = encode(x, kind, self.layers[0].norm1)
        following = [layer.norm1 for layer in self.layers[1:]] + [None]
        for i, (layer, norm) in enumerate(zip(self.layers, following, strict=True)):
            qkv = new((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim)
            layer.qkv.matvec_coded(
                codes, c.hidden_size, qkv, normed=True, eps=self.eps, residual=layer.bias
            )
            keys, values = self.cache[i]
            y, codes = self.attend(qkv, self.rotary, keys, values, position, kind)
            out = new(c.hidden_size)
            codes = layer.o.matvec_coded(
                codes, len(y), out, residual=x, code=True, norm=layer.norm2
            )
            x, y = out, new(layer.inner)
            codes = layer.gate_up.matvec_coded(
                codes, c.hidden_size, y, normed=True, eps=self.eps, pair=True, code=True
            )
            out = new(c.hidden_size)
            codes = layer.down.matvec_coded(
                codes, layer.inner, out, residual=x, code=norm is not None, norm=norm
            )
            x = out
        return x

    def encode(self, x: Tensor, kept: slice = slice(None)) -> Tensor:
        """Bidirectional attention: [n, H] (overwritten) -> normed states of the positions kept.

        In the last layer only the kept positions go on beyond keys and values.
        """
        add = None
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x, add = self._layer(i, layer, x, add, False, kept if i == last else slice(None))
        return rms_norm(x, add, self.norm, self.eps)[0]

    def read_token(self, state: Tensor, token: Tensor, hidden: Tensor, embedding: Tensor) -> None:
        """From a state before the norm [H]: its token, its normed state, the token's embedding."""
        hidden.copy_(rms_norm(state[None], None, self.norm, self.eps)[0][0])
        logits = self._dense_one(self.head, hidden)
        choose(logits, self.words, token, embedding, self.first)

    def _dense_one(self, weight: Tensor, x: Tensor) -> Tensor:
        from vla_inference.kernels.gemv import gemv

        return gemv(x, weight, torch.empty(len(weight), device=self.device))

    def _layer(self, i, layer: FusedLayer, x, add, causal: bool, kept: slice = slice(None)):
        """One layer. The residual x does not yet include the last layer's output `add`."""
        normed, scales = rms_norm(x, add, layer.norm1, self.eps, layer.qkv.activations)
        keys, values = self.cache[i]
        n = len(x)
        qkv = layer.qkv.matmul(normed, scales)
        q = split_heads(qkv, self.rotary, keys, values, self.heads, bias=layer.bias)
        y = attention(q, keys[:, :n], values[:, :n], causal)[kept]
        x = x[kept]
        return x, layer.after_attention(x, y, self.eps)

    def _decode_layer(
        self, i, layer: FusedLayer, x: Tensor, position: int, alone: bool = False
    ) -> Tensor:
        new = self._new
        c = self.c
        qkv = new((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim)
        layer.qkv.matvec(x, qkv, norm=layer.norm1, eps=self.eps, residual=layer.bias)
        keys, values = self.cache[i]
        y = self.attend(qkv, self.rotary, keys, values, position, alone=alone)
        x = layer.o.matvec(y, new(c.hidden_size), residual=x)
        y = layer.gate_up.matvec(x, new(layer.inner), norm=layer.norm2, eps=self.eps, pair=True)
        return layer.down.matvec(y, new(c.hidden_size), residual=x)

    def _coded_kind(self) -> str:
        """The kind of weights whose kernels exchange codes; "" if that was not measured to be
        faster on this chip, or if sizes do not fit."""
        weights = [w for y in self.layers for w in (y.qkv, y.o, y.gate_up, y.down)]
        kinds = {w.format.kind if isinstance(w, QuantWeight) else "" for w in weights}
        sizes = self.c.hidden_size, self.layers[0].inner, self.c.head_dim
        kind = kinds.pop()
        if kinds or kind not in ("int4", "int8") or any(s % 32 for s in sizes):
            return ""
        return kind if any(key.startswith(f"coded {kind} ") for key in tuned()) else ""

    def _new(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device)
