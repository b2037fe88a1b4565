"""Denoising diffusion (DDPM): actions with noise, and steps from noise back to actions.

Source: arXiv:2006.11239; of the cosine schedule, arXiv:2102.09672; of 20 steps and the clipping,
arXiv:2405.12213.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SHARPEST = 0.999  # of a step's noise: the last one would be 1
FARTHEST = 5.0  # of a normalised action: what is farther from its mean is cut off


@dataclass(frozen=True)
class Schedule:
    """Step t of `steps` (0 has least noise) adds noise of variance `beta[t]`.

    kept: what is left of the actions' variance after steps 0 to t. Both float32 [steps].
    """

    beta: Tensor
    kept: Tensor

    @classmethod
    def cosine(cls, steps: int) -> Schedule:
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
        beta = (1 - curve[1:] / curve[:-1]).clamp(max=SHARPEST)
        return cls(beta.float(), (1 - beta).cumprod(0).float())

    @property
    def steps(self) -> int:
        return len(self.beta)

    def shares(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of actions and of noise after steps [B]: [B, 1, 1] each"""
        kept = self.kept.to(step.device)[step][:, None, None]
        return kept.sqrt(), (1 - kept).sqrt()

    def add_noise(self, actions: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Actions [B, T, D] after steps [B]"""
        a, b = self.shares(step)
        return a * actions + b * noise

    def actions(self, noisy: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """The actions that noisy ones [B, T, D] come from, where their noise is known."""
        a, b = self.shares(step)
        return ((noisy - b * noise) / a).clamp(-FARTHEST, FARTHEST)


def denoise(
    find_noise: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    schedule: Schedule,
    random: torch.Generator | None = None,
) -> Tensor:
    """Steps from noise [B, T, D] to actions.

    find_noise: of noisy actions at steps [B]. random: of the noise that each step but the last
    adds again; drawn on the CPU, so that it is the same on each device.
    """
    x = noise
    for t in reversed(range(schedule.steps)):
        step = torch.full((len(x),), t, device=x.device)
        beta, kept = float(schedule.beta[t]), float(schedule.kept[t])
        found = find_noise(x, step)
        x = (x - beta / math.sqrt(1 - kept) * found) / math.sqrt(1 - beta)
        if t:
            more = torch.randn(x.shape, generator=random).to(x)
            x = x + math.sqrt(beta) * more
        x = x.clamp(-FARTHEST, FARTHEST)
    return x
