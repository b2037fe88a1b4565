"""Velocity, acceleration and workspace limits of the end effector; what exceeds them is clipped.

Limits are on the length of vectors, so that clipping keeps a motion's direction. Every clip tells
its kind; the caller counts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from vla_inference.control import vectors as v
from vla_inference.control.vectors import Vector
from vla_inference.errors import VlaError

# Kinds of clips
TRANSLATION, ROTATION = "translation_per_step", "rotation_per_step"
LINEAR = ("linear_velocity", "linear_acceleration", "linear_jerk")
ANGULAR = ("angular_velocity", "angular_acceleration", "angular_jerk")
WORKSPACE = "workspace"

INSIDE = 1.0 - 1e-9  # rounding must not lead out of a limit again


@dataclass(frozen=True)
class SafetyLimits:
    """SI units; 0 is "no limit". 0.25 m/s is the reduced speed of ISO 10218-1.

    translation_per_step, rotation_per_step: of one step of a chunk [m, rad].
    workspace: lowest and highest corner of a box in the base frame [m] that the end effector must
        not leave; None: anywhere.
    """

    translation_per_step: float = 0.05
    rotation_per_step: float = 0.5
    linear_velocity: float = 0.25
    angular_velocity: float = 1.0
    linear_acceleration: float = 2.5
    angular_acceleration: float = 10.0
    linear_jerk: float = 50.0
    angular_jerk: float = 200.0
    workspace: tuple[Vector, Vector] | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "workspace" and not (math.isfinite(value) and value >= 0):
                raise VlaError(f"limit {f.name} is {value}", "give a number >= 0; 0: no limit")
        if self.workspace is None:
            return
        low, high = self.workspace
        if not all(
            math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(low, high, strict=True)
        ):
            raise VlaError(
                f"the workspace reaches from {low} to {high}",
                "give finite corners, each number of the first below that of the second",
            )

    def clip_step(self, linear: Vector, angular: Vector, dt: float) -> tuple[Vector, Vector, set]:
        """A step's velocities [m/s, rad/s] over `dt` s, clipped, and the kinds of clips."""
        clips = set()
        if self.translation_per_step and v.norm(linear) * dt > self.translation_per_step:
            linear = v.shorten(linear, self.translation_per_step / dt * INSIDE)
            clips.add(TRANSLATION)
        if self.rotation_per_step and v.norm(angular) * dt > self.rotation_per_step:
            angular = v.shorten(angular, self.rotation_per_step / dt * INSIDE)
            clips.add(ROTATION)
        return linear, angular, clips

    def clip_to_workspace(
        self, linear: Vector, positions: list[Vector], time: float, unsure: float = 0.0
    ) -> tuple[Vector, set]:
        """Base-frame velocity [m/s], clipped so that no position leaves the box within `time` s.

        A position that is outside already may come back, not go farther. Ahead of a wall the speed
        towards it falls, so that the acceleration limit suffices to halt there.

        unsure: by how much the motion may be turned when it is carried out, about any axis [rad].
        """
        if self.workspace is None:
            return linear, set()
        lowest, highest = zip(*(self._towards_walls(p, time) for p in positions), strict=True)
        low = [-min(most) for most in zip(*lowest, strict=True)]
        high = [min(most) for most in zip(*highest, strict=True)]
        aside = unsure * v.norm(linear)  # what a turn can add to any component
        x, y, z = (
            min(max(wish, min(a + aside, 0.0)), max(b - aside, 0.0))
            for wish, a, b in zip(linear, low, high, strict=True)
        )
        aside = unsure * v.norm((x, y, z))
        share = 1.0
        for wish, a, b in zip((x, y, z), low, high, strict=True):
            if wish + aside > b:
                share = min(share, b / (wish + aside))
            if wish - aside < a:
                share = min(share, a / (wish - aside))
        result = v.scale((x, y, z), share) if share < 1 else (x, y, z)
        return result, {WORKSPACE} if result != linear else set()

    def _towards_walls(self, position: Vector, time: float) -> tuple[list, list]:
        """Maximum speeds towards the low and the high walls [m/s]."""
        braking = self.linear_acceleration / math.sqrt(3) / 2
        sides = []
        for sign, wall in zip((-1, 1), self.workspace or (), strict=True):
            room = [max(0.0, sign * (w - p)) for w, p in zip(wall, position, strict=True)]
            most = [r / time * INSIDE for r in room]
            if braking:
                most = [
                    min(m, math.sqrt(2 * braking * r)) for m, r in zip(most, room, strict=True)
                ]
            sides.append(most)
        return sides[0], sides[1]


@dataclass
class Ramp:
    """A velocity that follows a wanted one within velocity, acceleration and jerk limits.

    period: seconds between two calls of `follow`. kinds: names of the three clips.
    """

    period: float
    limits: tuple[float, float, float]
    kinds: tuple[str, str, str]
    velocity: Vector = v.ZERO
    acceleration: Vector = field(default=v.ZERO)

    def reset(self) -> None:
        self.velocity = self.acceleration = v.ZERO

    def override(self, velocity: Vector) -> None:
        """Sets the velocity after a higher-priority rule has changed it since `follow`."""
        self.velocity, self.acceleration = velocity, v.ZERO

    def follow(self, wanted: Vector) -> tuple[Vector, set]:
        top, steepest, jerk = (limit or math.inf for limit in self.limits)
        clips = set()
        if v.norm(wanted) > top:
            wanted = v.shorten(wanted, top * INSIDE)
            clips.add(self.kinds[0])
        gap = v.subtract(wanted, self.velocity)
        needed = v.norm(gap) / self.period
        if needed > steepest:
            clips.add(self.kinds[1])
        most = min(needed, steepest * INSIDE)
        if math.isfinite(jerk):
            # No more than what can be taken back by the time the gap is closed.
            half = self.period / 2
            root = math.sqrt(half * half + 2 * needed * self.period / jerk)
            most = min(most, jerk * (root - half)) if needed > jerk * self.period else most
        ideal = v.scale(gap, most / (needed * self.period)) if needed > 0 else v.ZERO
        acceleration = self._within_jerk(ideal, jerk, top)
        if acceleration != ideal or most < min(needed, steepest * INSIDE):
            clips.add(self.kinds[2])
        if acceleration == ideal and most == needed:
            self.velocity = wanted  # exactly, so that standing still is exactly zero
        else:
            self.velocity = v.add(self.velocity, v.scale(acceleration, self.period))
        self.acceleration = acceleration
        return self.velocity, clips

    def _within_jerk(self, ideal: Vector, jerk: float, top: float) -> Vector:
        """The acceleration nearest to `ideal` that the jerk limit and, later on, the velocity
        limit allow."""
        if not math.isfinite(jerk):
            return ideal
        change = jerk * self.period * INSIDE
        wanted = v.add(self.acceleration, v.shorten(v.subtract(ideal, self.acceleration), change))
        if v.norm(v.subtract(ideal, self.acceleration)) <= change:
            wanted = ideal
        # Ramping the acceleration down is always permitted: that it was, was seen to before.
        length = v.norm(self.acceleration)
        eased = v.scale(self.acceleration, max(0.0, 1 - change / length)) if length else v.ZERO
        if self._leads_within(wanted, change, top):
            return wanted
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            between = v.add(eased, v.scale(v.subtract(wanted, eased), middle))
            if self._leads_within(between, change, top):
                low = middle
            else:
                high = middle
        return v.add(eased, v.scale(v.subtract(wanted, eased), low))

    def _leads_within(self, acceleration: Vector, change: float, top: float) -> bool:
        """Whether velocity stays below `top` while this acceleration is ramped down."""
        if not math.isfinite(top):
            return True
        now = v.add(self.velocity, v.scale(acceleration, self.period))
        length = v.norm(acceleration)
        steps = math.floor(length / change)
        # length - change + length - 2 change + ... as long as it is positive
        total = steps * length - change * steps * (steps + 1) / 2
        end = v.add(now, v.scale(acceleration, total / length * self.period)) if length else now
        # On the straight line between the two no point is farther out than both ends.
        return v.norm(now) <= top and v.norm(end) <= top
