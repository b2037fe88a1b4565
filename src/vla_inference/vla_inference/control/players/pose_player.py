"""Plays an end effector's chunks of poses: where it is wanted at the end of a command period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.control import vectors as v
from vla_inference.control.commands import Pose
from vla_inference.control.players.chunk_player import SLIVER, Player
from vla_inference.control.vectors import Vector

BRAKING = 0.7  # share of the speed from which an ideal brake would just do

PoseStep = tuple[Pose, Pose]  # at its begin and its end


@dataclass(frozen=True)
class PoseMotion:
    """pose: wanted at the end of a period. linear, angular: how it goes on [m/s, rad/s].

    stamp: of the newest image behind it.
    """

    pose: Pose
    linear: Vector
    angular: Vector
    stamp: float


def pose_steps(begin: Pose, rows: np.ndarray, rotation: str) -> list[PoseStep]:
    """Steps that each end at a row [T, 6] (m; angles by `rotation`), the first from `begin`."""
    if rotation == "rpy":
        turns = Rotation.from_euler("xyz", rows[:, 3:])
    else:
        turns = Rotation.from_rotvec(rows[:, 3:])
    poses = [
        Pose((x, y, z), (qx, qy, qz, qw))
        for (x, y, z), (qx, qy, qz, qw) in zip(
            rows[:, :3].tolist(), turns.as_quat().tolist(), strict=True
        )
    ]
    return list(zip([begin, *poses[:-1]], poses, strict=True))


class PosePlayer(Player[PoseStep]):
    """Poses change evenly within a step."""

    def motion(self, begin: float, end: float) -> PoseMotion | None:
        """What is planned for the end of a period; None: nothing is planned."""
        time = (begin + end) / 2
        if not self.due(time):
            time = begin + SLIVER
        pose, taken = None, 0.0
        linear = angular = v.ZERO
        for segment, share in self.due(time):
            index = segment.index(end)
            index = len(segment.steps) - 1 if index is None else index
            passed = min(1.0, (end - segment.start) / segment.dt - index)
            there = between(*segment.steps[index], passed)
            taken += share
            pose = there if pose is None else between(pose, there, share / taken)
            way, turn = difference(*segment.steps[segment.index(time) or 0])
            linear = v.add(linear, v.scale(way, share / segment.dt))
            angular = v.add(angular, v.scale(turn, share / segment.dt))
        if pose is None:
            return None
        return PoseMotion(pose, linear, angular, self.newest_stamp(begin, end))


def difference(begin: Pose, end: Pose) -> tuple[Vector, Vector]:
    """The way and the rotation vector from one pose to the other, in base axes [m, rad]."""
    turn = v.multiply(end.orientation, v.conjugate(begin.orientation))
    return v.subtract(end.position, begin.position), v.rotation_vector(turn)


def between(begin: Pose, end: Pose, share: float) -> Pose:
    """The pose at a share of the way."""
    way, turn = difference(begin, end)
    return begin.towards(end, share * v.norm(way), share * v.norm(turn))


def approach(way: Vector, going: Vector, period: float, limits: Sequence[float]) -> Vector:
    """The velocity that leads to what is `way` ahead at the end of a period, and goes on at
    `going`, no faster than can be braked.

    limits: velocity, acceleration and jerk; 0: no limit.
    """
    relative = v.subtract(way, v.scale(going, period))
    far = v.norm(relative)
    _, steepest, jerk = limits
    most = far / period
    if steepest:
        most = min(most, BRAKING * (steepest * far) ** 0.5)
    if jerk:
        most = min(most, BRAKING * (far * jerk**0.5) ** (2 / 3))
    return v.add(going, v.scale(relative, most / far)) if far else going
