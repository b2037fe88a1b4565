"""A `Commander` without a robot, and chunks for it."""

from __future__ import annotations

import numpy as np

from vla_inference.control import Commander, SafetyLimits, Settings
from vla_inference.control import vectors as v
from vla_inference.control.commands import Pose
from vla_inference.types import ActionChunk, eef_delta_spec

NO_LIMITS = SafetyLimits(0, 0, 0, 0, 0, 0, 0, 0)


def chunk(*rows, rotation="rotvec", frame="base", dt=0.05) -> ActionChunk:
    return ActionChunk(np.array(rows), eef_delta_spec(rotation, frame, dt))


def forward(steps: int = 1, x: float = 0.01, gripper: float = 1.0, **more) -> ActionChunk:
    return chunk(*[[x, 0, 0, 0, 0, 0, gripper]] * steps, **more)


class Bench:
    """A commander at 20 Hz and its two clocks; at: where the robot is measured three times."""

    def __init__(
        self,
        limits: SafetyLimits = NO_LIMITS,
        enable: bool = True,
        at: tuple[float, float, float] | None = None,
        **more,
    ):
        self.commander = Commander(Settings(limits=limits, **more))
        self.now, self.steady = 100.0, 7.0
        self.tick()
        if at is not None:
            for _ in range(3):
                assert self.measure(at) == ""
        if enable:
            assert "no usable chunk" in self.commander.enable(self.steady)
            assert self.accept(forward(20), age=0.9)
            assert self.commander.enable(self.steady) == ""

    def measure(self, at: tuple[float, float, float], age: float = 0.0, turn=v.IDENTITY) -> str:
        return self.commander.measured(Pose(at, turn), self.now - age, self.now, self.steady)

    def tick(self, passed: float = 0.05, **more):
        self.now += passed
        self.steady += passed
        return self.commander.tick(self.now, self.steady, **more)

    def accept(self, c: ActionChunk, age: float = 0.0) -> bool:
        return self.commander.accept(c, self.now - age, self.now, self.steady)

    @property
    def state(self) -> str:
        return self.commander.safety.state

    @property
    def stop(self):
        return self.commander.safety.last_stop
