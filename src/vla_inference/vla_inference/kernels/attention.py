"""Attention kernels: for prefill (a few hundred positions) and for decode (one position)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.kernels.activation_quant import codes_for, store_codes
from vla_inference.kernels.launch_settings import early, early_launch, tuned


@triton.jit
def _turned(base, d, cos, sin, HALF: tl.constexpr):
    """A whole head, rotated: float32 [D]"""
    x = tl.load(base + d).to(tl.float32)
    other = tl.load(base + (d + HALF) % (2 * HALF)).to(tl.float32)
    return x * cos + tl.where(d < HALF, -other, other) * sin


@triton.jit
def _attend(
    qkv,
    cos,
    sin,
    keys,
    values,
    out,
    coded,
    position,
    S,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    CODE: tl.constexpr,
    PDL: tl.constexpr,
):
    # One head. The query stands in all 16 rows that the tensor cores want.
    head = tl.program_id(0)
    kv = head // (HEADS // KV_HEADS)
    D: tl.constexpr = 2 * HALF
    d = tl.arange(0, D)
    kind = keys.dtype.element_ty
    c = tl.load(cos + position * HALF + d % HALF)
    s = tl.load(sin + position * HALF + d % HALF)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    q = _turned(qkv + head * D, d, c, s, HALF).to(kind)
    k = _turned(qkv + (HEADS + kv) * D, d, c, s, HALF).to(kind)
    v = tl.load(qkv + (HEADS + KV_HEADS + kv) * D + d)
    at = (kv * S + position) * D
    tl.store(keys + at + d, k)
    tl.store(values + at + d, v)
    # The new position first; then blocks of those before it.
    ones = tl.full((16,), 1.0, tl.float32)
    top = ones * (tl.sum(q.to(tl.float32) * k.to(tl.float32), 0) * scale)
    total = ones
    acc = ones[:, None] * v.to(tl.float32)[None, :]
    rows = tl.full((16, D), 1.0, kind) * q[None, :]
    for begin in tl.range(0, position, BLOCK, num_stages=STAGES):
        past = begin + tl.arange(0, BLOCK)
        seen = past < position
        where = (kv * S + past[:, None]) * D + d[None, :]
        ks = tl.load(keys + where, seen[:, None], 0.0)
        vs = tl.load(values + where, seen[:, None], 0.0)
        score = tl.dot(rows, tl.trans(ks), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        share = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        acc = acc * shrink[:, None]
        acc = tl.dot(share.to(kind), vs, acc, input_precision="ieee")
        total = total * shrink + tl.sum(share, 1)
        top = higher
    result = (tl.sum(acc / total[:, None], 0) / 16).to(out.dtype.element_ty)
    tl.store(out + head * D + d, result)
    if CODE != "":
        store_codes(result.to(tl.float32), head * D, None, coded, HEADS * D, D, CODE)


def attend(
    qkv: Tensor,
    rotary,
    keys: Tensor,
    values: Tensor,
    position: int,
    heads: int,
    launch: tuple[int, int, int] | None = None,
    code: str = "",
):
    """Attention of one new position to itself and earlier ones; adds it to the cache.

    qkv: [(heads + 2 kv_heads) d] -> [heads d]; launch: positions a tile, warps, stages. code: a
    kind of weights, for which the result's codes are returned as well.
    """
    kv_heads, s, d = keys.shape
    out = qkv.new_empty(heads * d)
    block, warps, stages = launch or (64, 4, 5)
    coded = codes_for(heads * d, code, out.device) if code else None
    _attend[(heads,)](
        qkv,
        *rotary,
        keys,
        values,
        out,
        coded,
        position,
        s,
        d**-0.5,
        heads,
        kv_heads,
        d // 2,
        block,
        stages,
        code,
        early_launch(),
        num_warps=warps,
        **early(),
    )
    return (out, coded) if code else out


@triton.jit
def _attend_parts(
    qkv,
    cos,
    sin,
    keys,
    values,
    out,
    coded,
    parts,
    arrived,
    position,
    S,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    MANY: tl.constexpr,
    CODE: tl.constexpr,
    PDL: tl.constexpr,
):
    # As `_attend`; a head's earlier positions are shared by PARTS programs, so that all of the
    # chip reads, and what they read is on its way before the kernel ahead has ended. (Earlier
    # positions are of earlier passes. Each ends with `choose`, which waits for all before it.)
    head, part = tl.program_id(0), tl.program_id(1)
    kv = head // (HEADS // KV_HEADS)
    D: tl.constexpr = 2 * HALF
    d = tl.arange(0, D)
    past = part * BLOCK + tl.arange(0, BLOCK)
    seen = past < position
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    where = (kv * S + tl.minimum(past, S - 1)[:, None]) * D + d[None, :]
    ks = tl.load(keys + where, seen[:, None], 0.0)
    vs = tl.load(values + where, seen[:, None], 0.0)
    c = tl.load(cos + position * HALF + d % HALF)
    s = tl.load(sin + position * HALF + d % HALF)
    if PDL:
        tl.extra.cuda.gdc_wait()
    kind = keys.dtype.element_ty
    q = _turned(qkv + head * D, d, c, s, HALF).to(kind).to(tl.float32)
    score = tl.sum(ks.to(tl.float32) * q[None, :], 1) * scale
    score = tl.where(seen, score, float("-inf"))
    top = tl.max(score, 0)
    own = float("-inf")
    v = tl.zeros((D,), tl.float32)
    if part == 0:  # the new position joins the cache
        k = _turned(qkv + (HEADS + kv) * D, d, c, s, HALF).to(kind)
        new = tl.load(qkv + (HEADS + KV_HEADS + kv) * D + d)
        at = (kv * S + position) * D
        tl.store(keys + at + d, k)
        tl.store(values + at + d, new)
        own = tl.sum(q * k.to(tl.float32), 0) * scale
        v = new.to(tl.float32)
        top = tl.maximum(top, own)
    share = tl.exp(score - top)
    mine = tl.exp(own - top)
    acc = tl.sum(share[:, None] * vs.to(tl.float32), 0) + mine * v
    total = tl.sum(share, 0) + mine
    last = 0
    if PARTS > 1:
        to = parts + (head * PARTS + part) * (D + 2)
        tl.store(to + d, acc)
        tl.store(to + D, top)
        tl.store(to + D + 1, total)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + head, 1, sem="acq_rel", scope="gpu")
    if last == PARTS - 1:  # who comes last puts the parts together, in their own order
        if PARTS > 1:
            tl.store(arrived + head, 0)
            each = tl.arange(0, MANY)
            there = each < PARTS
            row = parts + (head * PARTS + each) * (D + 2)
            tops = tl.load(row + D, there, float("-inf"), cache_modifier=".cg")
            totals = tl.load(row + D + 1, there, 0.0, cache_modifier=".cg")
            accs = tl.load(row[:, None] + d[None, :], there[:, None], 0.0, cache_modifier=".cg")
            shrink = tl.exp(tops - tl.max(tops, 0))
            acc = tl.sum(accs * shrink[:, None], 0)
            total = tl.sum(totals * shrink, 0)
        result = (acc / total).to(out.dtype.element_ty)
        tl.store(out + head * D + d, result)
        if CODE != "":
            store_codes(result.to(tl.float32), head * D, None, coded, HEADS * D, D, CODE)


class Attend:
    """`attend`, with several programs per head if that was measured faster on this chip.

    launch: positions a program, warps; () for one program a head. Programs of a head meet by a
    counter of this object's, so one object must not be used by two streams at once.
    """

    def __init__(
        self, heads: int, d: int, positions: int, device, launch: tuple[int, ...] | None = None
    ):
        self.heads = heads
        self.launch = attend_launch(d) if launch is None else launch
        if self.launch:
            most = triton.cdiv(positions, self.launch[0])
            self.parts = torch.empty(heads * most * (d + 2), device=device)
            self.arrived = torch.zeros(heads, dtype=torch.int32, device=device)

    def __call__(
        self,
        qkv: Tensor,
        rotary,
        keys: Tensor,
        values: Tensor,
        position: int,
        code: str = "",
        alone: bool = False,
    ):
        """alone: one program a head, as there must be where earlier positions are of this pass."""
        if not self.launch or alone:
            return attend(qkv, rotary, keys, values, position, self.heads, code=code)
        (block, warps), heads, (kv_heads, s, d) = self.launch, self.heads, keys.shape
        out = qkv.new_empty(heads * d)
        coded = codes_for(heads * d, code, out.device) if code else None
        parts = max(1, triton.cdiv(position, block))
        _attend_parts[(heads, parts)](
            qkv,
            *rotary,
            keys,
            values,
            out,
            coded,
            self.parts,
            self.arrived,
            position,
            s,
            d**-0.5,
            heads,
            kv_heads,
            d // 2,
            block,
            parts,
            triton.next_power_of_2(parts),
            code,
            early_launch(),
            num_warps=warps,
            **early(),
        )
        return (out, coded) if code else out


def attend_launch(d: int) -> tuple[int, ...]:
    return tuple(tuned().get(attend_key(d), {}).get("launch", ()))


def attend_key(d: int) -> str:
    return f"attend {d}"


def attend_launches() -> list[tuple[int, ...]]:
    """Launch settings worth trying."""
    return [(), (32, 1), (32, 2), (64, 1), (64, 2), (64, 4), (128, 4), (128, 8)]


@triton.jit
def _attend_batch(
    q,
    keys,
    values,
    lengths,
    out,
    step,
    S,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    # One head of one context.
    head, item = tl.program_id(0), tl.program_id(1)
    kv = head // (HEADS // KV_HEADS)
    d = tl.arange(0, WIDE)
    inside = d < D
    if PDL:
        tl.extra.cuda.gdc_wait()
    end = tl.load(lengths + item) + step + 1
    row = (item * HEADS + head) * D + d
    query = tl.load(q + row, inside, 0.0).to(tl.float32) * scale
    top, total = float("-inf"), 0.0
    acc = tl.zeros((WIDE,), tl.float32)
    for begin in tl.range(0, end, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        seen = at < end
        where = ((item * KV_HEADS + kv) * S + at[:, None]) * D + d[None, :]
        there = seen[:, None] & inside[None, :]
        ks = tl.load(keys + where, there, 0.0).to(tl.float32)
        vs = tl.load(values + where, there, 0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(ks * query[None, :], 1), float("-inf"))
        higher = tl.maximum(top, tl.max(score, 0))
        share = tl.exp(score - higher)
        shrink = tl.exp(top - higher)
        acc = acc * shrink + tl.sum(share[:, None] * vs, 0)
        total = total * shrink + tl.sum(share, 0)
        top = higher
    tl.store(out + row, (acc / total).to(out.dtype.element_ty), inside)


def attend_batch(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, step: int, block: int = 32
) -> Tensor:
    """Attention of one new position of each context to its own and earlier ones: [B, heads * d].

    q: [B, heads, 1, d], contiguous; keys, values: [B, kv_heads, S, d] with the new position in
    them, which is `lengths` (int32 [B]) plus step. block: positions a tile.
    """
    (items, heads, _, d), (kv_heads, s) = q.shape, keys.shape[1:3]
    out = torch.empty(items, heads * d, dtype=q.dtype, device=q.device)
    _attend_batch[(heads, items)](
        q,
        keys,
        values,
        lengths,
        out,
        step,
        s,
        d**-0.5,
        heads,
        kv_heads,
        d,
        triton.next_power_of_2(d),
        block,
        early_launch(),
        num_warps=4,
        **early(),
    )
    return out


@triton.jit
def _attention(
    q,
    k,
    v,
    out,
    N,
    q_item,
    k_item,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    Q_HEAD: tl.constexpr,
    Q_ROW: tl.constexpr,
    K_HEAD: tl.constexpr,
    K_ROW: tl.constexpr,
    CAUSAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    head, item = tl.program_id(1), tl.program_id(2)
    kv = head // (HEADS // KV_HEADS)
    q += item * q_item
    k += item * k_item
    v += item * k_item
    first = tl.program_id(0) * ROWS
    n = first + tl.arange(0, ROWS)
    d, s = tl.arange(0, WIDE), tl.arange(0, BLOCK)
    inside = d < D
    if PDL:
        tl.extra.cuda.gdc_wait()
    # Positions that are not there are read as the last one; their shares are none.
    mine = q + head * Q_HEAD + tl.minimum(n, N - 1)[:, None] * Q_ROW + d[None, :]
    query = tl.load(mine, inside[None, :], 0.0)
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    end = N
    if CAUSAL:
        end = tl.minimum(N, first + ROWS)
    for begin in tl.range(0, end, BLOCK, num_stages=STAGES):
        at = tl.minimum(begin + s, N - 1) * K_ROW
        keys = tl.load(k + kv * K_HEAD + at[None, :] + d[:, None], inside[:, None], 0.0)
        values = tl.load(v + kv * K_HEAD + at[:, None] + d[None, :], inside[None, :], 0.0)
        share = tl.dot(query, keys, input_precision="ieee") * scale
        seen = (begin + s < N)[None, :]
        if CAUSAL:
            seen = seen & ((begin + s)[None, :] <= n[:, None])
        share = tl.where(seen, share, float("-inf"))
        higher = tl.maximum(top, tl.max(share, 1))
        share = tl.exp2(share - higher[:, None])
        shrink = tl.exp2(top - higher)
        acc = tl.dot(share.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(share, 1)
        top = higher
    acc = acc / total[:, None]
    to = out + ((item * N + n[:, None]) * HEADS + head) * D + d[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), (n < N)[:, None] & inside[None, :])


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    launch: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Of n positions to each other (`causal`: and none later): [n, heads * d], heads side by side.

    q: [heads, n, d]; k, v: [kv_heads, n, d], with the same strides; any strides, but a head's
    numbers must be contiguous. Of a batch [B, heads, n, d] it is [B n, heads * d]. launch:
    positions a program, positions a tile, warps, tiles in flight.
    """
    if q.dim() == 3:
        q, k, v = q[None], k[None], v[None]
    (items, heads, n, d), kv_heads = q.shape, k.shape[1]
    chosen = launch or attention_launch(d, causal)
    if not chosen:
        return library_attention(q, k, v, causal)
    rows, block, warps, stages = chosen
    out = torch.empty(items * n, heads * d, dtype=q.dtype, device=q.device)
    _attention[(triton.cdiv(n, rows), heads, items)](
        q,
        k,
        v,
        out,
        n,
        q.stride(0),
        k.stride(0),
        d**-0.5 * 1.4426950408889634,
        heads,
        kv_heads,
        d,
        max(16, triton.next_power_of_2(d)),
        *q.stride()[1:3],
        *k.stride()[1:3],
        causal,
        rows,
        block,
        stages,
        early_launch(),
        num_warps=warps,
        **early(),
    )
    return out


def library_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """As `attention` of a batch."""
    # The library answers in the order of its queries: mostly nothing is copied.
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    return y.transpose(1, 2).reshape(len(q) * q.shape[2], -1)


def attention_launch(d: int, causal: bool) -> tuple[int, ...]:
    """The launch settings; () if the library was measured faster."""
    return tuple(tuned().get(attention_key(d, causal), {}).get("launch", (64, 64, 4, 3)))


def attention_key(d: int, causal: bool) -> str:
    return f"attention {d}{' causal' if causal else ''}"


def attention_launches() -> list[tuple[int, int, int, int]]:
    """Launch settings worth trying."""
    return [
        (64, 64, 4, 3),
        (64, 64, 4, 2),
        (64, 32, 4, 3),
        (64, 128, 4, 2),
        (128, 64, 8, 2),
        (64, 64, 8, 3),
    ]
