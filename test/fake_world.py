"""A world without a simulator: grey images, and success from a known step on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from vla_inference.types import Observation
from vla_sim_bridge.envs.base import StepResult, WorldBase


class FakeWorld(WorldBase):
    """Half of the episodes succeed, drawn by their seeds; `played` counts resets.

    executed: all actions. One camera, as `make_world` has where none are named.
    """

    def __init__(self, horizon: int = 6, size: int = 32):
        self.task = SimpleNamespace(name="fake", horizon=horizon)
        self.instruction, self.size = "lift the cube", size
        self.played, self.executed = 0, []

    def reset(self, rng: np.random.Generator) -> None:
        self.played += 1
        self.good = bool(rng.integers(2))
        self.light = int(rng.integers(256))
        self.steps = 0

    def step(self, action: np.ndarray) -> StepResult:
        self.executed.append(np.asarray(action))
        return self.hold()

    def hold(self) -> StepResult:
        self.steps += 1
        return StepResult(self.good and self.steps >= 3, 0.0)

    def observation(self) -> Observation:
        image = np.full((self.size, self.size, 3), self.light, np.uint8)
        return Observation({"agentview": image}, self.instruction)
