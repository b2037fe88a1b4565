"""Drives the hand to poses by OSC_POSE's deltas, in closed loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.transform import Rotation

from vla_sim_bridge.libero.expert.grips import turned
from vla_sim_bridge.libero.expert.scene import Scene

SCALE = np.array([0.05] * 3 + [0.5] * 3)  # m and rad of a full action
MOST = 0.9375  # of a full action, as in LIBERO's human demonstrations
GAIN, TURN_GAIN = 1.7, 1.2  # the controller lags: ask for more than the distance,
BRAKE = 0.05  # s; less what it will coast
PERIOD = 0.05  # s, a control step
OPEN, CLOSED = -1.0, 1.0
STALLED, STALLED_STEPS = 4e-4, 5  # m a step; so many of them in a row


class Motion:
    """step: takes an action [7] in [-1, 1], gripper -1 open; returns whether to stop."""

    def __init__(self, scene: Scene, step: Callable[[np.ndarray], bool]):
        self.scene, self.over, self._step = scene, False, step
        self._before: np.ndarray | None = None

    def go(
        self,
        position: np.ndarray,
        yaw: float,
        gripper: float,
        near: float = 0.008,
        turn: float = 0.06,
        most: int = 70,
        stall: bool = False,
    ) -> None:
        """Moves until the hand is within `near` m and `turn` rad of the goal.

        most: steps. stall: also ends where something is in the way.
        """
        last, still = np.inf, 0
        for _ in range(most):
            way, angle = self._step_towards(position, yaw, gripper)
            if self.over or (way < near and angle < turn):
                return
            still = still + 1 if abs(last - way) < STALLED else 0
            last = way
            if stall and still == STALLED_STEPS:
                return

    def hold(self, steps: int, position: np.ndarray, yaw: float, gripper: float) -> None:
        for _ in range(steps):
            if not self.over:
                self._step_towards(position, yaw, gripper)

    def rest(self, steps: int) -> None:
        """No motion, gripper open."""
        for _ in range(steps):
            if not self.over:
                self.over = self._step(np.array([0.0] * 6 + [OPEN]))

    def _step_towards(self, position: np.ndarray, yaw: float, gripper: float):
        """One control step; the distance (m) and angle (rad) that are left."""
        if self.over:
            return 0.0, 0.0
        delta = self._delta(position, yaw)
        here = self.scene.hand()[:3, 3]
        velocity = 0.0 if self._before is None else (here - self._before) / PERIOD
        self._before = here
        delta = np.append(GAIN * delta[:3] - BRAKE * velocity, TURN_GAIN * delta[3:])
        self.over = self._step(np.append(np.clip(delta / SCALE, -MOST, MOST), gripper))
        left = self._delta(position, yaw)
        return float(np.linalg.norm(left[:3])), float(np.linalg.norm(left[3:]))

    def _delta(self, position: np.ndarray, yaw: float) -> np.ndarray:
        """[6], m and rad from here to there."""
        hand = self.scene.hand()
        turn = Rotation.from_matrix(turned(yaw) @ hand[:3, :3].T).as_rotvec()
        return np.concatenate([position - hand[:3, 3], turn])
