"""Real-time logic: which step of which chunk is due at a control period.

Step k of a chunk was meant for k periods after its frame. By the time the chunk arrives some of
them have passed, during which the steps of the chunk before were executed; these are skipped. A
chunk older than all its steps still gives its last one, so that a slow model moves the arm at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class RealTime:
    """The newest chunk and the current step in it. Times in seconds of any one clock; `dt` of a
    step."""

    dt: float
    held: int = 0  # periods without a step to execute
    missed: int = 0  # periods that passed while an earlier one was still under way
    ignored: int = 0  # chunks older than the one in hand
    _actions: np.ndarray = field(default_factory=lambda: np.zeros((0, 7)))
    _at: int = 0
    _stamp: float = float("-inf")
    _next: float | None = None

    def restart(self, now: float) -> None:
        """A new episode: predictions for frames before `now` are void."""
        self._actions, self._at, self._stamp, self._next = np.zeros((0, 7)), 0, now, None

    def accept(self, stamp: float, actions: np.ndarray, now: float) -> bool:
        """Takes a chunk for the frame of `stamp`; returns whether it replaces the current one."""
        if stamp < self._stamp:
            self.ignored += 1
            return False
        passed = int((now - stamp) / self.dt + 1e-6)
        self._actions, self._at = actions, min(max(passed, 0), len(actions) - 1)
        self._stamp = stamp
        return True

    def period(self, now: float) -> np.ndarray | None:
        """Starts a control period: the step to execute, or None to hold."""
        if self._next is not None and now - self._next > self.dt:
            late = int((now - self._next) / self.dt)
            self.missed += late
            self._next += late * self.dt
        self._next = (now if self._next is None else self._next) + self.dt
        if self._at >= len(self._actions):
            self.held += 1
            return None
        self._at += 1
        return self._actions[self._at - 1]
