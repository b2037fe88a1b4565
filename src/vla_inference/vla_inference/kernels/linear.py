"""A linear layer of some 256 positions with what follows it: for the vision towers.

The libraries' products are tuned to fill the chip alone; here two towers run side by side, and the
bias, the GELU or the scaled residual are done before the result leaves the chip. Used where it was
measured faster (`tuned.json`), else the library's product followed by small kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.kernels.launching import tuned
from vla_inference.kernels.layers import gelu_


@dataclass(frozen=True)
class Tile:
    """block_m positions x block_n outputs a program, block_k inputs a turn, `stages` ahead."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


@triton.jit
def _linear(
    x, w, bias, gamma, residual, y, M, N, K,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, K, BLOCK_K):
        here = k0 + k
        a = tl.load(x + m[:, None] * K + here[None, :], (m < M)[:, None] & (here < K)[None, :], 0)
        b = tl.load(w + n[None, :] * K + here[:, None], (n < N)[None, :] & (here < K)[:, None], 0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    acc += tl.load(bias + n, n < N, 0).to(tl.float32)[None, :]
    if GELU:
        acc = 0.5 * acc * (1 + tl.erf(acc * 0.7071067811865476))
    at = m[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    if gamma is not None:
        acc *= tl.load(gamma + n, n < N, 0).to(tl.float32)[None, :]
    if RESIDUAL:
        acc += tl.load(residual + at, inside, 0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), inside)


def linear(
    x: Tensor,
    layer: torch.nn.Linear,
    *,
    gelu: bool = False,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """act(x W^T + b), times `gamma`, plus `residual`: [M, K] -> [M, N]."""
    (m, k), n = x.shape, layer.out_features
    tile = tile or tile_for(n, k, gelu)
    if tile is None:
        y = F.linear(x, layer.weight, layer.bias)
        y = gelu_(y) if gelu else y
        if residual is None:
            return y if gamma is None else y * gamma
        return residual + y if gamma is None else torch.addcmul(residual, y, gamma)
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    grid = triton.cdiv(m, tile.block_m), triton.cdiv(n, tile.block_n)
    _linear[grid](
        x, layer.weight, layer.bias, gamma, residual, y, m, n, k, gelu, residual is not None,
        tile.block_m, tile.block_n, tile.block_k, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def tile_for(n: int, k: int, gelu: bool) -> Tile | None:
    """The tile measured best on this chip; None where the library was faster, or unmeasured."""
    entry = tuned().get(key(n, k, gelu))
    return Tile(**entry) if entry else None


def key(n: int, k: int, gelu: bool) -> str:
    return f"linear {n}x{k}{' gelu' if gelu else ''}"


def tiles() -> list[Tile]:
    """Tiles worth trying."""
    found = []
    for block_m, block_n in ((64, 64), (64, 128), (128, 64), (128, 128), (256, 64)):
        for block_k in (64, 128):
            for stages in (3, 4):
                for warps in (4, 8):
                    size = (block_m + block_n) * block_k * 2 * stages
                    if size <= 220_000 and block_m * block_n / warps <= 4096:
                        found.append(Tile(block_m, block_n, block_k, warps, stages))
    return found
