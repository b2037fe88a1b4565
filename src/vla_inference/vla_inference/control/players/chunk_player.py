"""Plays action chunks: which step is due at a time, from the stamps of the chunks' images.

Step k of a chunk is meant for k steps after its image. What has passed by the time the chunk
arrives is dropped; the rest takes over from the chunk before, or is averaged with it (temporal
ensembling, as in ACT: tonyzhaozh/act, imitate_episodes.py). A chunk of a single step is no plan in
time: it begins when it arrives.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vla_inference.control import vectors as v
from vla_inference.control.vectors import Vector

SLIVER = 1e-5  # s; shorter than this is rounding: seconds since 1970 have steps of 2.4e-7
MOST = 128  # chunks kept for temporal ensembling: of 100 steps, one a step, as ACT gives them

Step = tuple[Vector, Vector, float | None]  # m/s, rad/s, gripper if there is one
S = TypeVar("S")  # kind of step


@dataclass(frozen=True)
class Play:
    """How chunks are played.

    execute_steps: how many steps of each chunk, from the first that is not stale; 0: all.
    align: "stamp", or "arrival" to begin every chunk when it arrives.
    ensemble: average what all chunks say about a moment, weighted exp(-ensemble * i) with i = 0
        the oldest; None: the newest chunk alone counts.
    blend: seconds in which a chunk takes over from the one before.
    stretch, catch_up: see `Settings`; for those who make steps of a chunk.
    repeats: whether a chunk with the stamp of the last one takes its place.
    """

    execute_steps: int = 0
    align: str = "stamp"
    ensemble: float | None = None
    blend: float = 0.1
    stretch: float = 1.0
    catch_up: float = 0.0
    repeats: bool = False


@dataclass(frozen=True)
class Segment(Generic[S]):
    """The executable steps of one chunk, from time `start` on, `dt` seconds each.

    since: when it began to be executed, in the midst of its first step perhaps.
    extra: further velocities until `extra_end`, which make up for what was missed before.
    """

    stamp: float
    start: float
    dt: float
    steps: tuple[S, ...]
    since: float
    extra: tuple[Vector, Vector] = (v.ZERO, v.ZERO)
    extra_end: float = -math.inf

    @property
    def end(self) -> float:
        return self.start + len(self.steps) * self.dt

    def index(self, time: float) -> int | None:
        """Of the step that is due at a time; None: none is."""
        index = math.floor((time - self.start) / self.dt)
        return index if 0 <= index < len(self.steps) else None


@dataclass(frozen=True)
class Motion:
    """The planned motion of a command period: mean velocities, and the gripper at its middle."""

    linear: Vector
    angular: Vector
    gripper: float | None
    stamp: float  # of the newest image behind it


def planned(dt: float, steps: Sequence[Step], time: float) -> tuple[Vector, Vector]:
    """Displacements (m, rad) of these steps `time` s after their start."""
    linear = angular = v.ZERO
    for k, step in enumerate(steps):
        share = min(dt, time - k * dt)
        if share <= 0:
            break
        linear = v.add(linear, v.scale(step[0], share))
        angular = v.add(angular, v.scale(step[1], share))
    return linear, angular


class History:
    """Recently commanded velocities, by command period."""

    def __init__(self, keep: float = 5.0):
        self.keep = keep
        self._entries: deque[tuple[float, float, Vector, Vector]] = deque()

    def add(self, begin: float, end: float, linear: Vector, angular: Vector) -> None:
        if self._entries and begin < self._entries[-1][0]:
            self._entries.clear()  # the clock has changed
        self._entries.append((begin, end, linear, angular))
        while self._entries[0][1] < end - self.keep:
            self._entries.popleft()

    def way(self, begin: float, end: float) -> tuple[Vector, Vector]:
        """Displacements (m, rad) commanded between two times."""
        linear = angular = v.ZERO
        for a, b, lin, ang in reversed(self._entries):
            if b <= begin:
                break
            share = min(b, end) - max(a, begin)
            if share > 0:
                linear = v.add(linear, v.scale(lin, share))
                angular = v.add(angular, v.scale(ang, share))
        return linear, angular


class Player(Generic[S]):
    """Keeps the chunks of one part, whatever their steps are; see `Play`.

    stale, late, ignored: steps whose time had passed; chunks of nothing but such steps; chunks no
        newer than one already here.
    """

    def __init__(
        self,
        execute_steps: int = 0,
        align: str = "stamp",
        ensemble: float | None = None,
        blend: float = 0.1,
    ):
        self.play = Play(execute_steps, align, ensemble, blend)
        self.stale = self.late = self.ignored = 0
        self._newest = -math.inf
        self._segments: list[Segment[S]] = []  # oldest first

    def clear(self) -> None:
        """Drops all plans; chunks of images seen so far stay invalid."""
        self._segments = []

    def restart(self) -> None:
        """The clock has changed: also forgets which images were seen."""
        self._segments, self._newest = [], -math.inf

    def begin_anew(self, play: Play, newest: float) -> None:
        """Other chunks come from now on, of images after the time `newest`."""
        self.play, self._segments, self._newest = play, [], newest

    def accept(
        self,
        stamp: float,
        dt: float,
        steps: Sequence[S],
        begin: float,
        extra: tuple[Vector, Vector] = (v.ZERO, v.ZERO),
        extra_end: float = -math.inf,
    ) -> bool:
        """Takes a new chunk; returns whether any of it will be executed.

        begin: when the next command period begins: nothing can be executed before.
        extra, extra_end: see `Segment`.
        """
        play = self.play
        if stamp < self._newest or (stamp == self._newest and not play.repeats):
            self.ignored += 1
            return False
        self._newest = stamp
        by_stamp = play.align == "stamp" and len(steps) > 1
        first = max(0, math.floor((begin - stamp) / dt + 1e-6)) if by_stamp else 0
        self.stale += min(first, len(steps))
        if first >= len(steps):
            self.late += 1
            return False
        start = stamp + first * dt if by_stamp else begin
        last = first + play.execute_steps if play.execute_steps else len(steps)
        chosen = tuple(steps[first:last])
        self._segments = [s for s in self._segments if s.end > begin]
        if play.ensemble is None:
            self._segments = self._segments[-1:]
        self._segments.append(Segment(stamp, start, dt, chosen, begin, extra, extra_end))
        self._segments = self._segments[-MOST:]
        return True

    def spans(self, begin: float, end: float) -> list[tuple[float, float]]:
        """A period cut where a step of any chunk begins or ends."""
        edges = {begin, end}
        edges |= {s.extra_end for s in self._segments if begin < s.extra_end < end}
        for s in self._segments:
            first = max(0, math.floor((begin - s.start) / s.dt))
            for k in range(first, len(s.steps) + 1):
                edge = s.start + k * s.dt
                if edge >= end:
                    break
                if edge > begin:
                    edges.add(edge)
        return [(a, b) for a, b in itertools.pairwise(sorted(edges)) if b - a > SLIVER]

    def newest_stamp(self, begin: float, end: float) -> float:
        """Of the images behind a period in which something is planned."""
        return max(s.stamp for s in self._segments if s.start < end and s.end > begin)

    def due(self, time: float) -> list[tuple[Segment[S], float]]:
        """The chunks that cover a time, the oldest first, and their weights; these sum to 1."""
        due = [s for s in self._segments if s.index(time) is not None]
        if len(due) < 2:
            return [(s, 1.0) for s in due]
        play = self.play
        if play.ensemble is not None:
            weights = [math.exp(-play.ensemble * i) for i in range(len(due))]
        else:
            taken = (time - due[-1].since) / play.blend if play.blend > 0 else 1.0
            weights = [1.0 - min(1.0, taken), min(1.0, taken)]
        total = sum(weights)
        return [(s, weight / total) for s, weight in zip(due, weights, strict=True)]


class ChunkPlayer(Player[Step]):
    """Of steps with velocities that last for the whole step."""

    def motion(self, begin: float, end: float) -> Motion | None:
        """The mean motion from `begin` to `end`, or None if nothing is planned."""
        linear = angular = v.ZERO
        planned = False
        for a, b in self.spans(begin, end):
            step = self._step((a + b) / 2)
            if step is None:
                continue
            planned = True
            share = (b - a) / (end - begin)
            linear = v.add(linear, v.scale(step[0], share))
            angular = v.add(angular, v.scale(step[1], share))
        if not planned:
            return None
        middle = self._step((begin + end) / 2)
        return Motion(
            linear, angular, middle[2] if middle else None, self.newest_stamp(begin, end)
        )

    def _step(self, time: float) -> Step | None:
        """The step at a time, combined over all chunks that cover it."""
        due = [(_at(s, time), share) for s, share in self.due(time)]
        if len(due) < 2:
            return due[0][0] if due else None
        linear = angular = v.ZERO
        gripper = None
        for step, share in due:
            linear = v.add(linear, v.scale(step[0], share))
            angular = v.add(angular, v.scale(step[1], share))
            gripper = step[2]
        # Averages of a gripper are neither open nor closed: the newest decides.
        return linear, angular, gripper


def _at(segment: Segment[Step], time: float) -> Step:
    linear, angular, gripper = segment.steps[segment.index(time) or 0]
    if time >= segment.extra_end:
        return linear, angular, gripper
    return v.add(linear, segment.extra[0]), v.add(angular, segment.extra[1]), gripper
