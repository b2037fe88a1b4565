"""Past images for models that take several time steps: live by stamps, recorded by steps."""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

from vla_inference.errors import ObservationError, VlaError

T = TypeVar("T")


class ImageHistory(Generic[T]):
    """Keeps items long enough to look back `count` times `interval` seconds.

    tolerance: how far from its time [s] a past item may be.
    """

    def __init__(self, count: int, interval: float, tolerance: float = math.inf):
        self.count, self.interval, self.tolerance = count, interval, tolerance
        self._items: deque[tuple[float, T]] = deque()
        self._began = self._last = 0.0
        self._apart = min(tolerance, interval) / 4  # nearer ones need not be kept

    def put(self, stamp: float, item: T) -> list[T]:
        """Adds a current item; returns those nearest to `interval`, 2 `interval` ... before it.

        Where the past does not reach back so far, its oldest item stands in, as in training at
        the beginning of an episode. A stamp that goes back begins a new past. ObservationError
        where the past reaches back, but has nothing from so near that time.
        """
        if self._items and stamp < self._last:
            self.begin()
        self._last = stamp
        if not self._items:
            self._began = stamp
        elif stamp == self._items[-1][0]:
            self._items.pop()  # a camera that repeats itself shows its last image
        if not self._items or stamp - self._items[-1][0] >= self._apart:
            self._items.append((stamp, item))
        # One older than the farthest look back may still be the nearest to it.
        farthest = stamp - self.count * self.interval
        while len(self._items) > 2 and self._items[1][0] <= farthest:
            self._items.popleft()
        return [self._at(stamp - i * self.interval, stamp) for i in range(1, self.count + 1)]

    def begin(self) -> None:
        """A new past, as at the beginning of an episode."""
        self._items.clear()

    def _at(self, time: float, now: float) -> T:
        stamp, item = min(self._items, key=lambda e: abs(e[0] - time))
        if time > self._began and abs(stamp - time) > self.tolerance:
            raise ObservationError(
                f"there is no image from {now - time:.3g} s before, the nearest is from "
                f"{now - stamp:.3g} s before",
                "have the camera publish faster, and see where its images get lost",
            )
        return item


def past_name(camera: str, ago: int) -> str:
    """The name of a camera's image of `ago` intervals before; 0: the present one."""
    return f"{camera}-{ago}" if ago else camera


def past_steps(step: int, history: int, stride: int) -> list[int]:
    """Of a recorded episode: the steps whose images come with this one's, newest first; before
    its first step there is nothing, so that stands in."""
    return [max(0, step - ago * stride) for ago in range(1, history + 1)]


def stride_of(interval: float, dt: float) -> int:
    """Steps of `dt` seconds between past images; VlaError if those are not whole ones."""
    stride = round(interval / dt) if dt > 0 else 0
    if stride < 1 or abs(stride * dt - interval) > 0.01 * interval:
        raise VlaError(
            f"past images are {interval:g} s apart, steps last {dt:g} s",
            "make the interval a multiple of the step",
        )
    return stride
