"""Matrix-vector kernels for int4 and int8 weights with 8-bit inputs.

`gemv` makes 8-bit codes of its input in every program; a program of a few rows spends a third of
its instructions on that. Here the kernel that makes a vector makes its codes, once. See `codes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.kernels.activation_quant import codes_for, span_of, store_codes
from vla_inference.kernels.gemv import INTERPRETED, _dot4
from vla_inference.kernels.launch_settings import early, early_launch, tuned


@dataclass(frozen=True)
class CodedLaunch:
    """block_n rows a program (of coded results a multiple of a span), shared by its warps;
    `depth` blocks of 32 spans on their way."""

    block_n: int = 32
    warps: int = 8
    depth: int = 2
    registers: int = 0  # at most, a thread; 0: as the compiler likes


@triton.jit
def _four(t):
    """[..., 4] -> its four parts."""
    if len(t.shape) == 3:
        t = tl.reshape(t, (t.shape[0], t.shape[1], 2, 2))
    else:
        t = tl.reshape(t, (t.shape[0], 2, 2))
    even, odd = tl.split(t)
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def _at(w, scales, zeros, rows, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr):
    """Where the rows' first 32 spans are: all else lies a constant further.

    [32, BN, 4]: of dimensions alike Triton lays the first along a warp's lanes, which so read
    512 bytes of a row.
    """
    V: tl.constexpr = K // (32 if KIND == "int4" else 16)
    lane = tl.arange(0, 32)
    words = w + ((rows[None, :, None] * V + lane[:, None, None]) * 4 + tl.arange(0, 4)[None, None])
    scale, zero = words, words
    if KIND == "int4":
        group = rows[None, :] * (K // GROUP) + (lane // (GROUP // 32))[:, None]
        scale = scales + group
        if zeros is not None:
            zero = zeros + group
    return words, scale, zero


@triton.jit
def _tile(
    at,
    block: tl.constexpr,
    K: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ASYM: tl.constexpr,
):
    """Words [32, BN, 4] of the rows' spans, with scales and zeros [32, BN]."""
    V: tl.constexpr = K // (32 if KIND == "int4" else 16)
    words_at, scale_at, zero_at = at
    lane = tl.arange(0, 32)
    WHOLE: tl.constexpr = block * 32 + 32 <= V
    if WHOLE:
        words = tl.load(words_at + block * 128, eviction_policy="evict_first")
    else:
        inside = (lane < V - block * 32)[:, None, None] & (tl.arange(0, 4) >= 0)[None, None, :]
        words = tl.load(words_at + block * 128, inside, 0, eviction_policy="evict_first")
    scale = 1.0
    zero = 8.0
    if KIND == "int4":
        PER: tl.constexpr = GROUP // 32
        if 32 % PER == 0:
            scale_at += block * (32 // PER)
            if ASYM:
                zero_at += block * (32 // PER)
        else:  # a block may begin within a group
            more = ((block * 32 + lane) // PER - lane // PER)[:, None]
            scale_at += more
            if ASYM:
                zero_at += more
        if WHOLE:
            scale = tl.load(scale_at)
            if ASYM:
                zero = tl.load(zero_at)
        else:
            inside = (lane < V - block * 32)[:, None]
            scale = tl.load(scale_at, inside, 0.0)
            if ASYM:
                zero = tl.load(zero_at, inside, 0.0)
    return words, scale, zero


@triton.jit
def _inputs(x, block: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr):
    """Words of the input's codes [32, 4], for low and high nibbles, its steps and totals [32]."""
    V: tl.constexpr = K // (32 if KIND == "int4" else 16)
    lane = tl.arange(0, 32)
    at = x + (lane[:, None] * 4 + tl.arange(0, 4)[None, :])
    beside = x + lane
    if block * 32 + 32 <= V:
        low = tl.load(at + block * 128)
        high = low
        if KIND == "int4":
            high = tl.load(at + (block * 128 + K // 8))
        step = tl.load(beside + (block * 32 + K // 4))
        total = tl.load(beside + (block * 32 + K // 4 + V))
    else:
        inside = lane < V - block * 32
        each = inside[:, None] & (tl.arange(0, 4) >= 0)[None, :]
        low = tl.load(at + block * 128, each, 0)
        high = low
        if KIND == "int4":
            high = tl.load(at + (block * 128 + K // 8), each, 0)
        step = tl.load(beside + (block * 32 + K // 4), inside, 0)
        total = tl.load(beside + (block * 32 + K // 4 + V), inside, 0)
    return low, high, step.to(tl.float32, bitcast=True), total.to(tl.float32, bitcast=True)


@triton.jit
def _dot(words, low, high, KIND: tl.constexpr, EMULATE: tl.constexpr):
    """[32, BN] sums of a span's products of codes; of int4 16 times that."""
    a, b, c, d = _four(words)
    p, q, r, s = _four(low)
    zero = tl.zeros_like(a)
    p, q, r, s = p[:, None] + zero, q[:, None] + zero, r[:, None] + zero, s[:, None] + zero
    if KIND == "int8":
        if EMULATE:
            t = _dot4(p, a, True, True) + _dot4(q, b, True, True)
            return t + _dot4(r, c, True, True) + _dot4(s, d, True, True)
        return tl.inline_asm_elementwise(
            """
            dp4a.s32.s32 $0, $5, $1, 0;
            dp4a.s32.s32 $0, $6, $2, $0;
            dp4a.s32.s32 $0, $7, $3, $0;
            dp4a.s32.s32 $0, $8, $4, $0;
            """,
            "=&r,r,r,r,r,r,r,r,r",
            [a, b, c, d, p, q, r, s],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    e, f, g, h = _four(high)
    e, f, g, h = e[:, None] + zero, f[:, None] + zero, g[:, None] + zero, h[:, None] + zero
    if EMULATE:
        m = 0x0F0F0F0F
        t = _dot4(p, a & m, False, True) + _dot4(q, b & m, False, True)
        t += _dot4(r, c & m, False, True) + _dot4(s, d & m, False, True)
        u = _dot4(e, (a >> 4) & m, False, True) + _dot4(f, (b >> 4) & m, False, True)
        u += _dot4(g, (c >> 4) & m, False, True) + _dot4(h, (d >> 4) & m, False, True)
        return (t + u) * 16
    # High nibbles stay where they are, 16 times their worth: the low ones' sum is shifted.
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 t;
        and.b32 t, $1, 0x0F0F0F0F;
        dp4a.s32.u32 $0, $5, t, 0;
        and.b32 t, $2, 0x0F0F0F0F;
        dp4a.s32.u32 $0, $6, t, $0;
        and.b32 t, $3, 0x0F0F0F0F;
        dp4a.s32.u32 $0, $7, t, $0;
        and.b32 t, $4, 0x0F0F0F0F;
        dp4a.s32.u32 $0, $8, t, $0;
        shl.b32 $0, $0, 4;
        and.b32 t, $1, 0xF0F0F0F0;
        dp4a.s32.u32 $0, $9, t, $0;
        and.b32 t, $2, 0xF0F0F0F0;
        dp4a.s32.u32 $0, $10, t, $0;
        and.b32 t, $3, 0xF0F0F0F0;
        dp4a.s32.u32 $0, $11, t, $0;
        and.b32 t, $4, 0xF0F0F0F0;
        dp4a.s32.u32 $0, $12, t, $0;
        }
        """,
        "=&r,r,r,r,r,r,r,r,r,r,r,r,r",
        [a, b, c, d, p, q, r, s, e, f, g, h],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _part(tile, inputs, KIND: tl.constexpr, ASYM: tl.constexpr, EMULATE: tl.constexpr):
    words, scale, zero = tile
    low, high, step, total = inputs
    t = _dot(words, low, high, KIND, EMULATE).to(tl.float32)
    if KIND == "int8":
        return t * step[:, None]
    t = t * (step * 0.0625)[:, None]
    if ASYM:
        t -= zero.to(tl.float32) * total[:, None]
    else:
        t -= (8.0 * total)[:, None]
    return t * scale.to(tl.float32)


@triton.jit
def _gemv_coded(
    x,
    w,
    scales,
    zeros,
    norm,
    residual,
    y,
    coded,
    N,
    eps,
    K: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    NORM: tl.constexpr,
    PAIR: tl.constexpr,
    RESIDUAL: tl.constexpr,
    OUT: tl.constexpr,
    SPANS: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DEPTH: tl.constexpr,
    PDL: tl.constexpr,
    EMULATE: tl.constexpr,
):
    V: tl.constexpr = K // (32 if KIND == "int4" else 16)
    BLOCKS: tl.constexpr = (V + 31) // 32
    ASYM: tl.constexpr = zeros is not None
    begin = tl.program_id(0) * BLOCK_N
    rows = begin + tl.arange(0, BLOCK_N)
    there = rows < N
    mine = rows
    if not EVEN:
        mine = tl.minimum(rows, N - 1)
    row_at = _at(w, scales, zeros, mine, K, KIND, GROUP)
    up_at = row_at
    if PAIR:
        up_at = _at(w, scales, zeros, mine + N, K, KIND, GROUP)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # The first weights don't wait for the kernel before this one.
    w0 = _tile(row_at, 0, K, KIND, GROUP, ASYM)
    u0 = w0
    if PAIR:
        u0 = _tile(up_at, 0, K, KIND, GROUP, ASYM)
    w1, u1, w2, u2, w3, u3 = w0, u0, w0, u0, w0, u0
    if (DEPTH > 1) & (BLOCKS > 1):
        w1 = _tile(row_at, 1, K, KIND, GROUP, ASYM)
        if PAIR:
            u1 = _tile(up_at, 1, K, KIND, GROUP, ASYM)
    if (DEPTH > 2) & (BLOCKS > 2):
        w2 = _tile(row_at, 2, K, KIND, GROUP, ASYM)
        if PAIR:
            u2 = _tile(up_at, 2, K, KIND, GROUP, ASYM)
    if (DEPTH > 3) & (BLOCKS > 3):
        w3 = _tile(row_at, 3, K, KIND, GROUP, ASYM)
        if PAIR:
            u3 = _tile(up_at, 3, K, KIND, GROUP, ASYM)
    if PDL:
        tl.extra.cuda.gdc_wait()
    following = _inputs(x, 0, K, KIND)
    gain = 1.0
    if NORM:
        span = tl.arange(0, SPANS)
        square = tl.load(x + K // 4 + 2 * V + span, span < V, 0).to(tl.float32, bitcast=True)
        gain = tl.rsqrt(tl.sum(square, 0) / K + eps)
    acc = tl.zeros((32, BLOCK_N), tl.float32)
    other = tl.zeros((32, BLOCK_N), tl.float32)
    for block in tl.static_range(BLOCKS):
        inputs = following
        if block + 1 < BLOCKS:
            following = _inputs(x, block + 1, K, KIND)
        acc += _part(w0, inputs, KIND, ASYM, EMULATE)
        if PAIR:
            other += _part(u0, inputs, KIND, ASYM, EMULATE)
        if DEPTH > 1:
            w0, u0 = w1, u1
        if DEPTH > 2:
            w1, u1 = w2, u2
        if DEPTH > 3:
            w2, u2 = w3, u3
        if block + DEPTH < BLOCKS:
            new = _tile(row_at, block + DEPTH, K, KIND, GROUP, ASYM)
            up = new
            if PAIR:
                up = _tile(up_at, block + DEPTH, K, KIND, GROUP, ASYM)
            if DEPTH == 1:
                w0, u0 = new, up
            if DEPTH == 2:
                w1, u1 = new, up
            if DEPTH == 3:
                w2, u2 = new, up
            if DEPTH == 4:
                w3, u3 = new, up
    out = tl.sum(acc, 0) * gain
    if KIND == "int8":
        out *= tl.load(scales + mine)
    if PAIR:
        raised = tl.sum(other, 0) * gain
        if KIND == "int8":
            raised *= tl.load(scales + mine + N)
        out = out * tl.sigmoid(out) * raised
    if RESIDUAL:
        out += tl.load(residual + mine).to(tl.float32)
    rounded = out.to(y.dtype.element_ty)
    tl.store(y + rows, rounded, there)
    if OUT > 0:
        seen = tl.where(there, rounded.to(tl.float32), 0.0)
        store_codes(seen, begin, norm, coded, OUT, BLOCK_N, KIND)


def gemv_coded(
    x: Tensor,
    k: int,
    weight: Tensor,
    y: Tensor,
    *,
    kind: str,
    scales: Tensor,
    zeros: Tensor | None = None,
    group: int = 0,
    normed: bool = False,
    eps: float = 0.0,
    pair: bool = False,
    residual: Tensor | None = None,
    code: bool = False,
    norm: Tensor | None = None,
    launch: CodedLaunch | None = None,
) -> Tensor | None:
    """y [N] = W f(x) as in `gemv`; x: the codes of a vector [k] (times its norm's weights).

    normed: f is RMSNorm. code: the result's codes are made, too, and returned; of the result
    times `norm` where it is given (the weights of the norm that reads it).
    """
    n = y.shape[-1]
    launch = launch or coded_launch(kind, n, k, pair)
    out = codes_for(n, kind, y.device) if code else None
    more = {"num_warps": launch.warps, **early()}
    if launch.registers and not INTERPRETED:
        more["maxnreg"] = launch.registers
    _gemv_coded[(triton.cdiv(n, launch.block_n),)](
        x,
        weight.view(torch.int32),
        scales,
        zeros,
        norm,
        residual,
        y,
        out,
        n,
        eps,
        k,
        kind,
        group or k,
        normed,
        pair,
        residual is not None,
        n if code else 0,
        triton.next_power_of_2(k // span_of(kind)),
        n % launch.block_n == 0,
        launch.block_n,
        launch.depth,
        early_launch(),
        INTERPRETED,
        **more,
    )
    return out


def coded_launch(kind: str, n: int, k: int, pair: bool) -> CodedLaunch:
    entry = tuned().get(coded_key(kind, n, k, pair))
    return CodedLaunch(**entry) if entry else CodedLaunch()


def coded_key(kind: str, n: int, k: int, pair: bool) -> str:
    return f"coded {kind} {n}x{k}{' pair' if pair else ''}"


def coded_launches() -> list[CodedLaunch]:
    """Launch settings worth trying."""
    sizes = (
        (16, 4, 4),
        (16, 8, 2),
        (16, 8, 4),
        (16, 16, 4),
        (32, 8, 1),
        (32, 8, 2),
        (32, 8, 4),
        (32, 16, 2),
        (32, 16, 4),
    )
    return [CodedLaunch(*s) for s in sizes] + [
        CodedLaunch(16, 8, 2, 64),
        CodedLaunch(32, 8, 1, 128),
        CodedLaunch(32, 16, 2, 64),
        # So few registers that a third or fourth program is on a multiprocessor.
        CodedLaunch(16, 8, 2, 40),
        CodedLaunch(16, 8, 2, 48),
        CodedLaunch(16, 4, 2, 80),
        CodedLaunch(32, 8, 1, 64),
        CodedLaunch(32, 8, 1, 80),
        CodedLaunch(32, 8, 2, 80),
        CodedLaunch(32, 16, 1, 40),
    ]
