"""Twists and target poses to joint positions: differential inverse kinematics within limits.

Each period solves min |J dq - way|^2 + damping |dq|^2 with joint positions as bounds (scipy's
bounded least squares), then shortens dq as a whole to the joints' velocities, so that the end
effector keeps its direction. No clock of its own: `steady` is seconds, passed in.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear
from scipy.spatial.transform import Rotation

from vla_inference.control.arm import Arm
from vla_inference.errors import VlaError

INSIDE = 1.0 - 1e-9
# What was done to a motion, counted
VELOCITY, POSITION, DRIFT = "joint_velocity", "joint_position", "joint_drift"


@dataclass(frozen=True)
class IkSettings:
    """rate: solutions per second [Hz]. velocity: of any joint [rad/s, m/s]; the URDF's own, where
    lower, goes before.

    damping: of joint motion [m per rad]: what singularities are rounded off with.
    length: [m] that a radian of the end effector's rotation weighs as much as.
    timeout: [s] after which a twist is no longer followed; joint_timeout: the same of the
        measured joints. drift: of a commanded from a measured joint [rad, m] before it starts
        from there again.
    """

    rate: float = 50.0
    velocity: float = 1.0
    damping: float = 0.01
    length: float = 0.2
    timeout: float = 0.1
    joint_timeout: float = 0.2
    drift: float = 0.2

    def __post_init__(self):
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise VlaError(f"{name} is {value}", "give a number above 0")


def solve(
    arm: Arm, positions: np.ndarray, way: np.ndarray, velocity: np.ndarray, period: float,
    settings: IkSettings,
) -> tuple[np.ndarray, set[str]]:  # fmt: skip
    """Joint positions [n] after a period, and kinds of clips.

    way: [6] (m, rotation vector; base axes) that the end effector should go. A joint that is
    outside its limits already may come back, not go farther.
    """
    weights = np.repeat([1.0, settings.length], 3)
    jacobian = arm.jacobian(positions) * weights[:, None]
    low = np.minimum(0.0, arm.lower - positions)
    high = np.maximum(0.0, arm.upper - positions)
    a = np.vstack([jacobian, settings.damping * np.eye(len(arm))])
    b = np.concatenate([way * weights, np.zeros(len(arm))])
    free = high - low > 1e-9
    step, clips = np.zeros(len(arm)), set()
    if free.any():
        found = lsq_linear(a[:, free], b, (low[free], high[free]), method="bvls")
        step[free] = found.x
    step = np.clip(step, low, high)
    if ((step <= low) | (step >= high))[np.isfinite(high - low)].any() and way.any():
        clips.add(POSITION)
    excess = float(np.max(np.abs(step) / (velocity * period)))
    if excess > 1:
        step *= INSIDE / excess
        clips.add(VELOCITY)
    # Rounding must not lead out of a limit again.
    lowest, highest = np.minimum(positions, arm.lower), np.maximum(positions, arm.upper)
    return np.clip(positions + step, lowest, highest), clips


class JointCommander:
    """The state between periods: `measured`, `twist` and `target` in, joint positions out."""

    def __init__(self, arm: Arm, settings: IkSettings | None = None):
        self.arm, self.settings = arm, settings or IkSettings()
        self.period = 1.0 / self.settings.rate
        self.velocity = np.minimum(arm.velocity, self.settings.velocity)
        self.clips: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.refusal = ""
        self.joints: np.ndarray | None = None  # measured last
        self.positions: np.ndarray | None = None  # commanded last
        self._seen = self._told = -math.inf  # steady times of joints and of a twist
        self._twist, self._in_tool = np.zeros(6), False
        self._target: np.ndarray | None = None

    # -- what comes in ------------------------------------------------------------------------

    def measured(self, names: list[str], positions: list[float], steady: float) -> bool:
        """A JointState; whether it tells all of the arm's joints. Others in it don't matter."""
        at = dict(zip(names, positions, strict=False))
        missing = [n for n in self.arm.names if not math.isfinite(at.get(n, math.nan))]
        if missing:
            return self._refuse("joints", f"joint states lack {', '.join(missing)}")
        self.joints = np.array([at[n] for n in self.arm.names])
        self._seen = steady
        return True

    def twist(self, twist: np.ndarray, in_tool: bool, steady: float) -> bool:
        """A velocity [6] (m/s, rad/s) in the tool's or the base's axes."""
        if not np.isfinite(twist).all():
            return self._refuse("twist", "the twist holds numbers that are not finite")
        self._twist, self._in_tool, self._told = np.asarray(twist, float), in_tool, steady
        self._target = None
        return True

    def target(self, position: np.ndarray, quaternion: np.ndarray) -> bool:
        """A pose to go to, in the base: m, x y z w. It stays until there is another command."""
        length = np.linalg.norm(quaternion)
        if not (np.isfinite(position).all() and 0.99 < length < 1.01):
            return self._refuse("target", "the target is no pose")
        self._target = np.eye(4)
        self._target[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
        self._target[:3, 3] = position
        return True

    def _refuse(self, kind: str, reason: str) -> bool:
        self.refusals[kind] += 1
        self.refusal = reason
        return False

    # -- what goes out ------------------------------------------------------------------------

    def knows_joints(self, steady: float) -> bool:
        return steady - self._seen <= self.settings.joint_timeout

    def pose(self) -> np.ndarray | None:
        """Of the end effector as measured last [4, 4]."""
        return None if self.joints is None else self.arm.pose(self.joints)

    def tick(self, steady: float) -> np.ndarray | None:
        """Joint positions [n] to be reached by the period's end; None: nothing to say."""
        fresh_twist = steady - self._told < self.settings.timeout
        if not self.knows_joints(steady) or not (fresh_twist or self._target is not None):
            # Whoever comes back later finds the arm elsewhere: start anew, forget old targets.
            self.positions = self._target = None
            return None
        if self.positions is None:
            self.positions = self.joints.copy()
        elif np.abs(self.positions - self.joints).max() > self.settings.drift:
            self.positions = self.joints.copy()
            self.clips[DRIFT] += 1
        way = self._way()
        self.positions, clips = solve(
            self.arm, self.positions, way, self.velocity, self.period, self.settings
        )
        self.clips.update(clips)
        return self.positions

    def _way(self) -> np.ndarray:
        pose = self.arm.pose(self.positions)
        if self._target is None:
            parts = self._twist.reshape(2, 3) * self.period
            return (parts @ pose[:3, :3].T if self._in_tool else parts).ravel()
        turn = Rotation.from_matrix(self._target[:3, :3] @ pose[:3, :3].T).as_rotvec()
        return np.concatenate([self._target[:3, 3] - pose[:3, 3], turn])
