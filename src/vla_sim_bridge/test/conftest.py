"""Fixtures: a simulation without physics, so that rules can be tested fast."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

from vla_sim_bridge.envs.base import StepResult, WorldBase

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


class FakeSimulation(WorldBase):
    """Success at step i is `script[i]` (or the name of a wrong end), False after its end.

    `log` says what was done.
    """

    def __init__(self, script=()):
        self.script, self.log = list(script), []
        self.task = SimpleNamespace(name="Fake")
        self.instruction, self.gripper, self.at = "", 1.0, 0
        self.language = "train"

    def reset(self, rng):
        self.at, self.instruction = 0, f"do {rng.integers(1000)}"
        self.log.append("reset")

    def step(self, action):
        self.log.append("step")
        return self._result()

    def hold(self):
        self.log.append("hold")
        return self._result()

    def _result(self):
        now = self.script[self.at] if self.at < len(self.script) else False
        self.at += 1
        success = now is True
        return StepResult(success, float(success), now if isinstance(now, str) else "")

    def render(self, camera, width=64, height=64):
        return np.full((height, width, 3), self.at % 256, np.uint8)


@pytest.fixture
def fake_simulation():
    return FakeSimulation
