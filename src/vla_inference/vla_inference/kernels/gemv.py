"""Matrix-vector kernels of the decode pass, fused with their neighbours; bound by weight bytes.

y = W f(x), with what stands before and after it in a Llama layer done on the way: RMSNorm of x
(a scale, so it is applied to the sum), SiLU(gate) * up of a row pair, the residual.

16-bit and FP8 weights are multiplied in float32. Of int4 and int8 weights the codes are multiplied
by codes of x, four at a time (dp4a, every chip since sm_61): x is rounded to 8 bits with a scale
for each 32 (int8: 16) of its numbers, which costs far less than the weights' own rounding.

Where the chip has programmatic dependent launch (sm_90 on), a kernel fetches its first weights
while the one before it still runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.kernels.launch_settings import early, early_launch, largest, tuned

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Launch:
    """block_n rows at a time; block_k columns at a time, `stages` ahead (dense, fp8); `programs`
    that share the rows (int8, int4: each sees the whole of x)."""

    block_n: int = 8
    block_k: int = 512
    warps: int = 4
    stages: int = 1
    programs: int = 0


@triton.jit
def _dot4(a, b, SIGNED: tl.constexpr, EMULATE: tl.constexpr):
    """Sum of four products of bytes: of `a` signed, of `b` signed or not."""
    if EMULATE:
        total = tl.zeros_like(a * b)
        for i in tl.static_range(4):
            x = (a << (24 - 8 * i)) >> 24
            w = (b << (24 - 8 * i)) >> 24
            if not SIGNED:
                w = w & 255
            total += x * w
        return total
    if SIGNED:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
        )
    return tl.inline_asm_elementwise(
        "dp4a.s32.u32 $0, $1, $2, 0;", "=r,r,r", [a, b], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _dot_words(words, xa, xb, KIND: tl.constexpr, EMULATE: tl.constexpr):
    """[BN, V, 4] words times the inputs' bytes: float32 [BN, V]"""
    if KIND == "int8":
        t = _dot4(xa[None, :, :] + tl.zeros_like(words), words, True, EMULATE)
    else:
        low, high = words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F
        t = _dot4(xa[None, :, :] + tl.zeros_like(words), low, False, EMULATE)
        t += _dot4(xb[None, :, :] + tl.zeros_like(words), high, False, EMULATE)
    return tl.sum(t, 2).to(tl.float32)


@triton.jit
def _gemv_int(
    x,
    w,
    scales,
    zeros,
    norm,
    residual,
    y,
    N,
    eps,
    TILES,
    K: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    NORM: tl.constexpr,
    PAIR: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
    EMULATE: tl.constexpr,
):
    # A chunk is what four words hold: 32 weights of int4, 16 of int8. Each has its input scale.
    SPAN: tl.constexpr = 32 if KIND == "int4" else 16
    V: tl.constexpr = K // SPAN
    chunk = tl.arange(0, BLOCK_V)
    inside = chunk < V
    at = chunk[None, :, None] * 4 + tl.arange(0, 4)[None, None, :]
    held = inside[None, :, None] & (at >= 0)
    rows = tl.program_id(0) * (TILES * BLOCK_N) + tl.arange(0, BLOCK_N)
    # The first weights don't wait for the kernel before this one.
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    mask = (rows < N)[:, None, None] & held
    words = tl.load(w + rows[:, None, None] * (V * 4) + at, mask, 0, eviction_policy="evict_first")
    if PAIR:
        ups = tl.load(
            w + (rows + N)[:, None, None] * (V * 4) + at, mask, 0, eviction_policy="evict_first"
        )
    if PDL:
        tl.extra.cuda.gdc_wait()
    # All of x, in codes: once for all rows of the program.
    span = tl.arange(0, SPAN)
    where = chunk[:, None] * SPAN + span[None, :]
    xs = tl.load(x + where, inside[:, None], 0.0).to(tl.float32)
    gain = 1.0
    if NORM:
        gain = tl.rsqrt(tl.sum(tl.sum(xs * xs, 1), 0) / K + eps)
        xs *= tl.load(norm + where, inside[:, None], 0.0)
    step = largest(xs, 1) / 127
    step = tl.where(step < 1e-20, 1e-20, step)
    codes = tl.floor(xs / step[:, None] + 0.5).to(tl.int32)
    total = tl.sum(codes, 1).to(tl.float32) * step
    codes = (codes & 255) << (8 * (span % 4))[None, :]
    if KIND == "int4":
        both = tl.sum(tl.reshape(codes, (BLOCK_V, 4, 2, 4)), 3)  # [V, 4 words, low | high]
        xa, xb = tl.split(both)
    else:
        xa = tl.sum(tl.reshape(codes, (BLOCK_V, 4, 4)), 2)
        xb = xa
    for _ in range(TILES):
        there = rows < N
        t = _dot_words(words, xa, xb, KIND, EMULATE) * step[None, :]
        if PAIR:
            u = _dot_words(ups, xa, xb, KIND, EMULATE) * step[None, :]
        # The next rows' weights are on their way while these are added up.
        ahead = rows + BLOCK_N
        mask = (ahead < N)[:, None, None] & held
        words = tl.load(
            w + ahead[:, None, None] * (V * 4) + at, mask, 0, eviction_policy="evict_first"
        )
        if PAIR:
            ups = tl.load(
                w + (ahead + N)[:, None, None] * (V * 4) + at,
                mask,
                0,
                eviction_policy="evict_first",
            )
        if KIND == "int4":
            group = rows[:, None] * (K // GROUP) + (chunk // (GROUP // 32))[None, :]
            known = there[:, None] & inside[None, :]
            zero = 8.0
            if zeros is not None:
                zero = tl.load(zeros + group, known, 0.0).to(tl.float32)
            t = (t - zero * total[None, :]) * tl.load(scales + group, known, 0.0).to(tl.float32)
            if PAIR:
                group += N * (K // GROUP)
                if zeros is not None:
                    zero = tl.load(zeros + group, known, 0.0).to(tl.float32)
                u = (u - zero * total[None, :]) * tl.load(scales + group, known, 0.0).to(
                    tl.float32
                )
        out = tl.sum(t, 1) * gain
        if KIND == "int8":
            out *= tl.load(scales + rows, there, 0.0)
        if PAIR:
            up = tl.sum(u, 1) * gain
            if KIND == "int8":
                up *= tl.load(scales + rows + N, there, 0.0)
            out = out * tl.sigmoid(out) * up
        if RESIDUAL:
            out += tl.load(residual + rows, there, 0.0).to(tl.float32)
        tl.store(y + rows, out.to(y.dtype.element_ty), there)
        rows = ahead


@triton.jit
def _floats(words, KIND: tl.constexpr):
    if KIND == "fp8":
        return words.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    return words.to(tl.float32)


@triton.jit
def _gemv(
    x,
    w,
    scales,
    norm,
    residual,
    y,
    N,
    K,
    eps,
    KIND: tl.constexpr,
    NORM: tl.constexpr,
    PAIR: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = rows < N
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    other = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)  # the up row of a gate/up pair
    square = tl.zeros((BLOCK_K,), tl.float32)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for k0 in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = k0 + tl.arange(0, BLOCK_K)
        inside = k < K
        mask = there[:, None] & inside[None, :]
        at = rows[:, None] * K + k[None, :]
        xs = tl.load(x + k, inside, 0.0).to(tl.float32)
        if NORM:
            square += xs * xs
            xs *= tl.load(norm + k, inside, 0.0)
        words = tl.load(w + at, mask, 0, eviction_policy="evict_first")
        acc += _floats(words, KIND) * xs[None, :]
        if PAIR:
            ups = tl.load(w + at + N * K, mask, 0, eviction_policy="evict_first")
            other += _floats(ups, KIND) * xs[None, :]
    out, up = tl.sum(acc, 1), tl.sum(other, 1)
    if NORM:
        gain = tl.rsqrt(tl.sum(square, 0) / K + eps)
        out *= gain
        up *= gain
    if KIND != "dense":
        out *= tl.load(scales + rows, there, 0.0)
        if PAIR:
            up *= tl.load(scales + rows + N, there, 0.0)
    if PAIR:
        out = out * tl.sigmoid(out) * up
    if RESIDUAL:
        out += tl.load(residual + rows, there, 0.0).to(tl.float32)
    tl.store(y + rows, out.to(y.dtype.element_ty), there)


def gemv(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    kind: str = "dense",
    scales: Tensor | None = None,
    zeros: Tensor | None = None,
    group: int = 0,
    norm: Tensor | None = None,
    eps: float = 0.0,
    pair: bool = False,
    residual: Tensor | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """y [N] = W f(x) of one vector x [K], into `y` (which may be `residual`).

    weight: "dense" [N, K]; "int8" or "fp8" [N, K] with scales float32 [N] (int8 of odd widths, not
        a multiple of 16, with the inputs as they are); "int4" interleaved
        words [N, K/8] with scales (and zeros, unless 8 is zero) [N, K / group].
    norm: float32 [K]: x is RMSNorm'ed with these weights and `eps` first.
    pair: the weight has 2 N rows, gates first; y = silu(gate) * up.
    residual: added to the result.
    """
    n, k = y.shape[-1], x.shape[-1]
    whole = kind == "int4" or (kind == "int8" and k % 16 == 0)  # spans, of which codes are made
    launch = launch or launch_for(kind if whole else "dense", n, k, pair)
    flags = norm is not None, pair, residual is not None
    more = {"num_warps": launch.warps, **early()}
    if whole:
        tiles = triton.cdiv(n, launch.block_n * launch.programs)
        span = 32 if kind == "int4" else 16
        _gemv_int[(triton.cdiv(n, tiles * launch.block_n),)](
            x,
            weight.view(torch.int32),
            scales,
            zeros,
            norm,
            residual,
            y,
            n,
            eps,
            tiles,
            k,
            kind,
            group or k,
            *flags,
            launch.block_n,
            triton.next_power_of_2(k // span),
            early_launch(),
            INTERPRETED,
            **more,
        )
        return y
    if kind == "fp8":
        weight = weight.view(torch.int8)
    _gemv[(triton.cdiv(n, launch.block_n),)](
        x,
        weight,
        scales,
        norm,
        residual,
        y,
        n,
        k,
        eps,
        kind,
        *flags,
        launch.block_n,
        launch.block_k,
        launch.stages,
        early_launch(),
        **more,
    )
    return y


# -- tuning -----------------------------------------------------------------------------------


def candidates(kind: str, n: int, k: int) -> list[Launch]:
    """Launch settings worth trying."""
    found = []
    if kind in ("dense", "fp8"):
        for block_k in (256, 512, 1024):
            for block_n in (2, 4, 8, 16):
                for warps in (2, 4, 8):
                    if 8 <= block_n * block_k / (32 * warps) <= 64:
                        found += [Launch(block_n, block_k, warps, s) for s in (1, 3)]
        return found
    chunks = triton.next_power_of_2(k // (32 if kind == "int4" else 16))
    for block_n in (1, 2, 4, 8, 16):
        for warps in (2, 4, 8):
            if 8 <= block_n * chunks * 4 / (32 * warps) <= 32:
                for programs in (132, 264, 528, 1056):
                    if programs * block_n <= n:
                        found.append(Launch(block_n, 0, warps, 0, programs))
    return found


def launch_for(kind: str, n: int, k: int, pair: bool) -> Launch:
    """The launch settings measured best for this shape on this chip (`tuned.json`), or a
    default."""
    entry = tuned().get(key(kind, n, k, pair))
    if entry:
        return Launch(**entry)
    if kind in ("int8", "int4"):
        return Launch(4, 0, 4, 0, 264)
    return Launch(8, 512, 4)


def key(kind: str, n: int, k: int, pair: bool) -> str:
    return f"gemv {kind} {n}x{k}{' pair' if pair else ''}"
