"""The base class of all simulated worlds, for any Python and robosuite version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import Observation


@dataclass(frozen=True)
class StepResult:
    """Result of a control step: success by the task's rule at this moment (not yet settled).

    wrong: name of the outcome that it is instead, by the task's other rules; empty: none.
    """

    success: bool
    reward: float
    wrong: str = ""


class WorldBase:
    """What all worlds share: observations, a step without motion, the check of actions."""

    cameras: Sequence[str]
    instruction: str
    gripper: float  # 1 open, as it was told last

    def step(self, action: np.ndarray) -> StepResult:
        raise NotImplementedError

    def state(self) -> np.ndarray:
        raise NotImplementedError

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        raise NotImplementedError

    def hold(self) -> StepResult:
        """One control period without motion; the gripper stays as it is."""
        return self.step(np.array([0, 0, 0, 0, 0, 0, self.gripper]))

    def observation(self) -> Observation:
        """Images of all cameras, instruction and state (see `state`)."""
        images = {name: self.render(name) for name in self.cameras}
        return Observation(images, self.instruction, self.state())

    def _take_action(self, action: np.ndarray) -> np.ndarray:
        """float64 [7]; stores its gripper value."""
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise VlaError(f"action {action} is not 7 finite numbers", "nothing was moved")
        self.gripper = float(action[6] > 0.5)
        return action
