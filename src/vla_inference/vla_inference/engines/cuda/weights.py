"""Linear layers of the CUDA engine: one kernel for prefill (many rows), one for decode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.kernels.gemv import gemv
from vla_inference.kernels.gemv_w4a8 import gemv_coded
from vla_inference.kernels.layers import Product
from vla_inference.quantization import QuantLinear


class DenseWeight:
    """[N, K] in the model's own dtype. The plain modules keep working, on views of it."""

    activations = ""

    def __init__(self, layers: Sequence[nn.Module]):
        self.weight = join(layers, "weight")

    def matmul(self, x: Tensor, scales: Tensor | None = None) -> Product:
        """[n, K] -> [n, N]"""
        return Product(F.linear(x, self.weight))

    def matvec(self, x: Tensor, y: Tensor, **more) -> Tensor:
        """[K] -> [N], into y; see `gemv`."""
        return gemv(x, self.weight, y, **more)


class QuantWeight:
    """Codes and scales. The prefill (`matmul`) goes by `matmul_by`:

    "int8", "fp8": inputs are rounded as well and the tensor cores multiply codes; of int4 weights
        a copy in that format is kept beside them. "dense": dequantised in every pass.
    """

    def __init__(self, layers: Sequence[QuantLinear], matmul_by: str, dtype: torch.dtype):
        self.format, self.dtype, self.layers = layers[0].format, dtype, layers
        self.activations = "" if matmul_by == "dense" else matmul_by
        for layer in layers:
            layer.interleave_()
        self.codes = join(layers, "codes")
        self.scales = join(layers, "scales")
        self.zeros = None if layers[0].zeros is None else join(layers, "zeros")
        self.unit = torch.ones((), device=self.codes.device)
        kind = self.format.kind
        if kind != "int4":
            self.scales = self.scales.flatten()
        if not self.activations or kind == self.activations:
            self.wide, self.wide_scales = self.codes, self.scales
        else:
            self.wide, self.wide_scales = _rounded(layers, self.activations)

    def matmul(self, x: Tensor, scales: Tensor | None = None) -> Product:
        if self.activations == "fp8":
            codes = torch._scaled_mm(
                x,
                self.wide.t(),
                self.unit,
                self.unit,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
            return Product(codes, scales, self.wide_scales)
        if self.activations == "int8":
            few = max(0, 17 - len(x))  # the library's product wants more than 16 rows
            rows = F.pad(x, (0, 0, 0, few)) if few else x
            codes = torch._int_mm(rows, self.wide.t())
            return Product(codes[: len(x)], scales, self.wide_scales)
        dense = torch.cat([layer.dequantize(x.dtype) for layer in self.layers])
        return Product(F.linear(x, dense))

    def matvec(self, x: Tensor, y: Tensor, **more) -> Tensor:
        return gemv(
            x,
            self.codes,
            y,
            kind=self.format.kind,
            scales=self.scales,
            zeros=self.zeros,
            group=self.format.group,
            **more,
        )

    def matvec_coded(self, x: Tensor, k: int, y: Tensor, **more):
        """`matvec` on the codes of a vector [k]; see `gemv_coded`."""
        return gemv_coded(
            x,
            k,
            self.codes,
            y,
            kind=self.format.kind,
            scales=self.scales,
            zeros=self.zeros,
            group=self.format.group,
            **more,
        )


def make_weight(layers: Sequence[nn.Module], matmul_by: str, dtype: torch.dtype):
    """One weight for layers that read the same input."""
    quantised = [layer for layer in layers if isinstance(layer, QuantLinear)]
    if len(quantised) == len(layers):
        return QuantWeight(quantised, matmul_by, dtype)
    return DenseWeight(layers)


def join(layers: Sequence[nn.Module], name: str) -> Tensor:
    """One tensor with the rows of all layers; the layers' own tensors become views of it."""
    parts = [getattr(layer, name) for layer in layers]
    if len(parts) == 1:
        return parts[0].data
    whole = torch.cat([p.data for p in parts])
    rows = whole.split([len(p) for p in parts])
    for layer, part, mine in zip(layers, parts, rows, strict=True):
        if isinstance(part, nn.Parameter):
            part.data = mine
        else:
            setattr(layer, name, mine)
    return whole


def _rounded(layers: Sequence[QuantLinear], kind: str) -> tuple[Tensor, Tensor]:
    """The weights once more, in 8 bits with one scale per row: codes [N, K], scales bfloat16
    [N].

    What follows a product reads all scales for each row: rounded up to 16 bits they are half the
    bytes, and the codes are made with what they are rounded to.
    """
    top, dtype = (127.0, torch.int8) if kind == "int8" else (448.0, torch.float8_e4m3fn)
    codes, scales = [], []
    for layer in layers:
        weight = layer.dequantize()
        scale = (weight.abs().amax(1, keepdim=True) / top).clamp(min=1e-12)
        scale = (scale * (1 + 2**-8)).bfloat16()
        weight = weight / scale.float()
        codes.append((weight.round() if kind == "int8" else weight).to(dtype))
        scales.append(scale.flatten())
    return torch.cat(codes), torch.cat(scales)
