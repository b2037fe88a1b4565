"""LoRA layers (arXiv 2106.09685); on a quantised base QLoRA (arXiv 2305.14314).

    y = x W^T + b + scale * (x A^T) B^T        W frozen, A [r, in], B [out, r] trained

Adapters lie on disk as peft has them (adapter_config.json, adapter_model.safetensors), so that
either side reads the other's. The base's parameter names stay what they are in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.errors import VlaError

# peft's "all-linear" leaves the output layer out; the heads are trained whole (`WHOLE`).
NEVER = ("language_model.lm_head",)
WHOLE = ("action_head", "proprio_projector", "action_slots")
ENCODERS = "vision_backbone"


@dataclass(frozen=True)
class LoraConfig:
    """Size and scale of LoRA adapters.

    rank: r; alpha: the scale is alpha / rank, min(rank, 16) if left out (as OpenVLA has it);
    vision: adapt the vision encoders too, as the original does.
    """

    rank: int = 32
    alpha: float | None = None
    vision: bool = True

    def __post_init__(self):
        if self.rank < 1:
            raise VlaError(f"the LoRA rank is {self.rank}", "give at least 1")

    @property
    def scale(self) -> float:
        return self.alpha_used / self.rank

    @property
    def alpha_used(self) -> float:
        return min(self.rank, 16) if self.alpha is None else self.alpha


# One operator for the whole layer: the low-rank part is added into the product's own memory, and
# beside x only [tokens, r] is kept for the way back. A compiler takes it as it is.


@torch.library.custom_op("vla::lora_linear", mutates_args=())
def _lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
    low = rows @ a.t()
    y.addmm_(low, b.t(), alpha=scale)
    return y.view(*x.shape[:-1], weight.shape[0]), low


@_lora_linear.register_fake
def _(x, weight, bias, a, b, scale):
    rows = x.shape[:-1].numel()
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(rows, a.shape[0])


@torch.library.custom_op("vla::lora_linear_backward", mutates_args=())
def _lora_linear_backward(
    grad: Tensor, x: Tensor, low: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dy, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    dlow = (dy @ b).mul_(scale)
    dx = dy @ weight
    dx.addmm_(dlow, a)
    return dx.view(x.shape), dlow.t() @ rows, (dy.t() @ low).mul_(scale)


@_lora_linear_backward.register_fake
def _(grad, x, low, weight, a, b, scale):
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx, inputs, output):
    x, weight, _, a, b, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], weight, a, b)


def _backward(ctx, grad, _):
    x, low, weight, a, b = ctx.saved_tensors
    dx, da, db = torch.ops.vla.lora_linear_backward(grad, x, low, weight, a, b, ctx.scale)
    return dx, None, None, da, db, None


_lora_linear.register_autograd(_backward, setup_context=_keep)


class _Dequantised(torch.autograd.Function):
    """x W^T for a W that is dequantised when needed and never kept."""

    @staticmethod
    def forward(ctx, x: Tensor, base: Any) -> Tensor:
        ctx.base = base
        return x @ base.dequantize().to(x.dtype).t()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad @ ctx.base.dequantize().to(grad.dtype), None


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter.

    base: `nn.Linear`, or any module with `in_features`, `out_features`, `bias` (or None) and
        `dequantize()`, which gives its weight [out, in].
    """

    def __init__(self, base: Any, config: LoraConfig, seed: int, dtype=torch.float32):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), config.scale
        device = next(iter([*base.parameters(), *base.buffers()])).device
        outputs, inputs = int(base.out_features), int(base.in_features)
        a = torch.empty(config.rank, inputs, dtype=dtype, device=device)
        # Each layer draws from its own seed: what it starts from depends on nothing around it.
        # On the CPU, so that all devices start alike.
        bound = 1 / math.sqrt(inputs)
        draw = torch.Generator().manual_seed(seed)
        a.copy_(torch.rand(a.shape, generator=draw).mul_(2 * bound).sub_(bound))
        self.lora_A = nn.Parameter(a)
        zeros = torch.zeros(outputs, config.rank, dtype=dtype, device=device)
        self.lora_B = nn.Parameter(zeros)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if isinstance(self.base, nn.Linear):
            base = self.base
            return torch.ops.vla.lora_linear(x, base.weight, base.bias, a, b, self.scale)[0]
        y = _Dequantised.apply(x, self.base)
        bias = getattr(self.base, "bias", None)
        if bias is not None:
            y = y + bias.to(y.dtype)
        return y + self.scale * F.linear(F.linear(x, a), b)

    def delta(self) -> Tensor:
        """The change of the weight by merging: float32 [out, in]."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or hasattr(module, "dequantize")


def adapted_names(model: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the linear layers that get an adapter."""
    skip = NEVER + WHOLE + (() if config.vision else (ENCODERS,))
    names = [n for n, m in model.named_modules() if is_linear(m)]
    return [n for n in names if not n.startswith(skip)]


def add_lora(model: nn.Module, config: LoraConfig, seed: int = 0) -> list[str]:
    """Freezes the model, adds an adapter to each linear layer and keeps the action heads
    trainable.

    Returns the adapted layers' names.
    """
    names = adapted_names(model, config)
    model.requires_grad_(False)
    adapt(model, names, config, seed)
    for name, parameter in model.named_parameters():
        if name.startswith(WHOLE):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return names


def adapt(model: nn.Module, names: Sequence[str], config: LoraConfig, seed: int = 0) -> None:
    """Adds an adapter to each of these linear layers."""
    for number, name in enumerate(names):
        swap(model, name, LoraLinear(model.get_submodule(name), config, (seed << 20) + number))


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, LoraLinear))
