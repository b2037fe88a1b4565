"""One joint's motion within position, velocity, acceleration and jerk limits, all at once.

In each period of T seconds an acceleration is chosen: v' = v + a' T, p' = p + v' T. It is the one
nearest to what is wanted from which the joint can still brake to a standstill within all limits.
Braking is therefore always possible: the limits hold whatever is wanted next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from vla_inference.errors import VlaError

# Kinds of clips
POSITION, VELOCITY = "joint_position", "joint_velocity"
ACCELERATION, JERK = "joint_acceleration", "joint_jerk"

INSIDE = 1.0 - 1e-9  # rounding must not lead out of a limit again
STILL = 1e-12  # rad/s, m/s
HALVINGS = 12  # of the range of accelerations
LONGEST = 10_000  # periods that a joint may take to brake


@dataclass(frozen=True)
class AxisLimits:
    """lower, upper [rad, m]; infinite of a joint that turns on and on. velocity [rad/s, m/s],
    acceleration [rad/s^2, m/s^2], jerk [rad/s^3, m/s^3]; infinite: no limit, but of velocities.
    """

    lower: float = -math.inf
    upper: float = math.inf
    velocity: float = 1.0
    acceleration: float = math.inf
    jerk: float = math.inf

    def __post_init__(self) -> None:
        if not self.lower < self.upper:  # also NaN
            raise VlaError(
                f"position limits {self.lower:g} to {self.upper:g}", "give a lower and a higher"
            )
        if not 0 < self.velocity < math.inf:
            raise VlaError(f"velocity limit {self.velocity:g}", "give a number above 0")
        for name in ("acceleration", "jerk"):
            if not getattr(self, name) > 0:
                raise VlaError(f"{name} limit {getattr(self, name):g}", "give a number above 0")


class Axis:
    """The commanded state of one joint. `follow` is called once per period [s]."""

    def __init__(self, limits: AxisLimits, period: float):
        self.limits, self.period = limits, period
        self.position = self.velocity = self.acceleration = 0.0
        self._low, self._high = limits.lower, limits.upper  # wider where it began outside
        self._top, self._steepest = limits.velocity * INSIDE, limits.acceleration * INSIDE
        self._change = limits.jerk * period * INSIDE  # of acceleration in a period
        # With less room than this to a position limit, braking is looked at period by period.
        peak = min(self._steepest, math.sqrt(2 * self._top * limits.jerk) + self._change)
        rising = peak / limits.jerk if math.isfinite(peak) else 0.0
        self.brake_way = self._brake_way(self._top)  # [rad, m] at full velocity
        self._room = self.brake_way + self._top * (rising + 2 * period)

    def reset(self, position: float) -> None:
        """Stands still there, outside its limits perhaps: then it may come back."""
        self.position, self.velocity, self.acceleration = position, 0.0, 0.0
        self._low = min(self.limits.lower, position)
        self._high = max(self.limits.upper, position)

    def shift(self, by: float) -> None:
        """Corrects the position by what was measured."""
        self.position += by
        self._low = min(self.limits.lower, self.position)
        self._high = max(self.limits.upper, self.position)

    def follow_velocity(self, wanted: float, elsewhere: tuple[float, ...] = ()) -> set[str]:
        """A period at a wanted velocity [rad/s, m/s]; returns the kinds of clips.

        elsewhere: other positions at which the joint may be, for which the limits hold as well.
        """
        bounded = min(max(wanted, -self._top), self._top)
        clips = self._clips(wanted, bounded)
        return clips | self._go(
            self._braking(self.velocity - bounded, self.acceleration), elsewhere
        )

    def follow(
        self, wanted: float, going: float = 0.0, elsewhere: tuple[float, ...] = ()
    ) -> set[str]:
        """A period towards a position [rad, m] that is wanted at its end and goes on from there
        at `going` [rad/s, m/s]; returns the kinds of clips. elsewhere: see `follow_velocity`."""
        going = min(max(going, -self._top), self._top)
        speed = (wanted - self.position) / self.period
        bounded = min(max(speed, -self._top), self._top)
        clips = self._clips(speed, bounded)
        low, high = self._reachable()
        ideal = min(max((bounded - self.velocity) / self.period, low), high)
        if self._overshoots(ideal, wanted, going):
            # The wanted position is a limit that moves.
            safe = self._braking(self.velocity - going, self.acceleration)
            ideal = self._nearest(ideal, safe, lambda a: not self._overshoots(a, wanted, going))
        return clips | self._go(ideal, elsewhere)

    def stops_at(self, wanted: float) -> float:
        """Where it stands if it brakes after a period at a wanted velocity, at the farthest."""
        speed = max(abs(self.velocity), min(abs(wanted), self._top))
        side = self.velocity or wanted
        return self.position + math.copysign(self._brake_way(speed) + speed * self.period, side)

    # -----------------------------------------------------------------------------------------

    def _clips(self, wanted: float, bounded: float) -> set[str]:
        """Which limits keep a wanted velocity from being reached in this period."""
        clips = {VELOCITY} if wanted != bounded else set()
        needed = (bounded - self.velocity) / self.period
        if abs(needed) > self._steepest:
            clips.add(ACCELERATION)
        if abs(needed - self.acceleration) > self._change:
            clips.add(JERK)
        return clips

    def _go(self, ideal: float, elsewhere: tuple[float, ...]) -> set[str]:
        self._come_in()
        safe = self._braking(self.velocity, self.acceleration)
        starts = {self.position, *elsewhere}
        chosen = self._nearest(ideal, safe, lambda a: self._holds(a, starts))
        clips = {POSITION} if chosen != ideal and self._holds_velocity(ideal) else set()
        self.acceleration = chosen
        self.velocity += chosen * self.period
        if abs(self.velocity) < STILL:  # what is left of a sum
            self.velocity = 0.0
        after = self.position + self.velocity * self.period
        if not elsewhere:
            after = min(max(after, self._low), self._high)
        self.position = after
        return clips

    def _come_in(self) -> None:
        """Goes back to its own limits as soon as it can brake within them."""
        low, high = min(self.limits.lower, self.position), max(self.limits.upper, self.position)
        if (low, high) != (self._low, self._high) and self._brakes_within(
            self.position, self.velocity, self.acceleration, low, high
        ):
            self._low, self._high = low, high

    def _reachable(self) -> tuple[float, float]:
        """The lowest and the highest acceleration that the jerk limit leaves."""
        return (
            max(self.acceleration - self._change, -self._steepest),
            min(self.acceleration + self._change, self._steepest),
        )

    def _nearest(self, ideal: float, safe: float, good: Callable[[float], bool]) -> float:
        """The acceleration nearest to `ideal` on the way from `safe` that is good."""
        if good(ideal):
            return ideal
        far, near = 1.0, 0.0  # shares of the way; `near` is good
        for _ in range(HALVINGS):
            middle = (near + far) / 2
            if good(safe + middle * (ideal - safe)):
                near = middle
            else:
                far = middle
        return safe + near * (ideal - safe)

    def _braking(self, velocity: float, acceleration: float) -> float:
        """The next acceleration of a joint that brakes."""
        speed, period = abs(velocity), self.period
        most = min(speed / period, self._steepest)
        if speed > self._change * period:
            # No more than what can be taken back by the time it stands.
            half, jerk = period / 2, self._change / period
            most = min(most, jerk * (math.sqrt(half * half + 2 * speed / jerk) - half))
        ideal = -math.copysign(most, velocity)
        return min(max(ideal, acceleration - self._change), acceleration + self._change)

    def _holds(self, acceleration: float, starts: set[float]) -> bool:
        """Whether all limits hold if this acceleration is followed by braking."""
        if not self._holds_velocity(acceleration):
            return False
        velocity = self.velocity + acceleration * self.period
        return all(
            self._brakes_within(
                start + velocity * self.period,
                velocity,
                acceleration,
                min(self._low, start),
                max(self._high, start),
            )
            for start in starts
        )

    def _holds_velocity(self, acceleration: float) -> bool:
        """Whether velocity stays within its limit while this acceleration is taken back."""
        velocity = self.velocity + acceleration * self.period
        size, more = abs(acceleration), 0.0
        if self._change < size:
            steps = math.floor(size / self._change)
            more = steps * size - self._change * steps * (steps + 1) / 2
        end = velocity + math.copysign(more * self.period, acceleration)
        return abs(velocity) <= self._top and abs(end) <= self._top

    def _brakes_within(
        self, position: float, velocity: float, acceleration: float, low: float, high: float
    ) -> bool:
        if low + self._room <= position <= high - self._room:
            return True
        for _ in range(LONGEST):
            if not low <= position <= high:
                return False
            if abs(velocity) <= STILL and abs(acceleration) <= self._change:
                return True
            acceleration = self._braking(velocity, acceleration)
            velocity += acceleration * self.period
            position += velocity * self.period
        return False

    def _overshoots(self, acceleration: float, wanted: float, going: float) -> bool:
        """Whether a joint that brakes to the velocity of a moving position gets past it."""
        velocity = self.velocity + acceleration * self.period - going
        ahead = self.position + (velocity + going) * self.period - wanted
        side = self.position - (wanted - going * self.period)
        for _ in range(LONGEST):
            if ahead * side < 0 and abs(ahead) > STILL:
                return True
            if abs(velocity) <= STILL or velocity * side > 0:
                return False
            acceleration = self._braking(velocity, acceleration)
            velocity += acceleration * self.period
            ahead += velocity * self.period
        return False

    def _brake_way(self, velocity: float) -> float:
        way = acceleration = 0.0
        for _ in range(LONGEST):
            if abs(velocity) <= STILL:
                return way
            acceleration = self._braking(velocity, acceleration)
            velocity += acceleration * self.period
            way += abs(velocity) * self.period
        raise VlaError(
            "a joint would take too long to brake", "raise max_acceleration and max_jerk"
        )
