"""Flow matching: time embeddings, and Euler steps from noise to actions.

Source: arXiv:2410.24164; behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vla_inference.policies.lerobot.settings import Settings

# (velocity, noisy actions, time) -> velocity
Guide = Callable[[Tensor, Tensor, float], Tensor]
# (noise, guide, held) -> actions, as `sample` gives them
Solve = Callable[[Tensor, Guide | None, Tensor | None], Tensor]
PERIODS = ("min_period", "max_period")


class Inputs(NamedTuple):
    """What a network reads of B observations.

    images: [B, cameras, 3, H, W] in -1 to 1. words: ids [B, L]. word_mask: bool [B, L].
    state: [B, state_dim], normalised and padded.
    """

    images: Tensor
    words: Tensor
    word_mask: Tensor
    state: Tensor


@dataclass(frozen=True)
class FlowSizes:
    """What a flow policy needs to know of its network.

    image_size: height and width. words: most ids of a prompt.
    """

    chunk: int
    steps: int
    state_dim: int
    action_dim: int
    image_size: tuple[int, int]
    words: int


def read_periods(says: Settings) -> tuple[float, float]:
    """The shortest and the longest of the time embedding."""
    shortest, longest = (says.number(name, low=1e-9, high=1e9) for name in PERIODS)
    return shortest, longest


def time_embedding(time: Tensor, width: int, shortest: float, longest: float) -> Tensor:
    """Times [...] -> sines, then cosines, over geometric periods: float64 [..., width]"""
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    periods = shortest * (longest / shortest) ** fraction
    angles = 2 * math.pi * time.double()[..., None] / periods
    return torch.cat([angles.sin(), angles.cos()], -1)


def sample(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    guide: Guide | None = None,
    held: Tensor | None = None,
) -> Tensor:
    """Integrates from noise [B, T, D] at time 1 to actions at time 0.

    velocity: of actions at times [B]. guide: changes it, as real-time chunking does.
    held: the first actions [B, d, D] of the answer, which the model completes, where it was
        trained to; `velocity` then gets times [B, T], which are 0 for these.
    """
    x = noise
    for i in range(steps):
        time = 1 - i / steps
        times = torch.full((len(x),), time, dtype=torch.float32, device=x.device)
        if held is not None:
            x, times = (
                _hold(x, held),
                _hold(times[:, None].repeat(1, x.shape[1]), 0.0 * held[..., 0]),
            )
        v = velocity(x, times)
        x = x - (guide(v, x, time) if guide else v) / steps
    return x if held is None else _hold(x, held)


def _hold(x: Tensor, held: Tensor) -> Tensor:
    """x [B, T, ...] with its beginning [B, d, ...] replaced."""
    return torch.cat([held.to(x.dtype), x[:, held.shape[1] :]], 1)
