"""The Llama decoder in TVM's nn front end, as `engine: tvm` compiles it.

    prefill  [1, n, H] and a paged cache -> the last position's normed hidden state [1, 1, H]
    decode   [1, 1, H] and the cache     -> the same
    parallel [1, n, H], cos, sin         -> every position's, all seeing all (OpenVLA-OFT)

Products are added up in float32 whatever the weights are; the residual stream has the library's
dtype. Names of parameters are those of mlc_llm's Llama (q, k, v and gate, up as one matrix each),
so that the same module serves for a library in its layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import op
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from vla_inference.openvla.config import LlamaConfig

NIBBLES = 8  # int4 values in a uint32, the first in the lowest bits


@dataclass(frozen=True)
class Weights:
    """Memory layout of the matrices.

    dtype: of everything that isn't quantised: "float32" or "float16".
    group: input channels that share a scale, 0 for weights that aren't quantised.
    zero: the nibble that stands for 0, or None where each group has its own.
    transposed: plain matrices as [K, N], which is what a CPU's vector lanes like.
    """

    dtype: str = "float32"
    group: int = 0
    zero: int | None = 8
    transposed: bool = False


class Linear(nn.Module):
    """x [1, n, K] -> [1, n, N] by one tensor expression, so that no pass can split it up and
    write a dequantised matrix to memory."""

    def __init__(self, k: int, n: int, w: Weights, out: str | None = None):
        super().__init__()
        self.k, self.n, self.w, self.out = k, n, w, out or w.dtype
        if w.group:
            self.q_weight = nn.Parameter((n, k // NIBBLES), "uint32")
            self.q_scale = nn.Parameter((n, k // w.group), "float16")
            if w.zero is None:
                self.q_zero = nn.Parameter((n, k // w.group), "float16")
        else:
            self.weight = nn.Parameter((k, n) if w.transposed else (n, k), w.dtype)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        parts = [self.weight] if not self.w.group else [self.q_weight, self.q_scale]
        if self.w.group and self.w.zero is None:
            parts.append(self.q_zero)
        return op.tensor_expr_op(self._expression, "linear", [x, *parts])

    def _expression(self, x, *parts):
        r = te.reduce_axis((0, self.k), "r")
        weight = self._dequantised(*parts) if self.w.group else parts[0]

        def product(b, m, i):
            w = weight[r, i] if self.w.transposed and not self.w.group else weight[i, r]
            return te.sum(x[b, m, r].astype("float32") * w.astype("float32"), axis=r)

        y = te.compute((*x.shape[:-1], self.n), product, "product")
        if self.out == "float32":
            return y
        return te.compute(y.shape, lambda *i: y(*i).astype(self.out), "cast")

    def _dequantised(self, packed, scale, zeros=None):
        dtype, group = self.w.dtype, self.w.group

        def value(i, j):
            shift = tirx.Cast("uint32", (j % NIBBLES) * 4)
            nibble = (packed[i, j // NIBBLES] >> shift) & tirx.const(15, "uint32")
            zero = tirx.const(self.w.zero, dtype) if zeros is None else zeros[i, j // group]
            return (nibble.astype(dtype) - zero.astype(dtype)) * scale[i, j // group].astype(dtype)

        return te.compute((self.n, self.k), value, "dequantised")


class Attention(nn.Module):
    def __init__(self, c: LlamaConfig, w: Weights):
        super().__init__()
        self.heads, self.kv_heads, self.dim = (
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
        )
        rows = (self.heads + 2 * self.kv_heads) * self.dim
        self.qkv_proj = Linear(c.hidden_size, rows, w)
        self.o_proj = Linear(self.heads * self.dim, c.hidden_size, w)

    def split(self, x: nn.Tensor) -> nn.Tensor:
        n = x.shape[1]
        return op.reshape(self.qkv_proj(x), (1, n, self.heads + 2 * self.kv_heads, self.dim))

    def forward(self, x: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        y = cache.attention_with_fused_qkv(layer, self.split(x), self.heads, self.dim**-0.5)
        return self.o_proj(op.reshape(y, (1, x.shape[1], self.heads * self.dim)))

    def all_to_all(self, x: nn.Tensor, cos: nn.Tensor, sin: nn.Tensor) -> nn.Tensor:
        """Attention without a cache and without a mask."""
        n, qkv = x.shape[1], self.split(x)
        q = op.tensor_expr_op(self._rotated(0, self.heads, self.dim**-0.5), "q", [qkv, cos, sin])
        k = op.tensor_expr_op(self._rotated(self.heads, self.kv_heads), "k", [qkv, cos, sin])
        scores = op.tensor_expr_op(self._scores, "scores", [q, k])
        seen = op.softmax(scores, axis=-1)
        y = op.tensor_expr_op(self._mixed, "mixed", [seen, qkv])
        return self.o_proj(op.reshape(y, (1, n, self.heads * self.dim)))

    def _rotated(self, first: int, heads: int, scale: float = 1.0):
        """[1, n, all heads, d] -> [heads, d, n] with rotary embeddings (NeoX halves)."""
        half = self.dim // 2

        def expression(qkv, cos, sin):
            def value(h, j, i):
                x = qkv[0, i, first + h, j].astype("float32")
                other = qkv[0, i, first + h, (j + half) % self.dim].astype("float32")
                sign = tirx.Select(
                    j < half, tirx.const(-1.0, "float32"), tirx.const(1.0, "float32")
                )
                y = x * cos[i, j] + sign * other * sin[i, j]
                return (y * tirx.const(scale, "float32")).astype(qkv.dtype)

            return te.compute((heads, self.dim, qkv.shape[1]), value, "rotated")

        return expression

    def _scores(self, q, k):  # [heads, d, n], [kv_heads, d, n] -> float32 [heads, n, n]
        group, n = self.heads // self.kv_heads, q.shape[2]
        d = te.reduce_axis((0, self.dim), "d")
        return te.compute(
            (self.heads, n, n),
            lambda h, i, j: te.sum(
                q[h, d, i].astype("float32") * k[h // group, d, j].astype("float32"), axis=d
            ),
            "scores",
        )

    def _mixed(self, seen, qkv):  # float32 [heads, n, n], values -> [1, n, heads, d]
        group, first, n = self.heads // self.kv_heads, self.heads + self.kv_heads, qkv.shape[1]
        weight = seen
        if qkv.dtype != "float32":  # both factors alike, for the tensor cores
            weight = te.compute(seen.shape, lambda *i: seen(*i).astype(qkv.dtype), "seen")
        j = te.reduce_axis((0, n), "j")
        y = te.compute(
            (self.heads, n, self.dim),
            lambda h, i, d: te.sum(
                weight[h, i, j].astype("float32")
                * qkv[0, j, first + h // group, d].astype("float32"),
                axis=j,
            ),
            "mixed",
        )
        return te.compute(
            (1, n, self.heads, self.dim), lambda _, i, h, d: y[h, i, d].astype(qkv.dtype), "laid"
        )


class FeedForward(nn.Module):
    def __init__(self, c: LlamaConfig, w: Weights):
        super().__init__()
        self.width = c.intermediate_size
        self.gate_up_proj = Linear(c.hidden_size, 2 * self.width, w)
        self.down_proj = Linear(self.width, c.hidden_size, w)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        gate, up = op.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(op.silu(gate) * up)


class Layer(nn.Module):
    def __init__(self, c: LlamaConfig, w: Weights):
        super().__init__()
        self.self_attn = Attention(c, w)
        self.mlp = FeedForward(c, w)
        self.input_layernorm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False)

    def forward(self, x: nn.Tensor, attend) -> nn.Tensor:
        x = x + attend(self.self_attn, self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Layers(nn.Module):
    def __init__(self, c: LlamaConfig, w: Weights):
        super().__init__()
        self.layers = nn.ModuleList([Layer(c, w) for _ in range(c.num_hidden_layers)])
        self.norm = nn.RMSNorm(c.hidden_size, -1, c.rms_norm_eps, bias=False)


class Decoder(nn.Module):
    def __init__(self, c: LlamaConfig, w: Weights):
        super().__init__()
        self.config, self.weights = c, w
        self.model = Layers(c, w)
        self.to(w.dtype)

    def to(self, dtype: str | None = None) -> None:
        """As nn.Module's, except for packed weights."""
        kept = {k: p.dtype for k, p in self.named_parameters() if ".q_" in k}
        super().to(dtype)
        for name, parameter in self.named_parameters():
            if name in kept:
                parameter.to(kept[name])

    def _hidden(self, x: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        for i, layer in enumerate(self.model.layers):
            x = layer(x, lambda attention, y, i=i: attention(y, cache, i))
        return x

    def prefill(self, x: nn.Tensor, cache: PagedKVCache):
        x = op.tensor_expr_op(_last, "last", [self._hidden(x, cache)])
        return self.model.norm(x), cache

    def decode(self, x: nn.Tensor, cache: PagedKVCache):
        return self.model.norm(self._hidden(x, cache)), cache

    def parallel(self, x: nn.Tensor, cos: nn.Tensor, sin: nn.Tensor):
        for layer in self.model.layers:
            x = layer(x, lambda attention, y: attention.all_to_all(y, cos, sin))
        return self.model.norm(x)

    def spec(self, decoding: str) -> dict[str, Any]:
        """Signatures of the functions that a decoding method needs, for nn's exporter."""
        c, dtype = self.config, self.weights.dtype
        packed = {"param_mode": "packed", "effect_mode": "none"}
        cache = nn.spec.Object(object_type=PagedKVCache)
        table = nn.spec.Tensor(["n", c.head_dim], "float32")
        many, one = ([1, n, c.hidden_size] for n in ("n", 1))
        if decoding == "parallel":
            x = nn.spec.Tensor(many, dtype)
            return {"parallel": {"x": x, "cos": table, "sin": table, "$": packed}}
        return {
            name: {"x": nn.spec.Tensor(shape, dtype), "cache": cache, "$": packed}
            for name, shape in (("prefill", many), ("decode", one))
        }


def _last(x):
    _, n, width = x.shape
    return te.compute((1, 1, width), lambda b, _, i: x[b, n - 1, i], "last")
