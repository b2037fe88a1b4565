"""`QuantLinear`: a linear layer with a quantised weight, in place of `nn.Linear`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.quantization.formats import Format

FP8_MAX = 448.0  # of float8_e4m3fn


class QuantLinear(nn.Module):
    """y = x W^T + b with W stored as codes and scales.

    codes: int4: int32 [N, K/8], eight consecutive weights a word, the first in the lowest bits;
        int8: int8 [N, K]; fp8: float8_e4m3fn [N, K].
    scales: [N, groups], float16 for int4 and float32 else. zeros: float16 [N, groups] in units of
        codes, where the format is not symmetric.

    `forward` multiplies by the dequantised weight: exact and slow. Engines read the codes.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, format: Format, n: int, k: int, bias: bool = False, device=None):
        super().__init__()
        format.check(n, k)
        self.format, self.out_features, self.in_features = format, n, k
        groups = format.groups(k)
        dtype = {"int4": torch.int32, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[format.kind]
        width = k // 8 if format.kind == "int4" else k
        scale_type = torch.float16 if format.kind == "int4" else torch.float32
        self.register_buffer("codes", torch.empty(n, width, dtype=dtype, device=device))
        self.register_buffer("scales", torch.empty(n, groups, dtype=scale_type, device=device))
        if format.kind == "int4" and not format.symmetric:
            zeros = torch.empty(n, groups, dtype=torch.float16, device=device)
            self.register_buffer("zeros", zeros)
        else:
            self.zeros = None
        self.bias = nn.Parameter(torch.empty(n, device=device)) if bias else None
        self.interleaved = False

    def interleave_(self) -> None:
        """Reorders int4 codes in place for `kernels.gemv`."""
        if self.format.kind == "int4" and not self.interleaved:
            self.codes, self.interleaved = interleave(self.codes), True

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dequantised weight: [N, K]"""
        n, k = self.out_features, self.in_features
        codes = self.codes
        if self.format.kind == "int4":
            codes = unpack(codes)
            if self.interleaved:
                codes = codes.view(n, -1, 4, 2).transpose(2, 3)
        grouped = codes.float().reshape(n, self.format.groups(k), -1)
        if self.format.kind == "int4":
            grouped = grouped - (8 if self.zeros is None else self.zeros.float()[..., None])
        return (grouped * self.scales.float()[..., None]).view(n, k).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantize(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.format.name}"


def pack(codes: Tensor) -> Tensor:
    """uint8 [N, K] of 0..15 -> int32 [N, K/8]"""
    n, k = codes.shape
    shifts = torch.arange(0, 32, 4, device=codes.device)
    # int64 first: the top nibble may set the sign bit.
    words = (codes.view(n, k // 8, 8).long() << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def unpack(words: Tensor) -> Tensor:
    """int32 [N, K/8] -> uint8 [N, K] of 0..15"""
    shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & 15).to(torch.uint8).flatten(1)


def interleave(words: Tensor) -> Tensor:
    """int32 [N, K/8]: the first four of eight weights into the low halves of a word's bytes."""
    n = words.shape[0]
    return pack(unpack(words).view(n, -1, 2, 4).transpose(2, 3).reshape(n, -1))
