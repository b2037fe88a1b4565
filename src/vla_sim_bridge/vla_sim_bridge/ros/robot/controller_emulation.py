"""Emulates real controllers: which commands they accept and what they do with them.

`TwistController` keeps MoveIt Servo's rules (moveit2, jazzy: servo_node.cpp, command.cpp),
`PoseController` those of FZI's cartesian_motion_controller and CRISP. No ROS and no clock in here:
`now` is the clock that stamps are of, in seconds. Poses are 4 x 4 matrices in the robot's base.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

TIMEOUT = 0.1  # s, Servo's incoming_command_timeout


@dataclass
class Heard:
    """What was received since the start. gaps: control periods without a fresh command, counted
    from an episode's first command on. zeros: periods spent on a command to stand still. silent:
    of a base, periods without a fresh command that none followed, as after a stop; no gaps."""

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    gaps: int = 0
    zeros: int = 0
    silent: int = 0

    def reject(self, why: str) -> bool:
        self.rejected[why] += 1
        return False


class TwistController:
    """Velocities, each held until the next one or until it is older than `TIMEOUT`."""

    def __init__(self, base: str = "base", tool: str = "tool", timeout: float = TIMEOUT):
        self.base, self.tool, self.timeout = base, tool, timeout
        self.heard = Heard()
        self.reset()

    def reset(self) -> None:
        """The robot stands elsewhere: what it was told before is void."""
        self._stamp, self._frame, self._twist = -math.inf, self.base, np.zeros(6)

    def receive(self, frame: str, stamp: float, twist: np.ndarray, now: float) -> bool:
        """A command [6] (m/s, rad/s) arrived; whether it is taken."""
        if not frame:
            return self.heard.reject("empty frame")
        if frame not in (self.base, self.tool):
            return self.heard.reject("unknown frame")
        if stamp == 0:
            return self.heard.reject("zero stamp")
        if now - stamp >= self.timeout:
            return self.heard.reject("stale stamp")
        if not np.isfinite(twist).all():
            return self.heard.reject("not finite")
        self._stamp, self._frame, self._twist = stamp, frame, np.asarray(twist, float)
        self.heard.accepted += 1
        return True

    def delta(self, pose: np.ndarray, now: float, period: float) -> np.ndarray | None:
        """Motion [6] (m, rotation vector) in base axes over the period that begins, or None."""
        if now - self._stamp >= self.timeout:
            self.heard.gaps += math.isfinite(self._stamp)
            return None
        self.heard.zeros += not self._twist.any()
        parts = self._twist.reshape(2, 3) * period
        if self._frame == self.tool:
            parts = parts @ pose[:3, :3].T
        return parts.ravel()


class PoseController:
    """Targets without a time-out: the arm keeps moving to the last one."""

    def __init__(self, base: str = "base", timeout: float = TIMEOUT):
        self.base, self.timeout = base, timeout
        self.heard = Heard()
        self.reset()

    def reset(self) -> None:
        """As at activation: the target is where the arm is."""
        self._target: np.ndarray | None = None
        self._at = -math.inf

    def receive(
        self, frame: str, position: np.ndarray, quaternion: np.ndarray, now: float
    ) -> bool:
        """A target arrived: m, and x y z w; whether it is taken."""
        if frame != self.base:
            return self.heard.reject("not the base frame")
        length = np.linalg.norm(quaternion)
        if not (np.isfinite(position).all() and np.isfinite(length)):
            return self.heard.reject("not finite")
        if not 0.99 < length < 1.01:
            return self.heard.reject("not a rotation")
        self._target, self._at = np.eye(4), now
        self._target[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
        self._target[:3, 3] = position
        self.heard.accepted += 1
        return True

    def delta(self, pose: np.ndarray, now: float, period: float) -> np.ndarray | None:
        """The way [6] (m, rotation vector) in base axes to the target, or None where none is."""
        if self._target is None:
            return None
        self.heard.gaps += now - self._at >= self.timeout
        turn = Rotation.from_matrix(self._target[:3, :3] @ pose[:3, :3].T).as_rotvec()
        way = np.concatenate([self._target[:3, 3] - pose[:3, 3], turn])
        self.heard.zeros += np.abs(way).max() < 1e-9
        return way
