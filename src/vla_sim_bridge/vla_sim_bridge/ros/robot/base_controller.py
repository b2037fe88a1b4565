"""Emulates diff_drive_controller: which velocities it accepts, its time-out and its odometry.

By the rules of ros2_controllers (jazzy). No ROS and no clock in here: `now` is the clock that
stamps are of, in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vla_sim_bridge.ros.robot.controller_emulation import Heard

TIMEOUT = 0.5  # s, its cmd_vel_timeout
FRESH = 0.1 - 1e-6  # s: a command of that age is that of a period before the last


@dataclass
class BaseController:
    """radius, separation: of the wheels, m."""

    radius: float
    separation: float
    timeout: float = TIMEOUT
    heard: Heard = field(default_factory=Heard)
    _velocity: tuple[float, float] = (0.0, 0.0)
    _stamp: float = -math.inf
    _late: int = 0  # periods since the last fresh command

    def receive(self, linear: float, angular: float, stamp: float, now: float) -> bool:
        """A velocity (m/s, rad/s) arrived; whether it is taken. stamp: 0 counts as now."""
        stamp = stamp or now
        if not math.isfinite(linear + angular):
            return self.heard.reject("not finite")
        if now - stamp > self.timeout:
            return self.heard.reject("stale stamp")
        self._velocity, self._stamp = (linear, angular), stamp
        self.heard.accepted += 1
        return True

    def wheels(self, now: float) -> tuple[float, float]:
        """Velocities of the left and the right wheel, rad/s: none after the time-out."""
        self._count(now - self._stamp)
        if self.holds(now):
            return 0.0, 0.0
        linear, angular = self._velocity
        self.heard.zeros += not (linear or angular)
        turn = angular * self.separation / 2
        return (linear - turn) / self.radius, (linear + turn) / self.radius

    def holds(self, now: float) -> bool:
        """Whether the last velocity is none any more."""
        return now - self._stamp > self.timeout

    def _count(self, age: float) -> None:
        if FRESH <= age < math.inf:
            self._late += 1
            self.heard.silent += 1
        elif self._late:
            self.heard.gaps += self._late
            self.heard.silent -= self._late
            self._late = 0


@dataclass
class Odometry:
    """Where the wheels' angles say that the base is: m, rad, from where it started.

    linear, angular: its velocity over the last period, m/s and rad/s.
    """

    radius: float
    separation: float
    x: float = 0.0
    y: float = 0.0
    heading: float = 0.0
    linear: float = 0.0
    angular: float = 0.0
    _wheels: tuple[float, float] | None = None

    def update(self, left: float, right: float, period: float) -> None:
        """Wheel angles in rad, `period` s after the last ones."""
        if self._wheels is not None:
            way_left = (left - self._wheels[0]) * self.radius
            way_right = (right - self._wheels[1]) * self.radius
            way, turn = (way_left + way_right) / 2, (way_right - way_left) / self.separation
            middle = self.heading + turn / 2
            self.x += way * math.cos(middle)
            self.y += way * math.sin(middle)
            self.heading = math.remainder(self.heading + turn, 2 * math.pi)
            self.linear, self.angular = way / period, turn / period
        self._wheels = left, right
