"""A flow-matching policy whose velocities are known in closed form.

Its chunks are joint motions a ~ N(mean, K) that are smooth in time: K falls with the distance of
two steps. Of x = t noise + (1 - t) a, with a time t of each step, the velocity E[noise - a | x] is
linear in x, so that what real-time chunking does to it can be told exactly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vla_inference.policies.base import Needs, Policy
from vla_inference.policies.chunking import GUIDED, TRAINED, Continuation
from vla_inference.policies.lerobot.flow import sample
from vla_inference.policies.lerobot.rtc import guide_to
from vla_inference.types import ActionChunk, Observation, joint_spec

SPEC = joint_spec({"arm": ("lift", "turn")})
JITTER = 1e-4  # of the covariance, so that it can be inverted


class SmoothFlow:
    """Velocities of chunks [B, T, D] whose steps vary together over about `length` steps."""

    def __init__(self, chunk: int, length: float = 6.0, mean: float = 0.0):
        apart = torch.arange(chunk, dtype=torch.float64)
        apart = (apart[:, None] - apart[None]) / length
        self.covariance = torch.exp(-0.5 * apart**2) + JITTER * torch.eye(chunk)
        self.mean = mean

    def __call__(self, x: Tensor, times: Tensor) -> Tensor:
        """times: [B], or [B, T]"""
        t = times if times.ndim == 2 else times[:, None].expand(x.shape[:2])
        t, still = t.double(), 1 - t.double()
        noise, motion = torch.diag_embed(t**2), still[..., None] * self.covariance * still[:, None]
        inner = x.double() - still[..., None] * self.mean
        solved = torch.linalg.solve(noise + motion, inner)
        expected_noise = t[..., None] * solved
        expected = self.mean + self.covariance @ (still[..., None] * solved)
        return (expected_noise - expected).float()


class AnalyticFlow(Policy):
    """Samples of a `SmoothFlow` for the two joints of SPEC, or for what `spec` says.

    asked: what each answer was to go on from. waits: seconds that answers take, the last one
    again and again.
    """

    name, placement = "analytic", "cpu by PyTorch"

    def __init__(self, chunk: int = 30, steps: int = 10, chunking=(GUIDED, TRAINED), spec=SPEC):
        self.spec = spec
        self.needs, self.chunk, self.steps, self.chunking = Needs(), chunk, steps, chunking
        self.flow = SmoothFlow(chunk)
        self.asked: list[Continuation | None] = []
        self.waits = [0.0]
        self._random = torch.Generator().manual_seed(0)

    def action_spec(self):
        return self.spec

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self._answer(None) for _ in observations]

    def continue_chunk(self, observation: Observation, after: Continuation) -> ActionChunk:
        return self._answer(after)

    def _answer(self, after: Continuation | None) -> ActionChunk:
        self.asked.append(after)
        time.sleep(self.waits.pop(0) if len(self.waits) > 1 else self.waits[0])
        return ActionChunk(self.sample(after), self.spec, timing={"total": 0.0})

    def sample(self, after: Continuation | None = None) -> np.ndarray:
        """[T, D]"""
        noise = torch.randn((1, self.chunk, len(self.spec)), generator=self._random)
        guide = held = None
        if after is not None:
            previous = torch.from_numpy(np.asarray(after.previous, np.float32))[None]
            if after.chunking.form == TRAINED:
                held = previous[:, : after.delay]
            else:
                guide = guide_to(previous, after.delay, self.chunk, after.chunking)
        return sample(self.flow, noise, self.steps, guide, held)[0].numpy()
