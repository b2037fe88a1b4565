"""GPTQ (Frantar et al., 2022, arXiv 2210.17323): rounding calibrated on layer inputs.

Columns are rounded one after the other, and each one's error is made up for by those that are
still to come, as far as the inputs' correlations (the Hessian X^T X) let them. Scales and zeros
are those of rounding to nearest, fixed beforehand, so that columns can be taken in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_inference.errors import VlaError
from vla_inference.quantization.formats import Format
from vla_inference.quantization.linear import QuantLinear, pack
from vla_inference.quantization.rounding import quantize_linear

DAMPING = 0.01  # share of the diagonal's mean that is added to it
BLOCK = 128  # columns whose errors reach the others at once


@torch.no_grad()
def gptq_linear(
    layer: nn.Linear,
    hessian: Tensor,
    format: Format,
    name: str = "weight",
    act_order: bool = True,
) -> QuantLinear:
    """Quantises a layer with a small error on inputs with this `hessian`.

    hessian: float [K, K], the sum of x x^T over inputs x.
    act_order: columns with the largest inputs first.
    """
    if format.kind == "fp8":
        raise VlaError(f"GPTQ has no grid for {format.name}", "use method rtn, or an int format")
    if not hessian.isfinite().all():
        raise VlaError(f"inputs of {name} are not finite", "check the weights and the dataset")
    result = quantize_linear(layer, format, "rtn", name)
    n, k = layer.weight.shape
    low, high = (0, 15) if format.kind == "int4" else (-127, 127)
    width = format.group or k
    scales = result.scales.float().repeat_interleave(width, 1)
    if result.zeros is not None:
        zeros = result.zeros.float().repeat_interleave(width, 1)
    else:
        zeros = torch.full_like(scales, 8.0 if format.kind == "int4" else 0.0)

    weight = layer.weight.float().clone()
    hessian = hessian.to(weight.device, torch.float32).clone()
    diagonal = hessian.diagonal()
    silent = diagonal == 0
    diagonal[silent] = 1.0  # no input ever: any code will do
    order = diagonal.argsort(descending=True) if act_order else torch.arange(k)
    order = order.to(weight.device)
    weight, scales, zeros = weight[:, order], scales[:, order], zeros[:, order]
    upper = _factor(hessian[order][:, order])

    codes = torch.empty_like(weight)
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        errors = weight.new_empty(n, end - begin)
        for j in range(begin, end):
            w, s, z = weight[:, j], scales[:, j], zeros[:, j]
            code = (w / s + z).round().clamp(low, high)
            codes[:, j] = code
            error = (w - (code - z) * s) / upper[j, j]
            weight[:, j:end] -= error[:, None] * upper[j, j:end]
            errors[:, j - begin] = error
        weight[:, end:] -= errors @ upper[begin:end, end:]
    back = order.argsort()
    codes = codes[:, back]
    result.codes = pack(codes.to(torch.uint8)) if format.kind == "int4" else codes.to(torch.int8)
    return result


def _factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse."""
    damping = DAMPING * hessian.diagonal().mean()
    for _ in range(6):
        damped = hessian + damping * torch.eye(len(hessian), device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper
        damping = damping * 10
    raise VlaError("the inputs' Hessian cannot be inverted", "give more samples")
