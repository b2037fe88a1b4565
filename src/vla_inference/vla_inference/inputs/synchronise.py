"""Matches messages of several inputs by their time stamps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

DEPTH = 30  # of each input: as much as is waited for one that lags behind


@dataclass(frozen=True)
class _Entry(Generic[T]):
    stamp: float
    item: T


class Synchroniser(Generic[T]):
    """Builds sets of one item per input; the first input leads, the others follow.

    An item goes with a leading one if their stamps differ by at most `tolerance` (s); of several
    the nearest is taken. A set is given as soon as it is complete, each leading item once, in the
    order of their stamps: one whose turn has passed is left out. A constant lag of any input
    delays sets but loses none, as long as no more than `DEPTH` items wait.
    """

    def __init__(self, names: Sequence[str], tolerance: float):
        self.names, self.tolerance = tuple(names), tolerance
        self._waiting: deque[_Entry[T]] = deque(maxlen=DEPTH)  # leading items
        self._seen: dict[str, deque[_Entry[T]]] = {}
        self._arrived: dict[str, float] = {}
        self._apart: dict[str, float] = {}  # what kept the newest leading item waiting
        self.reset()

    def reset(self) -> None:
        self._waiting.clear()
        self._seen = {n: deque(maxlen=DEPTH) for n in self.names[1:]}
        self._arrived, self._apart = {}, {}

    def put(self, name: str, stamp: float, item: T, now: float = 0.0) -> tuple[T, ...] | None:
        """Adds an item received at `now` (monotonic); returns the set it completes, in order of
        `names`.

        A stamp that goes back by more than the tolerance means that the clock was set back or a
        recording begins again: what was kept of this input is forgotten.
        """
        self._arrived[name] = now
        kept = self._waiting if name == self.names[0] else self._seen[name]
        if kept and stamp < kept[-1].stamp - max(self.tolerance, 1e-9):
            kept.clear()
        kept.append(_Entry(stamp, item))
        for i in reversed(range(len(self._waiting))):
            found = self._complete(self._waiting[i])
            if found is not None:
                for _ in range(i + 1):
                    self._waiting.popleft()
                self._apart = {}
                return found
        if self._waiting:
            self._apart = self._misses(self._waiting[-1])
        return None

    def _complete(self, lead: _Entry[T]) -> tuple[T, ...] | None:
        if self._misses(lead):
            return None
        near = (_nearest(seen, lead.stamp) for seen in self._seen.values())
        return (lead.item, *(entry.item for entry in near if entry is not None))

    def _misses(self, lead: _Entry[T]) -> dict[str, float]:
        """Inputs without a matching item, and by how much (s) the nearest one misses (infinite:
        none)."""
        found = {}
        for name, seen in self._seen.items():
            near = _nearest(seen, lead.stamp)
            apart = near.stamp - lead.stamp if near is not None else -math.inf
            # A hair more: stamps are sums of seconds and nanoseconds, in floating point.
            if abs(apart) > self.tolerance + 1e-6:
                found[name] = apart
        return found

    def missing(self, now: float, patience: float = 1.0) -> str:
        """Describes which inputs hold up the sets; empty: none, as far as known.

        patience: seconds an input may be silent.
        """
        never = [n for n in self.names if n not in self._arrived]
        if never:
            return f"nothing has come on {', '.join(never)} yet"
        silent = {n: now - t for n, t in self._arrived.items() if now - t > patience}
        if silent:
            return ", ".join(f"nothing on {n} for {s:.1f} s" for n, s in silent.items())
        return ", ".join(
            f"{name} is {abs(apart):.3f} s {'ahead of' if apart > 0 else 'behind'} "
            f"{self.names[0]}, more than the tolerance ({self.tolerance:g} s)"
            for name, apart in self._apart.items()
        )


def _nearest(entries: deque[_Entry[T]], stamp: float) -> _Entry[T] | None:
    return min(entries, key=lambda e: abs(e.stamp - stamp), default=None)
