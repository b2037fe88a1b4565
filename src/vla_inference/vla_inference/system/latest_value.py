"""A latest-value slot: a slow receiver gets the newest value and skips the others."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from itertools import pairwise
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestValue(Generic[T]):
    """`put` never waits and replaces an untaken value; `take` waits for a value.

    received, dropped: how many were put in, and how many of those were replaced untaken.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = self._woken = False
        self._arrivals: deque[float] = deque(maxlen=9)  # monotonic
        self.received = self.dropped = 0

    def put(self, item: T) -> bool:
        """Stores an item; False if it replaced an untaken one."""
        with self._changed:
            replaced = self._item is not None
            self._item = item
            self._arrivals.append(time.monotonic())
            self.received += 1
            self.dropped += replaced
            self._changed.notify()
            return not replaced

    def take(self, timeout: float | None = None) -> T | None:
        """The newest item; None after `timeout` seconds, after `wake`, or once the slot is
        closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._item is not None or self._closed or self._woken, timeout
            )
            item, self._item, self._woken = self._item, None, False
            return None if self._closed else item

    def wake(self) -> None:
        """Ends the present or the next `take`."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def due(self) -> float:
        """Seconds until the next item is expected, by the intervals of the last ones [s].

        0: one is there or overdue. Infinite: they do not come regularly, or not any more.
        """
        with self._changed:
            if self._item is not None:
                return 0.0
            gaps = sorted(later - earlier for earlier, later in pairwise(self._arrivals))
            if not gaps:
                return math.inf
            since = time.monotonic() - self._arrivals[-1]
            return math.inf if since > 3 * gaps[-1] else max(0.0, gaps[len(gaps) // 4] - since)

    def reset(self) -> None:
        """Discards the content and resets the counters."""
        with self._changed:
            self._item = None
            self._arrivals.clear()
            self.received = self.dropped = 0

    def take_over(self, other: LatestValue[T]) -> None:
        """Closes another slot and continues with its counters and content."""
        with other._changed:
            item, other._item = other._item, None
            received, dropped = other.received, other.dropped
            arrivals = list(other._arrivals)
            other._closed = True
            other._changed.notify_all()
        with self._changed:
            self.received += received
            self.dropped += dropped
            self._arrivals.extendleft(reversed(arrivals))
            if self._item is None:
                self._item = item
            self._changed.notify()

    def close(self) -> None:
        """Wakes waiting threads; from now on `take` returns None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed
