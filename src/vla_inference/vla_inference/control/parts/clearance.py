"""Whether the way ahead of a base is clear, by its lidar."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_inference.control.safety import OBSTACLE, SCAN_LOST
from vla_inference.control.stamps import AHEAD
from vla_inference.errors import VlaError

SIDE = math.radians(30)  # to each side at least: where a scan must tell something
APART = math.radians(5)  # beams at most
TOLD = 0.5  # share of the beams of each side that must measure
FROZEN = 0.3  # m commanded while the scans stay the very same: no scanner is that exact


@dataclass(frozen=True)
class ClearanceLimits:
    """distance: m from the base's front within which nothing may be ahead; 0: not watched.

    width: m of the strip ahead that has to be clear. front: m from the scanner to the base's
    front. yaw: where the scanner looks, rad from the base's x axis. timeout: s, the greatest age
    of a scan.
    """

    distance: float = 0.0
    width: float = 0.5
    front: float = 0.2
    yaw: float = 0.0
    timeout: float = 0.5


@dataclass(frozen=True)
class Scan:
    """Ranges [N] m at angles [N] rad in the scanner's axes, as a LaserScan has them.

    -inf is too near to measure, inf nothing; NaN, 0 and what is below `least` is no measurement.
    """

    angles: np.ndarray
    ranges: np.ndarray
    least: float = 0.0

    @classmethod
    def read(
        cls, first: float, step: float, last: float, ranges: Sequence[float], least: float
    ) -> Scan:
        """first, step, last: angles by the message, rad. VlaError if they are not its ranges'."""
        angles = first + step * np.arange(len(ranges))
        span = abs(step) * max(0, len(ranges) - 1)
        if not (
            span <= 2 * math.pi + 0.1
            and abs(first + span * math.copysign(1, step) - last) <= 1.5 * abs(step)
        ):
            raise VlaError(
                f"the scan's {len(ranges)} ranges do not lie between its angles {first:g} and "
                f"{last:g} rad, {step:g} apart",
                "correct its publisher",
            )
        return cls(angles, np.asarray(ranges, np.float64), least)


class Clearance:
    """The gap ahead by the last scan. Times as in `Safety`."""

    def __init__(self, name: str, limits: ClearanceLimits):
        self.name, self.limits = name, limits
        self.gap = math.inf  # m, from the front to the nearest point in the strip ahead
        self._stamp = self._known = -math.inf  # of the last scan, and steady time of it
        self._ways: deque[tuple[float, float]] = deque()  # steady time, m commanded until then
        self._ranges = np.zeros(0)  # of the last scan
        self._same = self._since = 0.0  # m commanded while they stayed the same, and since then

    def measured(self, scan: Scan, stamp: float, now: float, steady: float) -> str:
        """Takes a scan; returns why it is refused, if it is. stamp: by the clock of `now`."""
        age = now - stamp
        if age > self.limits.timeout or age < -AHEAD:
            return f"the scan is {abs(age):.2f} s {'old' if age > 0 else 'in the future'}"
        if stamp <= self._stamp and steady - self._known <= self.limits.timeout:
            return "" if stamp == self._stamp else "the scan is older than the one before"
        try:
            self.gap = gap_ahead(scan, self.limits)
        except VlaError as error:
            return str(error)
        self._stamp, self._known = stamp, steady - max(0.0, age)
        ranges = np.asarray(scan.ranges, np.float64)
        moves = np.isfinite(ranges).any()  # where nothing is in reach, nothing changes
        same = moves and np.array_equal(ranges, self._ranges, equal_nan=True)
        self._same = self._same + self._since if same else 0.0
        self._ranges, self._since = ranges, 0.0
        return ""

    def told(self, speed: float, steady: float, period: float) -> None:
        """Records what is commanded for a period that begins now. speed: m/s forwards."""
        self._since += abs(speed) * period
        self._ways.append((steady + period, max(0.0, speed) * period))
        while self._ways and self._ways[0][0] < steady - 2 * self.limits.timeout:
            self._ways.popleft()

    def lost(self, steady: float) -> str:
        """Why nobody knows whether the way is clear; empty: it is known."""
        if steady - self._known <= self.limits.timeout:
            return ""
        return f"{self.name}: no usable scan within {self.limits.timeout:g} s"

    def enabled(self) -> None:
        """Forgets that scans stayed the same."""
        self._same = self._since = 0.0

    def fault(self, speed: float, steady: float, period: float) -> tuple[str, str] | None:
        """What is wrong, kind and reason. speed: m/s forwards, of this period."""
        if lost := self.lost(steady):
            return SCAN_LOST, lost
        if self._same > FROZEN:
            return SCAN_LOST, (
                f"{self.name}: the scan is the very same after {self._same:.2f} m of commanded "
                "motion; is the scanner frozen, or the base held up?"
            )
        if speed <= 0:
            return None
        # The base has come nearer since the scan, as it was told then or is now, and does so until
        # the next period.
        way = sum(way for end, way in self._ways if end > self._known)
        gap = self.gap - max(way, speed * (steady - self._known)) - speed * period
        if gap > self.limits.distance:
            return None
        return OBSTACLE, (
            f"{self.name}: something is {max(0.0, self.gap):.2f} m ahead (allowed: "
            f"{self.limits.distance:g} m); clear the way or drive it away by hand, then enable"
        )


def gap_ahead(scan: Scan, limits: ClearanceLimits) -> float:
    """m from the front to the nearest point in the strip ahead; VlaError where a scan says too
    little of that strip."""
    reach = limits.front + limits.distance
    if scan.least > reach:
        raise VlaError(
            f"the scanner measures from {scan.least:g} m on, and is to stop it at {reach:g} m",
            "raise stop_distance",
        )
    angles = np.asarray(scan.angles, np.float64) + limits.yaw
    angles = np.arctan2(np.sin(angles), np.cos(angles))
    order = np.argsort(angles)
    angles, ranges = angles[order], np.asarray(scan.ranges, np.float64)[order]
    told = ((ranges > 0) & (ranges >= scan.least)) | np.isneginf(ranges)
    side = max(SIDE, math.atan2(limits.width / 2, max(reach, 0.01)))
    ahead = np.abs(angles) <= side
    _check_covered(angles[ahead], told[ahead], side)
    if np.isneginf(ranges[ahead]).any():
        return 0.0
    near = told & np.isfinite(ranges)
    x, y = ranges[near] * np.cos(angles[near]), ranges[near] * np.sin(angles[near])
    strip = x[(x > min(0.0, limits.front)) & (np.abs(y) <= limits.width / 2)]
    return float(strip.min() - limits.front) if len(strip) else math.inf


def _check_covered(angles: np.ndarray, told: np.ndarray, side: float) -> None:
    """Refuses a scan that does not look ahead to both sides. angles: rising, those ahead."""
    apart = np.diff(angles, prepend=-side, append=side)
    halves = told[angles <= 0], told[angles >= 0]
    if apart.max() > APART or any(half.mean() < TOLD for half in halves if len(half)):
        raise VlaError(
            f"{int(told.sum())} of {len(told)} beams ahead, to {math.degrees(side):.0f} degrees "
            "on each side, measure anything",
            "turn the scanner to the front (scan_yaw), clean it",
        )
