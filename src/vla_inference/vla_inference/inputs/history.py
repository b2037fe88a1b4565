"""Keeps past images for models that take several time steps."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class ImageHistory(Generic[T]):
    """Keeps items long enough to look back `count` times `interval` seconds."""

    def __init__(self, count: int, interval: float):
        self.count, self.interval = count, interval
        self._items: deque[tuple[float, T]] = deque()

    def put(self, stamp: float, item: T) -> list[T]:
        """Adds a current item; returns those nearest to `interval`, 2 `interval` ... before it.

        Where the past does not reach back so far, its oldest item stands in, as in training at
        the beginning of an episode. A stamp that goes back begins a new past.
        """
        if self._items and stamp < self._items[-1][0]:
            self._items.clear()
        if self._items and stamp == self._items[-1][0]:
            self._items.pop()  # a camera that repeats itself must not fill the memory
        self._items.append((stamp, item))
        # One older than the farthest look back may still be the nearest to it.
        farthest = stamp - self.count * self.interval
        while len(self._items) > 2 and self._items[1][0] <= farthest:
            self._items.popleft()
        wanted = [stamp - i * self.interval for i in range(1, self.count + 1)]
        return [min(self._items, key=lambda e: abs(e[0] - t))[1] for t in wanted]
