"""Length and learning-rate schedule of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run.

    peak: its highest. kind: how it goes on from there. warmup: share of the run in which it rises,
    from `begin` times the peak.
    """

    peak: float
    kind: str = "constant"
    warmup: float = 0.0
    begin: float = 0.0

    def rate(self, done: float) -> float:
        """done: share of the run, 0 to 1"""
        if done < self.warmup:
            return self.peak * (done / self.warmup + self.begin)
        p = min(1.0, (done - self.warmup) / max(1e-9, 1 - self.warmup))
        falling = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * p)), "linear": 1 - p}
        return self.peak * falling[self.kind]


@dataclass(frozen=True)
class LoopConfig:
    """Length, batch size and learning rate of a training loop.

    samples: of an update, over all devices and passes. steps: updates; minutes: where given, the
    schedule follows the clock instead. accumulation: passes of an update. max_grad_norm: gradients
    are clipped to it. round_steps: updates after which the data change; 0: they never do.
    round_warmup: updates over which the rate rises again from then on.
    """

    schedule: Schedule
    samples: int
    steps: int
    minutes: float | None = None
    accumulation: int = 1
    max_grad_norm: float = 1.0
    round_steps: int = 0
    round_warmup: int = 0

    def rising(self, step: int) -> float:
        """Share of the learning rate after `step` updates, for the data that are new."""
        if not self.round_warmup or step < self.round_steps:
            return 1.0
        return min(1.0, (step % self.round_steps + 1) / (self.round_warmup + 1))
