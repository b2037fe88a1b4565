"""Products of a few dozen rows, fused with their neighbours; bound by weight bytes and latency.

y = residual + gain * g(f(x) W^T + bias): what a chunk of actions meets in a layer of an expert. f
is RMSNorm; g is an activation, of one factor or of the gates of a pair.

A norm is shared out: who makes rows multiplies them by its weights and sums up their squares
(`Normed`), who reads them scales its results. So no product waits for a norm.

All rows of a tile of outputs are one program's, so that weights are read once. Where there are few
tiles, several programs share one: each sums up a range of the inputs, and who comes last adds the
parts, in their own order. Where the chip has programmatic dependent launch, a program asks for its
weights while the kernel before it still runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.errors import VlaError
from vla_inference.kernels.launch_settings import early, early_launch, tuned
from vla_inference.kernels.layers import activated

PROGRAMS = 264  # two for each multiprocessor of an H100: about as many are worth having
LINE = 128  # bytes that the cache fetches at once


class Parts:
    """Room for the parts of outputs that several programs share.

    One object must not be used by two streams at once. floats: of all parts of a kernel. outputs:
    that it has at most.
    """

    def __init__(self, device: torch.device, floats: int = 1 << 22, outputs: int = 1 << 12):
        self.sums = torch.empty(floats, device=device)
        self.arrived = torch.zeros(outputs, dtype=torch.int32, device=device)

    def check(self, outputs: int, parts: int, floats: int) -> None:
        """Refuses `outputs` of so many parts with so many floats each, if there is no room."""
        if outputs > len(self.arrived) or outputs * parts * floats > len(self.sums):
            raise VlaError(
                f"{outputs} outputs of {parts} parts with {floats} numbers do not fit the room "
                f"for {len(self.sums)}",
                "use fewer parts, or give more room",
            )


@dataclass(frozen=True)
class Launch:
    """block_n outputs a tile, block_k inputs at a time, `stages` in flight; `splits` programs
    share a tile. ahead: weights are asked for before the kernel ahead has ended."""

    block_n: int = 32
    block_k: int = 128
    splits: int = 1
    warps: int = 4
    stages: int = 3
    ahead: bool = True


@triton.jit
def _fetch(w, rows, begin, CHUNK: tl.constexpr, BYTES: tl.constexpr, WIDE: tl.constexpr):
    """Asks the cache for numbers `begin` to `begin + CHUNK` of these rows."""
    line = tl.arange(0, WIDE)
    per_line: tl.constexpr = 128 // BYTES
    at = tl.minimum(line * per_line, CHUNK - 1)
    where = (w + rows[:, None] + begin + at[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [where],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _few_rows(
    x,
    w,
    squares,
    bias,
    gain,
    residual,
    cos,
    sin,
    y,
    norm,
    scaled,
    sums,
    parts,
    arrived,
    M,
    N,
    eps,
    read,
    K: tl.constexpr,
    READ: tl.constexpr,
    HALF: tl.constexpr,
    TURNED: tl.constexpr,
    PAIR: tl.constexpr,
    AFTER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    BYTES: tl.constexpr,
    LINES: tl.constexpr,
    PDL: tl.constexpr,
):
    tile, split, band = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    m = band * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = (m < M)[:, None], (n < N)[None, :]
    begin = split * CHUNK
    kind = w.dtype.element_ty
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if AHEAD:
            own = tl.minimum(n, N - 1)
            start = tl.minimum(begin, K - CHUNK)
            _fetch(w, own * K, start, CHUNK, BYTES, LINES)
            if PAIR:
                _fetch(w, (own + N) * K, start, CHUNK, BYTES, LINES)
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    other = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)  # the second factor of a pair
    if squares is not None:  # asked for here, summed up when the products are done
        each = tl.arange(0, READ)[:, None]
        square = tl.load(squares + each * M + m[None, :], (each < read) & (m < M)[None, :], 0.0)
    for k0 in tl.range(begin, tl.minimum(begin + CHUNK, K), BLOCK_K, num_stages=STAGES):
        k = k0 + tl.arange(0, BLOCK_K)
        inside = k < K
        xs = tl.load(x + m[:, None] * K + k[None, :], row & inside[None, :], 0.0)
        xs = xs.to(kind)
        at = n[None, :] * K + k[:, None]
        there = inside[:, None] & column
        ws = tl.load(w + at, there, 0.0)
        acc = tl.dot(xs, ws, acc, input_precision="ieee")
        if PAIR:
            us = tl.load(w + N * K + at, there, 0.0)
            other = tl.dot(xs, us, other, input_precision="ieee")
    last = 0
    if SPLITS > 1:
        ROOM: tl.constexpr = 2 * BLOCK_M * BLOCK_N
        i = tl.arange(0, BLOCK_M)
        held = i[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        output = band * tl.num_programs(0) + tile
        mine = parts + (output * SPLITS + split) * ROOM
        tl.store(mine + held, acc)
        if PAIR:
            tl.store(mine + BLOCK_M * BLOCK_N + held, other)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + output, 1, sem="acq_rel", scope="gpu")
    if last == SPLITS - 1:
        if SPLITS > 1:
            tl.store(arrived + output, 0)
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            other = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for part in tl.static_range(SPLITS):
                its = parts + (output * SPLITS + part) * ROOM
                acc += tl.load(its + held, cache_modifier=".cg")
                if PAIR:
                    other += tl.load(its + BLOCK_M * BLOCK_N + held, cache_modifier=".cg")
        if squares is not None:
            scale = tl.rsqrt(tl.sum(square, 0) / K + eps)[:, None]
            acc *= scale
            other *= scale
        if bias is not None:
            acc += tl.load(bias + n, n < N, 0.0)[None, :]
            if PAIR:
                other += tl.load(bias + N + n, n < N, 0.0)[None, :]
        acc = activated(acc, AFTER)
        if PAIR:
            acc *= other
        if gain is not None:
            acc *= tl.load(gain + n, n < N, 0.0)[None, :]
        if TURNED == 0:
            to = m[:, None] * N + n[None, :]
            if residual is not None:
                acc += tl.load(residual + to, row & column, 0.0).to(tl.float32)
            found = acc.to(y.dtype.element_ty)
            tl.store(y + to, found, row & column)
            if norm is not None:
                v = tl.where(column, found.to(tl.float32), 0.0)
                ready = v * tl.load(norm + n, n < N, 0.0)[None, :]
                tl.store(scaled + to, ready.to(scaled.dtype.element_ty), row & column)
                tl.store(sums + tile * M + m, tl.sum(v * v, 1), m < M)
        else:  # neighbours are the two numbers that turn together, and part again
            a, b = tl.split(tl.reshape(acc, (BLOCK_M, BLOCK_N // 2, 2)))
            j = tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
            angle = m[:, None] * HALF + (j % HALF)[None, :]
            turns = row & (2 * j < TURNED)[None, :]
            c, s = tl.load(cos + angle, turns, 1.0), tl.load(sin + angle, turns, 0.0)
            first = m[:, None] * N + (j // HALF * 2 * HALF + j % HALF)[None, :]
            known = row & (2 * j < N)[None, :]
            tl.store(y + first, (a * c - b * s).to(y.dtype.element_ty), known)
            tl.store(y + first + HALF, (b * c + a * s).to(y.dtype.element_ty), known)


class Normed(NamedTuple):
    """Rows whose RMSNorm is under way: not yet scaled to one size.

    rows: [M, K], as they are. scaled: [M, K], by the norm's weights. squares: float32 [tiles, M];
    their sum over tiles is that of a row's squares.
    """

    rows: Tensor
    scaled: Tensor
    squares: Tensor


def few_rows(x: Tensor | Normed, weight: Tensor, parts: Parts, **options: Any) -> Tensor:
    """[M, K] -> [M, N].

    x: of any dtype; multiplied in the weight's. Of `Normed`, what the norm makes of it. weight:
    [N, K]. options: see `_product`.
    """
    return _product(x, weight, parts, None, **options)[0]


def few_rows_normed(
    x: Tensor | Normed, weight: Tensor, parts: Parts, norm: Tensor, **options: Any
) -> Normed:
    """As `few_rows`, for an RMSNorm with weights float32 [N] to follow."""
    y, scaled, squares = _product(x, weight, parts, norm, **options)
    assert scaled is not None and squares is not None
    return Normed(y, scaled, squares)


def _product(
    x: Tensor | Normed,
    weight: Tensor,
    parts: Parts,
    norm: Tensor | None,
    *,
    eps: float = 0.0,
    bias: Tensor | None = None,
    after: str = "",
    pair: bool = False,
    gain: Tensor | None = None,
    residual: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    turned: int = 0,
    dtype: torch.dtype | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The product, and with a `norm` to follow the other two of `Normed`.

    eps: of the norm of x. bias: float32, one per row of the weight. after: see
    `layers.activated`. pair: the weight has 2 N rows, gates first; the result is after(gate) * up.
    gain: float32 [N]. residual: [M, N], added last. rotary: cos and sin, float32 [M, d / 2], by
    which the first `turned` results are rotated, heads of d; the weight's rows must then be as
    `neighbours` puts them. The results are in their own order. dtype: of them; default the
    weight's.
    """
    x, squares = (x.scaled, x.squares) if isinstance(x, Normed) else (x, None)
    m, (rows, k) = len(x), weight.shape
    n = rows // 2 if pair else rows
    chosen = launch or launch_for(n, k, pair, weight.dtype)
    block_m = min(64, max(16, triton.next_power_of_2(m)))
    tiles, bands = triton.cdiv(n, chosen.block_n), triton.cdiv(m, block_m)
    block_k = min(chosen.block_k, max(16, triton.next_power_of_2(k)))
    chunk = triton.cdiv(triton.cdiv(k, block_k), chosen.splits) * block_k
    splits = triton.cdiv(k, chunk)
    if splits > 1:
        parts.check(tiles * bands, splits, 2 * block_m * chosen.block_n)
    y = torch.empty(m, n, dtype=dtype or weight.dtype, device=x.device)
    scaled = sums = None
    if norm is not None:
        scaled = torch.empty(m, n, dtype=weight.dtype, device=x.device)
        sums = torch.empty(tiles, m, device=x.device)
    size, read = weight.element_size(), 0 if squares is None else len(squares)
    _few_rows[(tiles, splits, bands)](
        x,
        weight,
        squares,
        bias,
        gain,
        residual,
        *(rotary or (None, None)),
        y,
        norm,
        scaled,
        sums,
        parts.sums,
        parts.arrived,
        m,
        n,
        eps,
        read,
        k,
        triton.next_power_of_2(max(1, read)),
        rotary[0].shape[1] if rotary else 0,
        turned,
        pair,
        after,
        block_m,
        chosen.block_n,
        block_k,
        splits,
        min(chunk, k),
        chosen.stages,
        chosen.ahead,
        size,
        triton.next_power_of_2(triton.cdiv(min(chunk, k) * size, LINE)),
        early_launch(),
        num_warps=chosen.warps,
        **early(),
    )
    return y, scaled, sums


def neighbours(weight: Tensor, head: int) -> Tensor:
    """Rows [N, K] (or numbers [N]) of heads, those that rotary embeddings turn together side by
    side."""
    return weight.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2).contiguous()


# -- tuning -----------------------------------------------------------------------------------


def launch_for(n: int, k: int, pair: bool, dtype: torch.dtype) -> Launch:
    """The launch settings measured best for this shape on this chip, or a default."""
    if dtype == torch.float32:  # which takes twice the room, and no tensor cores
        return Launch(16, 32)
    entry = tuned().get(key(n, k, pair))
    return Launch(**entry) if entry else usual(n, k, pair)


def usual(n: int, k: int, pair: bool) -> Launch:
    """As many programs as `PROGRAMS`, if that leaves each 256 inputs."""
    block_n = 32
    splits = 1
    while splits < 8 and 2 * splits * triton.cdiv(n, block_n) <= PROGRAMS and k >= 512 * splits:
        splits *= 2
    return Launch(block_n, 64 if pair else 128, splits)


def candidates(n: int, k: int, pair: bool) -> list[Launch]:
    """Launch settings worth trying."""
    found = [usual(n, k, pair), replace(usual(n, k, pair), ahead=False)]
    for block_n in (16, 32, 64, 128):
        tiles = triton.cdiv(n, block_n)
        for splits in (1, 2, 4, 8):
            if (tiles * splits < 40 and splits < 8 and k > 256) or tiles * splits > 2 * PROGRAMS:
                continue
            if splits > 1 and k < 128 * splits:
                continue
            for block_k, stages in ((64, 4), (128, 3), (128, 4), (256, 2)):
                if block_n * (1 + pair) * block_k <= 128 * 128:
                    warps = 8 if block_n * (1 + pair) > 128 else 4
                    found.append(Launch(block_n, block_k, splits, warps, stages))
    return list(dict.fromkeys(found))


def key(n: int, k: int, pair: bool) -> str:
    return f"few rows {n}x{k}{' pair' if pair else ''}"
