"""Quantises a vector to 8 bits inside the kernel that computes the vector.

Of a vector [K], one int32 buffer of K / 4 + 3 V words, V = K / 32 (for int8 weights: K / 16): the
bytes (for int4 weights first all that meet low nibbles, then those of high ones), then for each
span of 32 (16) numbers the float32 bits of its step, of its codes' sum times the step, and of the
sum of the vector's squares, from which the reader takes RMSNorm's gain.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vla_inference.kernels.launch_settings import early, early_launch, largest


def span_of(kind: str) -> int:
    return 32 if kind == "int4" else 16


def codes_for(k: int, kind: str, device: torch.device) -> Tensor:
    """A buffer for the codes of a vector [k]."""
    return torch.empty(k // 4 + 3 * (k // span_of(kind)), dtype=torch.int32, device=device)


@triton.jit
def store_codes(v, begin, norm, out, K: tl.constexpr, COUNT: tl.constexpr, KIND: tl.constexpr):
    """Codes of v [COUNT], numbers `begin` on of a vector [K]; of v times `norm` where there is."""
    SPAN: tl.constexpr = 32 if KIND == "int4" else 16
    V: tl.constexpr = K // SPAN
    SPANS: tl.constexpr = COUNT // SPAN
    span = begin // SPAN + tl.arange(0, SPANS)
    inside = span < V
    square = tl.sum(tl.reshape(v * v, (SPANS, SPAN)), 1)
    if norm is not None:
        k = begin + tl.arange(0, COUNT)
        v = v * tl.load(norm + k, k < K, 0.0)
    x = tl.reshape(v, (SPANS, SPAN))
    step = largest(x, 1) / 127
    step = tl.where(step < 1e-20, 1e-20, step)
    codes = tl.floor(x / step[:, None] + 0.5).to(tl.int32)
    total = tl.sum(codes, 1).to(tl.float32) * step
    codes = (codes & 255) << (8 * (tl.arange(0, SPAN) % 4))[None, :]
    words = tl.sum(tl.reshape(codes, (SPANS, SPAN // 4, 4)), 2)
    word = tl.arange(0, SPAN // 4)
    at = span[:, None] * 4 + word[None, :]
    if KIND == "int4":  # words of low nibbles are the even ones
        at = span[:, None] * 4 + (word // 2 + (word % 2) * (K // 8))[None, :]
    tl.store(out + at, words, inside[:, None])
    to = out + K // 4 + span
    tl.store(to, step.to(tl.int32, bitcast=True), inside)
    tl.store(to + V, total.to(tl.int32, bitcast=True), inside)
    tl.store(to + 2 * V, square.to(tl.int32, bitcast=True), inside)


@triton.jit
def _encode(
    x, norm, out, K: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    begin = tl.program_id(0) * BLOCK
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    k = begin + tl.arange(0, BLOCK)
    store_codes(tl.load(x + k, k < K, 0.0).to(tl.float32), begin, norm, out, K, BLOCK, KIND)


def encode(x: Tensor, kind: str, norm: Tensor | None = None) -> Tensor:
    """Quantises an existing vector to codes."""
    k = x.shape[-1]
    out = codes_for(k, kind, x.device)
    _encode[(triton.cdiv(k, 512),)](
        x, norm, out, k, kind, 512, early_launch(), num_warps=4, **early()
    )
    return out
