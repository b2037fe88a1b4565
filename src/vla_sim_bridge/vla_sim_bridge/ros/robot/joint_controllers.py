"""Emulates ros2_control's joint controllers: which commands they accept, what they do with them.

`TrajectoryController` keeps the rules of joint_trajectory_controller, `ForwardController` those of
forward_command_controller (ros2_controllers, jazzy). No ROS and no clock in here: `now` is the
clock that stamps are of, in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vla_sim_bridge.envs.joint_tracking import Reference, held
from vla_sim_bridge.ros.robot.controller_emulation import TIMEOUT, Heard

BRAKING = (
    2  # the period of zero velocity from which on the arm is held, having stopped in the first
)


@dataclass
class TrajectoryPoint:
    """time: s from the trajectory's start. positions: rad, of the joints that it names."""

    time: float
    positions: Sequence[float]
    velocities: Sequence[float] = ()


class TrajectoryController:
    """Trajectories, each from where the arm is measured when it arrives, position by position.

    Between the points it interpolates linearly, as the controller does where they have no
    velocities (here velocities are checked, then left out). After the last point it holds it.
    """

    def __init__(self, names: Sequence[str], timeout: float = TIMEOUT):
        self.names, self.timeout = tuple(names), timeout
        self.heard = Heard()
        self.reset()

    def reset(self) -> None:
        """As at activation: it holds the arm where it is."""
        self._hold: np.ndarray | None = None
        self._new: tuple[np.ndarray, np.ndarray] | None = None  # times, positions by point
        self._times, self._points = np.zeros(0), np.zeros((0, len(self.names)))
        self._at = -math.inf

    def receive(
        self, names: Sequence[str], points: Sequence[TrajectoryPoint], stamp: float, now: float
    ) -> bool:
        """A trajectory arrived; whether it is taken. stamp: of its start, 0: at once."""
        why = self._fault(names, points, stamp, now)
        if why:
            return self.heard.reject(why)
        order = [list(names).index(n) for n in self.names]
        positions = np.array([p.positions for p in points], float)[:, order]
        start = stamp or now
        self._new = np.array([start + p.time for p in points]), positions
        self._at = now
        self.heard.accepted += 1
        return True

    def _fault(
        self, names: Sequence[str], points: Sequence[TrajectoryPoint], stamp: float, now: float
    ) -> str:
        if not names or not points:
            return "empty trajectory"
        if sorted(names) != sorted(self.names):  # allow_partial_joints_goal is off
            return "other joints"
        if stamp and stamp + points[-1].time < now:
            return "ends in the past"
        times = [p.time for p in points]
        if any(b <= a for a, b in pairwise(times)):
            return "times do not increase"
        if any(points[-1].velocities):  # allow_nonzero_velocity_at_trajectory_end is off
            return "moves at its end"
        if any(len(p.positions) != len(names) for p in points):
            return "wrong number of positions"
        if not np.isfinite([p.positions for p in points]).all():
            return "not finite"
        return ""

    def reference(self, measured: np.ndarray, now: float, period: float) -> Reference | None:
        """For the period that begins; None: nothing was ever received. measured: [n] rad."""
        if self._new is not None:
            times, points = self._new
            left = times > self._at
            left[-1] = True
            self._times = np.concatenate([[self._at], times[left]])
            self._points = np.vstack([measured, points[left]])
            self._new = None
        if not len(self._times):
            return None
        self.heard.gaps += now - self._at >= self.timeout
        self.heard.zeros += np.abs(self._points[-1] - measured).max() < 1e-9
        still = np.zeros(len(self.names))

        def at(time: float) -> tuple[np.ndarray, np.ndarray]:
            columns = [np.interp(now + time, self._times, p) for p in self._points.T]
            return np.array(columns), still

        return at


class ForwardController:
    """Positions or velocities of all joints, passed on at once, without stamp and time-out.

    The last command holds until the next: of velocities as well, so that who commands them has to
    send zeros. Where those have stopped the arm, the drive holds it in place.
    """

    def __init__(self, joints: int, velocities: bool = False, timeout: float = TIMEOUT):
        self.joints, self.velocities, self.timeout = joints, velocities, timeout
        self.heard = Heard()
        self.reset()

    def reset(self) -> None:
        """As at activation: no command."""
        self._command: np.ndarray | None = None
        self._rest: np.ndarray | None = None  # where the arm stands by zero velocities
        self._resting = 0  # periods of these
        self._at = -math.inf

    def receive(self, data: Sequence[float], now: float) -> bool:
        """Numbers [n] (rad or rad/s) arrived; whether they are taken."""
        if len(data) != self.joints:
            return self.heard.reject("wrong number of joints")
        if not np.isfinite(data).all():
            return self.heard.reject("not finite")
        self._command, self._at = np.array(data, float), now
        self.heard.accepted += 1
        return True

    def reference(self, measured: np.ndarray, now: float, period: float) -> Reference | None:
        """For the period that begins; None: nothing was ever received. measured: [n] rad."""
        command = self._command
        if command is None:
            return None
        self.heard.gaps += now - self._at >= self.timeout
        if not self.velocities:
            self.heard.zeros += np.abs(command - measured).max() < 1e-9
            return held(command)
        self._resting = 0 if command.any() else self._resting + 1
        self.heard.zeros += self._resting > 0
        if self._resting < BRAKING:
            return lambda _: (None, command)
        if self._resting == BRAKING or self._rest is None:
            self._rest = measured.copy()
        return held(self._rest)


JointController = TrajectoryController | ForwardController


def make_controller(kind: str, names: Sequence[str]) -> JointController:
    """kind: an output of the command node's joints."""
    if kind == "joint_trajectory":
        return TrajectoryController(names)
    return ForwardController(len(names), velocities=kind == "joint_velocities")
