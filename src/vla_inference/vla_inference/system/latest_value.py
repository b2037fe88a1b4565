"""A latest-value slot: a slow receiver gets the newest value and skips the others."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestValue(Generic[T]):
    """`put` never waits and replaces an untaken value; `take` waits for a value.

    received, dropped: how many were put in, and how many of those were replaced untaken.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._item: T | None = None
        self._closed = False
        self.received = self.dropped = 0

    def put(self, item: T) -> bool:
        """Stores an item; False if it replaced an untaken one."""
        with self._changed:
            replaced = self._item is not None
            self._item = item
            self.received += 1
            self.dropped += replaced
            self._changed.notify()
            return not replaced

    def take(self, timeout: float | None = None) -> T | None:
        """The newest item; None after `timeout` seconds or once the slot is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._item is not None or self._closed, timeout)
            item, self._item = self._item, None
            return None if self._closed else item

    def reset(self) -> None:
        """Discards the content and resets the counters."""
        with self._changed:
            self._item = None
            self.received = self.dropped = 0

    def take_over(self, other: LatestValue[T]) -> None:
        """Closes another slot and continues with its counters and content."""
        with other._changed:
            item, other._item = other._item, None
            received, dropped = other.received, other.dropped
            other._closed = True
            other._changed.notify_all()
        with self._changed:
            self.received += received
            self.dropped += dropped
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
