"""Rounds weights to codes: to nearest, or by half-quadratic quantisation (HQQ).

HQQ (Badri & Shaji, 2023, https://mobiusml.github.io/hqq_blog/) moves each group's zero so that
the error has a small p-norm (p = 0.7), which outliers spoil less than the square. It needs no
data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_inference.errors import VlaError
from vla_inference.quantization.formats import Format
from vla_inference.quantization.linear import FP8_MAX, QuantLinear, pack
from vla_inference.quantization.swap import WHERE, put, quantisable

FURTHEST_ZERO = 2048.0  # codes; up to here float16 has all whole numbers


@torch.no_grad()
def quantize_linear(
    layer: nn.Linear, format: Format, method: str = "hqq", name: str = "weight"
) -> QuantLinear:
    """A quantised copy of the layer on the same device. method: "rtn" (to nearest) or "hqq"."""
    n, k = layer.weight.shape
    format.check(n, k, name)
    if not layer.weight.isfinite().all():
        raise VlaError(f"{name} contains numbers that are not finite", "fix the checkpoint")
    result = QuantLinear(format, n, k, layer.bias is not None, layer.weight.device)
    if layer.bias is not None:
        result.bias = layer.bias
    weight = layer.weight.float()
    if format.kind == "int4":
        codes, scales, zeros = int4_codes(weight, format, method)
        if not scales.isfinite().all() or (zeros is not None and not zeros.isfinite().all()):
            raise VlaError(f"{name} is too large for {format.name}'s float16 scales", "use int8")
        result.codes, result.scales = pack(codes), scales
        if zeros is not None:
            result.zeros = zeros
        return result
    top = 127.0 if format.kind == "int8" else FP8_MAX
    scale = (weight.abs().amax(1, keepdim=True) / top).clamp(min=1e-12)
    scaled = weight / scale
    result.codes = (
        scaled.round().to(torch.int8) if format.kind == "int8" else scaled.to(torch.float8_e4m3fn)
    )
    result.scales = scale
    return result


def int4_codes(
    weight: Tensor, format: Format, method: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """float32 [N, K] -> codes uint8 [N, K], scales and zeros (or None) float16 [N, G]."""
    if method not in ("rtn", "hqq"):
        raise VlaError(f"unknown rounding method {method!r}", "use 'rtn' or 'hqq'")
    n, k = weight.shape
    w = weight.view(n, format.groups(k), -1)
    if format.symmetric:
        scale = (w.abs().amax(-1, keepdim=True) / 7.5).clamp(min=1e-6)
        if method == "hqq":
            scale = _best_scale(w, scale)
        scale = scale.half().float()
        codes = (w / scale + 8).round().clamp(0, 15)
        return codes.to(torch.uint8).view(n, k), scale.half()[..., 0], None
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    # A group far from zero for its range has a zero that float16 cannot hold to one code: there a
    # larger scale is as exact, since the zero's own steps are what limits it.
    size = torch.maximum(low.abs(), high.abs())
    scale = torch.maximum((high - low) / 15, size / FURTHEST_ZERO).clamp(min=1e-6).half().float()
    zero = -low / scale
    if method == "hqq":
        zero = _half_quadratic(w, scale, zero)
    zero = zero.half().float()
    codes = (w / scale + zero).round().clamp(0, 15)
    return codes.to(torch.uint8).view(n, k), scale.half()[..., 0], zero.half()[..., 0]


def _half_quadratic(
    w: Tensor, scale: Tensor, zero: Tensor, p: float = 0.7, beta: float = 10.0, rounds: int = 20
) -> Tensor:
    """HQQ's alternation: shrink the error, then move each zero to the mean of what remains."""
    best, best_error = zero, torch.full_like(zero, float("inf"))
    size = scale  # errors in units of codes, so that beta means the same for all weights
    for _ in range(rounds):
        codes = (w / scale + zero).round().clamp(0, 15)
        error = (w - (codes - zero) * scale) / size
        total = error.abs().pow(p).mean(-1, keepdim=True)
        better = total < best_error
        best, best_error = torch.where(better, zero, best), torch.where(better, total, best_error)
        shrunk = (
            error.sign() * (error.abs() - error.abs().clamp(min=1e-8).pow(p - 1) / beta).relu()
        )
        zero = (codes - (w / size - shrunk) * size / scale).mean(-1, keepdim=True)
        beta *= 1.01
    return best


def _best_scale(w: Tensor, scale: Tensor, steps: int = 16) -> Tensor:
    """Each group's scale with the smallest squared error, among scales up to 30 % smaller."""
    best, best_error = scale, torch.full_like(scale, float("inf"))
    for share in torch.linspace(1.0, 0.7, steps).tolist():
        tried = scale * share
        error = w - ((w / tried + 8).round().clamp(0, 15) - 8) * tried
        total = error.square().mean(-1, keepdim=True)
        better = total < best_error
        best, best_error = torch.where(better, tried, best), torch.where(better, total, best_error)
    return best


def quantize_model(
    model: nn.Module, format: Format, method: str = "hqq", where: str = WHERE
) -> None:
    """Quantises the linear layers of the decoder, or of another module, one at a time."""
    for name, layer in quantisable(model, where):
        put(model, name, quantize_linear(layer, format, method, f"{name}.weight"))
