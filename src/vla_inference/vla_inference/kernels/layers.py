"""Transformer operations between the matrix products, one fused kernel each.

Rows are positions; arithmetic is float32, results are rounded once. Where a following product
takes rounded inputs ("int8", "fp8"), a row comes with its scale: largest magnitude over the
largest code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.kernels.launch_settings import early, early_launch, largest, tuned

QUANT_TYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class Product(NamedTuple):
    """A matrix product [n, N] with scales still to apply: `rows` [n, 1] and `columns` [N], if
    any.

    Of rounded inputs and weights the plain product of codes is fastest; the kernel that reads it
    next applies the scales.
    """

    values: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None


NOTHING = (None, None, None)


@triton.jit
def _store_row(out, scales, row, K, k, inside, y, QUANT: tl.constexpr):
    if QUANT == "":
        tl.store(out + row * K + k, y.to(out.dtype.element_ty), inside)
    else:
        top: tl.constexpr = 127.0 if QUANT == "int8" else 448.0
        scale = largest(y, 0) / top
        scale = tl.where(scale < 1e-12, 1e-12, scale)
        tl.store(scales + row, scale)
        y = y / scale
        if QUANT == "int8":
            y = tl.floor(y + 0.5)
        tl.store(out + row * K + k, y.to(out.dtype.element_ty), inside)


@triton.jit
def _product(x, rows, columns, row, N, k, inside):
    """A block of a row of a product, times its scales if it has any."""
    v = tl.load(x + row * N + k, inside, 0).to(tl.float32)
    if rows is not None:
        v = v * tl.load(rows + row) * tl.load(columns + k, inside, 0.0)
    return v


@triton.jit
def _rms_norm(
    x,
    y,
    y_rows,
    y_columns,
    w,
    out,
    scales,
    K,
    eps,
    ADD: tl.constexpr,
    QUANT: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    inside = k < K
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = tl.load(x + row * K + k, inside, 0.0).to(tl.float32)
    if ADD:
        v += _product(y, y_rows, y_columns, row, K, k, inside)
        v = v.to(x.dtype.element_ty)
        tl.store(x + row * K + k, v, inside)
        v = v.to(tl.float32)
    v = v * tl.rsqrt(tl.sum(v * v, 0) / K + eps) * tl.load(w + k, inside, 0.0)
    _store_row(out, scales, row, K, k, inside, v, QUANT)


def rms_norm(x: Tensor, add: Product | None, weight: Tensor, eps: float, quant: str = ""):
    """x [n, K] += add, then RMSNorm: (normed [n, K], its scales [n, 1] or None)."""
    out, scales = _empty(x, quant)
    n, k = x.shape
    tensors = (x, *(add or NOTHING), weight, out, scales)
    _by_rows(_rms_norm, "rms_norm", n, k, *tensors, k, eps, add is not None, quant)
    return out, scales


@triton.jit
def _layer_norm(
    x, y, gamma, w, b, out, K, eps, ADD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    inside = k < K
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = tl.load(x + row * K + k, inside, 0.0).to(tl.float32)
    if ADD:
        step = tl.load(y + row * K + k, inside, 0.0).to(tl.float32)
        if gamma is not None:
            step *= tl.load(gamma + k, inside, 0.0).to(tl.float32)
        v = (v + step).to(x.dtype.element_ty)
        tl.store(x + row * K + k, v, inside)
        v = v.to(tl.float32)
    mean = tl.sum(v, 0) / K
    centred = tl.where(inside, v - mean, 0.0)
    v = centred * tl.rsqrt(tl.sum(centred * centred, 0) / K + eps)
    v = v * tl.load(w + k, inside, 0.0).to(tl.float32) + tl.load(b + k, inside, 0.0).to(tl.float32)
    tl.store(out + row * K + k, v.to(out.dtype.element_ty), inside)


def layer_norm(
    x: Tensor,
    add: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """x [n, K] += gamma * add, then LayerNorm [n, K]."""
    out = torch.empty_like(x)
    n, k = x.shape
    tensors = (x, add, gamma, weight, bias, out)
    _by_rows(_layer_norm, "layer_norm", n, k, *tensors, k, eps, add is not None)
    return out


@triton.jit
def activated(v, BY: tl.constexpr):
    """float32 numbers through "silu", "gelu" (exact), "gelu_tanh", or "" (nothing)."""
    if BY == "silu":
        v = v * tl.sigmoid(v)
    if BY == "gelu":
        v = 0.5 * v * (1 + tl.erf(v * 0.7071067811865476))
    if BY == "gelu_tanh":  # (1 + tanh(u)) / 2 is sigmoid(2 u)
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    return v


@triton.jit
def _gate_mul(
    x,
    rows,
    columns,
    out,
    scales,
    K,
    QUANT: tl.constexpr,
    BY: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    inside = k < K
    if PDL:
        tl.extra.cuda.gdc_wait()
    gate = _product(x, rows, columns, row, 2 * K, k, inside)
    up = _product(x, rows, columns, row, 2 * K, K + k, inside)
    _store_row(out, scales, row, K, k, inside, activated(gate, BY) * up, QUANT)


def gate_mul(x: Product, dtype: torch.dtype, quant: str = "", by: str = "silu"):
    """[n, 2 K], gates first -> (by(gate) * up [n, K], its scales or None). by: see `activated`."""
    n, k = x.values.shape[0], x.values.shape[1] // 2
    out, scales = _empty(x.values[:, :k], quant, dtype)
    _by_rows(_gate_mul, "gate_mul", n, k, *x, out, scales, k, quant, by)
    return out, scales


@triton.jit
def _quantize(x, out, scales, K, QUANT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    inside = k < K
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = tl.load(x + row * K + k, inside, 0.0).to(tl.float32)
    _store_row(out, scales, row, K, k, inside, v, QUANT)


def quantize_rows(x: Tensor, quant: str = ""):
    """[n, K] -> (codes [n, K], scales [n, 1]); unchanged if nothing is to be rounded."""
    if not quant:
        return x, None
    out, scales = _empty(x, quant)
    n, k = x.shape
    _by_rows(_quantize, "quantize", n, k, x, out, scales, k, quant)
    return out, scales


@triton.jit
def _gelu(x, N, BY: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = tl.load(x + n, inside, 0.0).to(tl.float32)
    tl.store(x + n, activated(v, BY).to(x.dtype.element_ty), inside)


def gelu_(x: Tensor, by: str = "gelu") -> Tensor:
    """The exact GELU, or "gelu_tanh", in place."""
    block = tuned().get("gelu", {}).get("block", 1024)
    grid = (triton.cdiv(x.numel(), block),)
    _gelu[grid](x, x.numel(), by, block, early_launch(), num_warps=4, **early())
    return x


@triton.jit
def _rotated(base, half, cos, sin):
    a = tl.load(base + half).to(tl.float32)
    b = tl.load(base + half + half.shape[0]).to(tl.float32)
    return a * cos - b * sin, b * cos + a * sin


@triton.jit
def _split_heads(
    qkv,
    rows,
    columns,
    bias,
    cos,
    sin,
    q,
    keys,
    values,
    lengths,
    step,
    N,
    S,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    # A program takes BLOCK heads of one position: of queries, then keys, then values.
    at_row = tl.program_id(0)
    item, position = at_row // N, at_row % N
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    half = tl.arange(0, HALF)
    D: tl.constexpr = 2 * HALF
    row = qkv + at_row * (HEADS + 2 * KV_HEADS) * D
    if PDL:
        tl.extra.cuda.gdc_wait()
    if lengths is not None:
        position += tl.load(lengths + item) + step
    at = head[:, None] * D + half[None, :]
    x, y = tl.load(row + at).to(tl.float32), tl.load(row + at + HALF).to(tl.float32)
    if rows is not None:
        gain = tl.load(rows + at_row)
        x *= gain * tl.load(columns + at)
        y *= gain * tl.load(columns + at + HALF)
    if bias is not None:
        x += tl.load(bias + at).to(tl.float32)
        y += tl.load(bias + at + HALF).to(tl.float32)
    a, b = x.to(q.dtype.element_ty), y.to(q.dtype.element_ty)
    if tl.program_id(1) * BLOCK < HEADS + KV_HEADS:
        c = tl.load(cos + position * HALF + half)[None, :]
        s = tl.load(sin + position * HALF + half)[None, :]
        a = (x * c - y * s).to(q.dtype.element_ty)
        b = (y * c + x * s).to(q.dtype.element_ty)
    if tl.program_id(1) * BLOCK < HEADS:
        to = q + (at_row * HEADS + head[:, None]) * D + half[None, :]
    elif tl.program_id(1) * BLOCK < HEADS + KV_HEADS:
        first = item * KV_HEADS - HEADS
        to = keys + ((head[:, None] + first) * S + position) * D + half[None, :]
    else:
        first = item * KV_HEADS - HEADS - KV_HEADS
        to = values + ((head[:, None] + first) * S + position) * D + half[None, :]
    tl.store(to, a)
    tl.store(to + HALF, b)


def split_heads(
    qkv: Product,
    rotary,
    keys: Tensor,
    values: Tensor,
    heads: int,
    lengths: Tensor | None = None,
    step: int = 0,
    bias: Tensor | None = None,
) -> Tensor:
    """Rotates queries and keys and adds keys and values to the cache: queries [heads, n, d].

    qkv: [n, (heads + 2 kv_heads) d], to which `bias` is added first;
    rotary: cos and sin, float32 [positions, d / 2];
    keys, values: [kv_heads, S, d], filled from position 0. Of a batch [B n, ...] and caches
    [B, kv_heads, S, d] the queries are [B, heads, n, d]; lengths: int32 [B], with `step` where
    each is filled from.
    """
    rows, (kv_heads, s, d) = qkv.values.shape[0], keys.shape[-3:]
    q = keys.new_empty(rows, heads, d)
    n = rows if keys.dim() == 3 else rows // len(keys)
    block = 8
    while heads % block or kv_heads % block:
        block //= 2
    _split_heads[(rows, (heads + 2 * kv_heads) // block)](
        *qkv,
        bias,
        *rotary,
        q,
        keys,
        values,
        lengths,
        step,
        n,
        s,
        heads,
        kv_heads,
        d // 2,
        block,
        early_launch(),
        num_warps=4,
        **early(),
    )
    return q.view(*keys.shape[:-3], n, heads, d).transpose(-2, -3)


@triton.jit
def _choose(logits, words, token, x, first, H, BINS: tl.constexpr, BLOCK: tl.constexpr):
    bins = tl.arange(0, BINS)
    scores = tl.load(logits + bins)
    finite = tl.sum((tl.abs(scores) < float("inf")).to(tl.int32), 0) == BINS
    best = tl.argmax(scores, 0) + first
    if tl.program_id(0) == 0:
        tl.store(token, tl.where(finite, best, -1).to(tl.int64))
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < H
    row = best.to(tl.int64) * H
    tl.store(x + k, tl.load(words + row + k, inside), inside)


def choose(logits: Tensor, words: Tensor, token: Tensor, x: Tensor, first: int) -> None:
    """Writes the most likely token of `logits` [256] into `token` and its embedding into `x`
    [H].

    words: the embeddings; first: id of the first logit. -1 where a logit is not finite.
    """
    h = words.shape[1]
    grid = (triton.cdiv(h, 1024),)
    _choose[grid](logits, words, token, x, first, h, len(logits), 1024, num_warps=4)


def _by_rows(kernel, name: str, n: int, k: int, *arguments) -> None:
    """Launches a kernel that takes one of n rows of k numbers a program."""
    warps = row_warps(name, k)
    kernel[(n,)](*arguments, _block(k), early_launch(), num_warps=warps, **early())


def row_warps(kernel: str, k: int) -> int:
    """Number of warps that share a row of k numbers: measured best on this chip, or a default."""
    least, share = (4, 1024) if kernel == "layer_norm" else (8, 512)
    usual = min(32, max(least, _block(k) // share))
    return tuned().get(rows_key(kernel, k), {}).get("warps", usual)


def rows_key(kernel: str, k: int) -> str:
    return f"{kernel} {k}"


def _block(k: int) -> int:
    return triton.next_power_of_2(k)


def _empty(like: Tensor, quant: str, dtype: torch.dtype | None = None):
    dtype = QUANT_TYPES[quant] if quant else dtype or like.dtype
    out = torch.empty(like.shape, dtype=dtype, device=like.device)
    scales = torch.empty(len(like), 1, device=like.device) if quant else None
    return out, scales
