"""Replaces a model's linear layers by quantised ones, and back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from vla_inference.quantization.formats import get_format
from vla_inference.quantization.linear import QuantLinear

# What is quantised: these modules' linear layers. Vision encoders, embeddings and heads stay.
WHERE = "language_model.model.layers"


def quantisable(model: nn.Module, where: str = WHERE) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that can be quantised, by name."""
    for name, module in list(model.get_submodule(where).named_modules()):
        if isinstance(module, nn.Linear):
            yield f"{where}.{name}", module


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def swap_all(model: nn.Module, format: str) -> None:
    """Replaces all of them by empty quantised layers, to be filled from a checkpoint."""
    for name, layer in quantisable(model):
        n, k = layer.weight.shape
        bias = layer.bias is not None
        put(model, name, QuantLinear(get_format(format), n, k, bias, layer.weight.device))


def make_dense(model: nn.Module, dtype: torch.dtype) -> bool:
    """Replaces quantised layers by dense ones with the rounded weights.

    For plain arithmetic, which would dequantise in every pass. Leaves the model as it is, and
    says so by False, where the weights would take more than half of the memory that is free.
    """
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    size = sum(m.in_features * m.out_features for _, m in layers) * dtype.itemsize
    if size > free_memory() / 2:
        return False
    for name, layer in layers:
        dense = nn.Linear(1, 1, bias=False)
        dense.in_features, dense.out_features = layer.in_features, layer.out_features
        dense.weight = nn.Parameter(layer.dequantize(dtype), requires_grad=False)
        dense.register_parameter("bias", layer.bias)
        put(model, name, dense)
    return True


def free_memory() -> int:
    """Free memory of this machine in bytes."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 1 << 32
