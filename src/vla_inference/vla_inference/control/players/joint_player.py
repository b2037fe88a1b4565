"""Plays a joint part's chunks: wanted positions or velocities of n joints in a command period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vla_inference.control.players.chunk_player import SLIVER, Player, Segment

Joints = tuple[float, ...]
JointStep = tuple[Joints, Joints]  # at its begin and its end: rad, m; or rad/s, m/s


@dataclass(frozen=True)
class JointMotion:
    """What is wanted of a command period.

    values: positions at its end [rad, m], or mean velocities [rad/s, m/s].
    going: how fast positions go on from there [rad/s, m/s].
    stamp: of the newest image behind it.
    """

    values: Joints
    going: Joints
    stamp: float


def position_steps(begin: Joints, rows: Sequence[Joints]) -> list[JointStep]:
    """Steps that each end at a row, the first of which begins at `begin`."""
    return list(zip([begin, *rows[:-1]], rows, strict=True))


class JointPlayer(Player[JointStep]):
    """Positions change evenly within a step; velocities are those of the step's end."""

    def positions(self, begin: float, end: float) -> JointMotion | None:
        """What is planned for the end of a period; None: nothing is planned.

        A chunk that ends within the period is gone through to its last position.
        """
        time = (begin + end) / 2
        due = self.due(time)
        if not due:
            time = begin + SLIVER
            due = self.due(time)
        if not due:
            return None
        n = range(len(due[0][0].steps[0][1]))
        places = [(*_place(segment, time, end), share) for segment, share in due]
        return JointMotion(
            tuple(sum(share * at[i] for at, _, share in places) for i in n),
            tuple(sum(share * speed[i] for _, speed, share in places) for i in n),
            self.newest_stamp(begin, end),
        )

    def velocities(self, begin: float, end: float) -> JointMotion | None:
        """The mean velocities planned for a period; None: nothing is planned."""
        total: list[float] = []
        for a, b in self.spans(begin, end):
            for segment, share in self.due((a + b) / 2):
                row = segment.steps[segment.index((a + b) / 2) or 0][1]
                part = share * (b - a) / (end - begin)
                total = [x + part * y for x, y in zip(total or [0.0] * len(row), row, strict=True)]
        if not total:
            return None
        return JointMotion(tuple(total), tuple(total), self.newest_stamp(begin, end))


def _place(segment: Segment[JointStep], time: float, end: float) -> tuple[Joints, Joints]:
    """Positions at `end`, and how fast they change; `time`, before it, is within the chunk."""
    last = segment.index(end) is None
    index = len(segment.steps) - 1 if last else segment.index(end) or 0
    begin, then = segment.steps[index]
    passed = min(1.0, (end - segment.start) / segment.dt - index)
    # The slope before the end: at a knot that of the step that ends there.
    before, after = segment.steps[segment.index(time) or 0]
    speed = tuple((b - a) / segment.dt for a, b in zip(before, after, strict=True))
    return tuple(a + passed * (b - a) for a, b in zip(begin, then, strict=True)), speed
