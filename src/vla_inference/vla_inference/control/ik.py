"""Differential inverse kinematics: twists and target poses to joint positions, within limits.

Each period solves min |J dq - way|^2 + damping |dq|^2 with joint positions as bounds (scipy's
bounded least squares), then shortens dq as a whole to the joints' velocities, so that the end
effector keeps its direction. No clock of its own: `steady` is seconds, passed in.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear
from scipy.spatial.transform import Rotation

from vla_inference.control.arm import Arm
from vla_inference.control.joint_states import JointStates
from vla_inference.errors import VlaError

INSIDE = 1.0 - 1e-9
RESTING = 1.0  # seconds in which a command that has ended is rounded off
THERE = 1e-6  # rad or m
# What was done to a motion, counted
VELOCITY, POSITION, DRIFT = "joint_velocity", "joint_position", "joint_drift"


@dataclass(frozen=True)
class IkSettings:
    """rate: solutions per second [Hz]. velocity, acceleration: of any joint [rad/s, rad/s^2 or
    m]; the URDF's own velocity, where lower, goes before.

    damping: of joint motion [m per rad]: what singularities are rounded off with.
    length: [m] that a radian of the end effector's rotation weighs as much as.
    timeout: [s] after which a command is no longer followed; joint_timeout: the same of the
        measured joints. lead: [s] that the controller has for each way.
    drift: that a commanded joint may be ahead of the measured one [rad, m]; 0: what its velocity
        makes of `lead`, which is the most there may be: the controller makes up for it in `lead`.
    """

    rate: float = 50.0
    velocity: float = 1.0
    damping: float = 0.01
    length: float = 0.2
    timeout: float = 0.1
    joint_timeout: float = 0.2
    drift: float = 0.0
    lead: float = 0.1
    acceleration: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            bounded = math.isfinite(value) or name == "acceleration"
            if not (bounded and (value > 0 or (name == "drift" and value == 0))):
                raise VlaError(f"{name} is {value}", "give a number above 0")
        if self.drift > self.velocity * self.lead * (1 + 1e-9):
            raise VlaError(
                f"max_joint_drift is {self.drift:g}: the controller would make up for it at "
                f"{self.drift / self.lead:g} per second",
                "set at most max_joint_velocity * time_from_start "
                f"({self.velocity * self.lead:g}), or 0 for just that",
            )


def joint_step(
    arm: Arm, positions: np.ndarray, way: np.ndarray, settings: IkSettings
) -> tuple[np.ndarray, set[str]]:
    """Joint motion [n] that follows a twist, and the kinds of clips, without velocity limits.

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
    step = np.zeros(len(arm))
    if free.any():
        found = lsq_linear(a[:, free], b, (low[free], high[free]), method="bvls")
        step[free] = found.x
    step = np.clip(step, low, high)
    at_limit = ((step <= low) | (step >= high))[np.isfinite(high - low)].any()
    return step, {POSITION} if at_limit and way.any() else set()


def slowed(step: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, set[str]]:
    """The step scaled down until no joint exceeds its maximum `most` [n]."""
    excess = float(np.max(np.abs(step) / most))
    return (step * (INSIDE / excess), {VELOCITY}) if excess > 1 else (step, set())


def added(arm: Arm, positions: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Positions after a step, kept within limits despite rounding."""
    lowest, highest = np.minimum(positions, arm.lower), np.maximum(positions, arm.upper)
    return np.clip(positions + step, lowest, highest)


def solve(
    arm: Arm,
    positions: np.ndarray,
    way: np.ndarray,
    velocity: np.ndarray,
    period: float,
    settings: IkSettings,
) -> tuple[np.ndarray, set[str]]:
    """Joint positions [n] after one period, and the kinds of clips."""
    step, clips = joint_step(arm, positions, way, settings)
    step, more = slowed(step, velocity * period)
    return added(arm, positions, step), clips | more


class JointCommander:
    """Turns `twist` or `target` and `measured` joints into joint positions, period by period.

    Each command is within a period's motion of the one before, whatever is measured. A twist or
    target is followed for `timeout` unless repeated; then the arm is commanded to stay where it is
    measured, and nothing any more.
    """

    def __init__(self, arm: Arm, settings: IkSettings | None = None):
        self.arm, self.settings = arm, settings or IkSettings()
        s = self.settings
        self.period = 1.0 / s.rate
        self.velocity = np.minimum(arm.velocity, s.velocity)
        self.drift = np.minimum(s.drift or math.inf, self.velocity * s.lead)
        # A start from a sample that is wrong by the margin is made up for at half the velocity.
        margin = 0.5 * self.velocity * s.lead
        self.states = JointStates(arm.names, arm.velocity, margin, s.joint_timeout)
        self.clips: Counter[str] = Counter()
        self.refusals = self.states.refusals
        self.refusal = ""
        self.trouble = ""  # why the last `tick` was silent, where that was no choice
        self.positions: np.ndarray | None = None  # commanded last
        self._sent: deque[tuple[float, np.ndarray]] = deque()  # lately: steady time, positions
        self._step = np.zeros(len(arm))  # the last command's
        self._speaking, self._spoke = False, -math.inf  # steady time of it
        self._told = -math.inf  # and of the twist or target that is followed
        self._twist, self._in_tool = np.zeros(6), False
        self._target: np.ndarray | None = None
        self._rest: np.ndarray | None = None  # where to stay, after the end of a command
        self._resting = math.inf  # since when

    # -- what comes in ------------------------------------------------------------------------

    @property
    def joints(self) -> np.ndarray | None:
        """The last measured joints."""
        return self.states.positions

    def measured(
        self, names: list[str], positions: list[float], steady: float, age: float = 0.0
    ) -> bool:
        """Takes a JointState `age` seconds old; returns whether the arm's pose is known from
        it."""
        known = self.states.hear(names, positions, steady, age)
        self.refusal = self.states.refusal
        return known

    def twist(self, twist: np.ndarray, in_tool: bool, steady: float, age: float = 0.0) -> bool:
        """Takes a velocity [6] (m/s, rad/s) in the tool's or the base's axes."""
        if not np.isfinite(twist).all():
            return self._refuse("twist", "the twist contains numbers that are not finite")
        if not self._in_time("twist", age):
            return False
        self._twist, self._in_tool, self._target = np.asarray(twist, float), in_tool, None
        self._told = steady - max(age, 0.0)
        return True

    def target(
        self, position: np.ndarray, quaternion: np.ndarray, steady: float, age: float = 0.0
    ) -> bool:
        """Takes a target pose in the base frame: m, x y z w."""
        length = np.linalg.norm(quaternion)
        if not (np.isfinite(position).all() and 0.99 < length < 1.01):
            return self._refuse("target", "the target is not a pose")
        if not self._in_time("target", age):
            return False
        self._target = np.eye(4)
        self._target[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
        self._target[:3, 3] = position
        self._told = steady - max(age, 0.0)
        return True

    def _in_time(self, what: str, age: float) -> bool:
        if abs(age) < self.settings.timeout:
            return True
        when = f"{age:.2f} s old" if age > 0 else f"{-age:.2f} s in the future"
        return self._refuse(what, f"the {what} is {when}; synchronise the clocks")

    def _refuse(self, kind: str, reason: str) -> bool:
        self.refusals[kind] += 1
        self.refusal = reason
        return False

    # -- what goes out ------------------------------------------------------------------------

    def _here(self) -> np.ndarray:
        """Measured last [n]; only where the joint states are no trouble."""
        assert self.joints is not None
        return self.joints

    def _last(self) -> np.ndarray:
        """Commanded last [n]; only once there was a command."""
        assert self.positions is not None
        return self.positions

    def pose(self) -> np.ndarray | None:
        """The last measured end-effector pose [4, 4]."""
        return None if self.joints is None else self.arm.pose(self.joints)

    def tick(self, steady: float, others: str = "") -> np.ndarray | None:
        """Joint positions [n] for the end of the period; None: send nothing.

        others: who else commands or measures these joints, in words; empty: nobody.
        """
        self.states.commanded = self.positions if self._under_way(steady) else None
        self.trouble = others or self.states.trouble(steady)
        if self.trouble:
            # Whoever comes back later finds the arm elsewhere: forget old commands.
            self._told, self._speaking = -math.inf, False
            return None
        if steady - self._told < self.settings.timeout:
            self._begin(steady)
            step, clips = joint_step(self.arm, self._last(), self._way(), self.settings)
            braking = self._target is not None
        elif not self._stays(steady):
            self._speaking = False
            return None
        else:
            step, clips, braking = self._rest - self._last(), set(), True
        step, more = self._bounded(step, braking)
        self.clips.update(clips | more)
        then = added(self.arm, self._last(), step)
        self._step, self.positions, self._spoke = then - self._last(), then, steady
        self._sent.append((steady, then))
        return then

    def _under_way(self, steady: float) -> bool:
        """Whether the arm may still be moving to the last command."""
        return steady - self._spoke <= self.settings.lead + self.settings.joint_timeout

    def _begin(self, steady: float) -> None:
        """Starting positions: the last command, or the measured ones if that is too old."""
        self._rest = None
        if not self._speaking:
            self._step = np.zeros(len(self.arm))
            if not self._under_way(steady):
                self.positions = self._here().copy()
                self._sent.clear()
        self._speaking = True

    def _stays(self, steady: float) -> bool:
        """The command has ended: whether to send one more command to hold position."""
        if not self._speaking:
            return False
        if self._rest is None:
            self._rest, self._resting = self._here().copy(), steady
        slow = np.abs(self._step).max() <= self.settings.acceleration * self.period**2
        there = slow and np.abs(self._last() - self._rest).max() < THERE
        return not there and steady - self._resting <= RESTING

    def _way(self) -> np.ndarray:
        pose = self.arm.pose(self._last())
        if self._target is None:
            parts = self._twist.reshape(2, 3) * self.period
            return (parts @ pose[:3, :3].T if self._in_tool else parts).ravel()
        turn = Rotation.from_matrix(self._target[:3, :3] @ pose[:3, :3].T).as_rotvec()
        return np.concatenate([self._target[:3, 3] - pose[:3, 3], turn])

    def _reachable(self) -> tuple[np.ndarray, np.ndarray]:
        """Between which positions [n] a command may be, from wherever the arm is.

        It may have been held up anywhere between where it was measured and where it was sent
        since, or was on its way to then.
        """
        while len(self._sent) > 1 and self._sent[1][0] <= self.states.at:
            self._sent.popleft()
        places = np.array([self._here(), *(at for _, at in self._sent)])
        drift = INSIDE * self.drift
        least, most = places.max(0) - drift, places.min(0) + drift
        between = (least + most) / 2
        return np.minimum(least, between), np.maximum(most, between)

    def _bounded(self, step: np.ndarray, braking: bool) -> tuple[np.ndarray, set[str]]:
        """Limits acceleration, then drift, then velocity; later limits take precedence.

        braking: the step ends where the motion does.
        """
        gain, left = self.settings.acceleration * self.period**2, float(np.abs(step).max())
        step, clips = slowed(step, self.velocity * self.period)
        if math.isfinite(gain):
            if braking:
                most = gain * (math.sqrt(0.25 + 2 * left / gain) - 0.5)
                step = slowed(step, np.full(len(step), max(most, 1e-12)))[0]
            change = slowed(step - self._step, np.full(len(step), gain))[0]
            step = self._step + change
        ahead = self._last() + step - self._here()
        excess = float(np.max(np.abs(ahead) / self.drift))
        if excess > 1:
            step = self._here() + ahead * (INSIDE / excess) - self._last()
            clips = clips | {DRIFT}
        step = np.clip(self._last() + step, *self._reachable()) - self._last()
        return slowed(step, self.velocity * self.period)[0], clips
