"""Rate and latency over the last seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated; NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class RateMeter:
    """Latencies and their times in a sliding window.

    window: seconds. Times are given by the caller, by whichever clock.
    """

    def __init__(self, window: float = 5.0, most: int = 2000):
        self.window = window
        self.last = math.nan
        self._entries: deque[tuple[float, float]] = deque(maxlen=most)

    def add(self, latency_ms: float, now: float) -> None:
        self.last = latency_ms
        self._entries.append((now, latency_ms))
        self._forget(now)

    def rate(self, now: float) -> float:
        """Entries per second [Hz]; falls to 0 when there are no new ones."""
        self._forget(now)
        if len(self._entries) < 2:
            return len(self._entries) / self.window
        # Intervals, not entries, over the time they span; an overdue entry counts as waiting.
        first, last = self._entries[0][0], self._entries[-1][0]
        interval = (last - first) / (len(self._entries) - 1)
        span = last - first if now - last <= 2 * interval else now - first
        return (len(self._entries) - 1) / span if span > 0 else 0.0

    def percentile(self, share: float) -> float:
        """Of the latencies in the window [ms]; NaN where there are none."""
        return percentile([v for _, v in self._entries], share)

    @property
    def median(self) -> float:
        return self.percentile(0.5)

    @property
    def p95(self) -> float:
        return self.percentile(0.95)

    def _forget(self, now: float) -> None:
        while self._entries and now - self._entries[0][0] > self.window:
            self._entries.popleft()
