"""Linear layers of the CPU engine: weights packed for oneDNN once, at load.

oneDNN's own kernels use AVX-512 (and its bf16 instructions) on every maker's processors, and do
what follows a product (bias, GELU, SiLU, adding, multiplying) while its rows are in the cache.
Where PyTorch was built without it, the same products are plain ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.quantization import QuantLinear

AFTER = {
    "none": lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
}  # as oneDNN calls them


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in that dtype here with the processor's own instructions."""
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class PackedLinear:
    """y = x W^T + b for layers that read the same input.

    reads, writes: scales folded into the inputs [K] and the outputs [N].
    order: where each row of W is to be found among the layers'.
    rows: how many rows x usually has; others work as well.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        rows: int,
        dtype: torch.dtype,
        *,
        reads: Tensor | None = None,
        writes: Tensor | None = None,
        order: Tensor | None = None,
        packed: bool | None = None,
    ):
        weight = torch.cat([weight_of(layer) for layer in layers])
        bias = None
        if layers[0].bias is not None:
            bias = torch.cat([layer.get_parameter("bias").float() for layer in layers])
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        if reads is not None:
            weight = weight * reads.float()
        if writes is not None:
            weight = weight * writes.float()[:, None]
            bias = None if bias is None else bias * writes.float()
        self.bias = None if bias is None else bias.to(dtype)
        self.weight = weight.to(dtype).contiguous()
        self.packed = packs(dtype) if packed is None else packed
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)

    def __call__(self, x: Tensor, after: str = "none") -> Tensor:
        """[n, K] -> [n, N]"""
        if not self.packed:
            return AFTER[after](F.linear(x, self.weight, self.bias))
        kind = "none" if after == "gelu" else ""  # the exact GELU
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, after, [], kind)

    def join(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        """The result added to, or multiplied by, another [n, N]."""
        if not self.packed or self.bias is not None:  # both at once is slow there
            y = self(x)
            return y.add_(other) if how == "add" else y.mul_(other)
        return torch.ops.mkldnn._linear_pointwise(x, other, self.weight, self.bias, how)


def weight_of(layer: nn.Module) -> Tensor:
    """float32 [N, K]; for a quantised layer the dequantised weight."""
    if isinstance(layer, QuantLinear):
        return layer.dequantize()
    return layer.get_parameter("weight").detach().float()
