"""What the gates of the kernels share: inputs from a seed, poison around them, errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT = 2e-6  # float32 arithmetic
FEW = settings(deadline=None, max_examples=4, derandomize=True)
SEEDS = st.integers(0, 2**31)


@pytest.fixture(autouse=True, scope="module")
def poison():
    """Whatever `torch.empty` gives is full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative error; NaN where there is one."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def within(found: Tensor, wanted: Tensor, bound: float) -> bool:
    return off(found, wanted) < bound  # False for NaN


class Draw:
    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(DEVICE)

    def positive(self, *shape: int) -> Tensor:
        return (torch.rand(*shape, generator=self.generator) + 0.5).to(DEVICE)


def fenced(x: Tensor, room: int = 64) -> tuple[Tensor, Tensor]:
    """A copy of x with poison around it, and all of that."""
    whole = torch.full((x.numel() + 2 * room,), float("nan"), dtype=x.dtype, device=x.device)
    view = whole[room : room + x.numel()].view(x.shape)
    view.copy_(x)
    return view, whole


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.double()
