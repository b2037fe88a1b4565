"""Attention to a cached prefix, for a vision-language model's own pass and for its action expert.

Query heads that share keys are rows of one program, so that keys are read once for all of them.
Where there are few rows, several programs share them: each takes some tiles of the cache, and who
comes last puts the parts together, in their own order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.kernels.few_rows import Parts
from vla_inference.kernels.launch_settings import early, early_launch, tuned

OWN = ("", "causal", "all")  # whether queries see keys of their own pass as well: no, earlier, all


@dataclass(frozen=True)
class Launch:
    """rows a program, cached keys a tile, tiles in flight; `splits` programs share the tiles."""

    rows: int = 64
    block: int = 64
    splits: int = 1
    warps: int = 4
    stages: int = 2


@triton.jit
def _take(query, keys, values, seen, scale, acc, top, total):
    """One more tile of keys: the running softmax. A row that has seen nothing yet stays so."""
    score = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
    score = tl.where(seen, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    share = tl.exp2(score - safe[:, None])
    shrink = tl.exp2(top - safe)
    acc = tl.dot(share.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return acc, higher, total * shrink + tl.sum(share, 1)


@triton.jit
def _attend_cached(
    q,
    keys,
    values,
    length,
    out,
    parts,
    arrived,
    M,
    N,
    resumes,
    q_row,
    k_head,
    k_row,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    OWN: tl.constexpr,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    block, kv, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    i = tl.arange(0, ROWS)
    t = (block * ROWS + i) // GROUP
    head = kv * GROUP + (block * ROWS + i) % GROUP
    d = tl.arange(0, WIDE)
    inside = (d < D)[None, :]
    row = t < M
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = (t * q_row + head * D)[:, None] + d[None, :]
    query = tl.load(q + at, row[:, None] & inside, 0.0)
    acc = tl.zeros((ROWS, WIDE), tl.float32)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    end = tl.load(length)
    for begin in tl.range(split * BLOCK, N, SPLITS * BLOCK, num_stages=STAGES):
        slot = begin + tl.arange(0, BLOCK)
        there = slot < N
        seen = (there & ((slot < end) | (slot >= resumes)))[None, :]
        if LAST:
            seen = seen & ((slot < N - 1)[None, :] | (t == M - 1)[:, None])
        where = kv * k_head + slot[:, None] * k_row + d[None, :]
        ks = tl.load(keys + where, there[:, None] & inside, 0.0)
        vs = tl.load(values + where, there[:, None] & inside, 0.0)
        acc, top, total = _take(query, ks, vs, seen, scale, acc, top, total)
    if OWN != "":  # noqa: SIM102 - else a runtime condition would keep the block
        if split == SPLITS - 1:
            for begin in tl.range(0, M, BLOCK, num_stages=1):
                j = begin + tl.arange(0, BLOCK)
                mine = j < M
                own = (j * q_row + (HEADS + kv) * D)[:, None] + d[None, :]
                ks = tl.load(q + own, mine[:, None] & inside, 0.0)
                vs = tl.load(q + KV_HEADS * D + own, mine[:, None] & inside, 0.0)
                seen = mine[None, :]
                if OWN == "causal":
                    seen = seen & (j[None, :] <= t[:, None])
                acc, top, total = _take(query, ks, vs, seen, scale, acc, top, total)
    last = 0
    if SPLITS > 1:
        ROOM: tl.constexpr = ROWS * (WIDE + 2)
        output = block * KV_HEADS + kv
        part = parts + (output * SPLITS + split) * ROOM
        tl.store(part + i[:, None] * WIDE + d[None, :], acc)
        tl.store(part + ROWS * WIDE + i, top)
        tl.store(part + ROWS * WIDE + ROWS + i, total)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + output, 1, sem="acq_rel", scope="gpu")
    if last == SPLITS - 1:
        if SPLITS > 1:
            tl.store(arrived + output, 0)
            acc = tl.zeros((ROWS, WIDE), tl.float32)
            top = tl.full((ROWS,), float("-inf"), tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            for each in tl.static_range(SPLITS):
                its = parts + (output * SPLITS + each) * ROOM
                tops = tl.load(its + ROWS * WIDE + i, cache_modifier=".cg")
                totals = tl.load(its + ROWS * WIDE + ROWS + i, cache_modifier=".cg")
                accs = tl.load(its + i[:, None] * WIDE + d[None, :], cache_modifier=".cg")
                higher = tl.maximum(top, tops)
                safe = tl.where(higher == float("-inf"), 0.0, higher)
                shrink, share = tl.exp2(top - safe), tl.exp2(tops - safe)
                acc = acc * shrink[:, None] + accs * share[:, None]
                total = total * shrink + totals * share
                top = higher
        acc = acc / total[:, None]
        to = out + t[:, None] * (HEADS * D) + head[:, None] * D + d[None, :]
        tl.store(to, acc.to(out.dtype.element_ty), row[:, None] & inside)


def attend_cached(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    parts: Parts,
    *,
    heads: int,
    resumes: int,
    own: str = "",
    last_alone: bool = False,
    launch: Launch | None = None,
) -> Tensor:
    """Attention of M positions to a cache of N slots: [M, heads * d], heads side by side.

    q: [M, heads * d], or with keys and values of these positions beside them
        [M, (heads + 2 kv_heads) d]; queries and keys are rotated.
    keys, values: [kv_heads, N, d]; any strides, equal ones, but a head's numbers must be
        contiguous.
    length: int32 [1]; slots from there to `resumes` are padding, which nobody sees.
    own: see `OWN`. last_alone: the last slot is seen by the last position only, whose own it is.
    """
    (kv_heads, n, d), m = keys.shape, len(q)
    wide = max(16, triton.next_power_of_2(d))
    chosen = launch or launch_for(d, m, heads // kv_heads, own, q.dtype)
    blocks = triton.cdiv(m * (heads // kv_heads), chosen.rows)
    splits = min(chosen.splits, triton.cdiv(n, chosen.block))
    if splits > 1:
        parts.check(blocks * kv_heads, splits, chosen.rows * (wide + 2))
    out = torch.empty(m, heads * d, dtype=q.dtype, device=q.device)
    _attend_cached[(blocks, kv_heads, splits)](
        q,
        keys,
        values,
        length,
        out,
        parts.sums,
        parts.arrived,
        m,
        n,
        resumes,
        q.stride(0),
        keys.stride(0),
        keys.stride(1),
        d**-0.5 * 1.4426950408889634,
        heads,
        kv_heads,
        d,
        wide,
        own,
        last_alone,
        chosen.rows,
        chosen.block,
        splits,
        chosen.stages,
        early_launch(),
        num_warps=chosen.warps,
        **early(),
    )
    return out


# -- tuning -----------------------------------------------------------------------------------


def launch_for(d: int, m: int, group: int, own: str, dtype: torch.dtype) -> Launch:
    """The launch settings measured best for such heads on this chip, or a default."""
    if dtype == torch.float32:  # which takes twice the room, and no tensor cores
        return Launch(16, 32)
    entry = tuned().get(key(d, m, group, own))
    return Launch(**entry) if entry else usual(d, m)


def usual(d: int, m: int) -> Launch:
    """Fits the 99 KB that a program may have on a GPU of a desktop."""
    tile = 32 if d > 128 else 64
    return Launch(tile, tile, splits=4 if m <= 64 else 1)


def candidates(d: int, m: int) -> list[Launch]:
    """Launch settings worth trying."""
    few, found = m <= 64, [usual(d, m)]
    for rows in (16, 32, 64) if few or d > 128 else (64, 128):
        for block in (32, 64) if d > 128 else (32, 64, 128):
            for splits in (1, 2, 4, 8, 16) if few else (1,):
                for stages in (2, 3):
                    warps = 8 if rows * d > 64 * 128 else 4
                    found.append(Launch(rows, block, splits, warps, stages))
    return list(dict.fromkeys(found))


def key(d: int, m: int, group: int, own: str) -> str:
    """m: passes of a few positions share settings, so do passes of many."""
    return f"attend cached {d} {'few' if m <= 64 else 'many'} {group} {own}".rstrip()
