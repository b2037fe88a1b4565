"""What a controller is told: velocities of a chunk's steps, the target pose, the gripper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.control import vectors as v
from vla_inference.control.vectors import Quaternion, Vector
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk

DRIFT = "drift"  # kind of clip: the target was taken back to where the end effector is


def check_chunk(chunk: ActionChunk) -> None:
    """Raise VlaError where a chunk is nothing that may be executed."""
    spec = chunk.spec
    if len(spec) != 7 or spec.names[-1] != "gripper":
        raise VlaError(
            f"the actions are {', '.join(spec.names)}",
            "an end-effector delta has x, y, z, three angles and the gripper",
        )
    if spec.rotation not in ("rotvec", "rpy"):
        raise VlaError(f"the chunk's rotations are {spec.rotation!r}", "use 'rotvec' or 'rpy'")
    if len(chunk) == 0:
        raise VlaError("the chunk has no steps", "have the model give at least one")
    if not np.isfinite(chunk.actions).all():
        raise VlaError("the chunk holds numbers that are not finite", "mend the model")
    if not (math.isfinite(spec.dt) and spec.dt > 0):
        raise VlaError(f"a step of the chunk lasts {spec.dt} s", "give a duration above 0")


def chunk_velocities(chunk: ActionChunk) -> tuple[np.ndarray, np.ndarray]:
    """Velocities [T, 6] (m/s; rotation vector rad/s) in the chunk's frame, and grippers [T]."""
    actions = chunk.actions.astype(np.float64)
    rotations = actions[:, 3:6]
    if chunk.spec.rotation == "rpy":
        rotations = Rotation.from_euler("xyz", rotations).as_rotvec()
    return np.hstack([actions[:, :3], rotations]) / chunk.spec.dt, actions[:, 6]


@dataclass(frozen=True)
class Pose:
    """m, and a unit quaternion (x, y, z, w), in the base frame."""

    position: Vector
    orientation: Quaternion = v.IDENTITY

    def __post_init__(self):
        length = math.hypot(*self.orientation)
        if not all(map(math.isfinite, (*self.position, length))):
            raise VlaError("the pose holds numbers that are not finite", "mend its publisher")
        if not 0.99 < length < 1.01:
            raise VlaError(f"the pose's quaternion has length {length:g}", "normalise it")

    def moved(self, linear: Vector, angular: Vector, time: float, in_tool: bool) -> Pose:
        """Where a twist leads in `time` s; its axes are the tool's or the base's."""
        turn = v.from_rotation_vector(v.scale(angular, time))
        way = v.scale(linear, time)
        if in_tool:
            position = v.add(self.position, v.rotate(self.orientation, way))
            return Pose(position, v.multiply(self.orientation, turn))
        return Pose(v.add(self.position, way), v.multiply(turn, self.orientation))


@dataclass
class Target:
    """The pose asked for: the last one plus what was commanded since.

    drift: how far it may be from the measured pose [m, rad] before it is anchored there anew. A
    robot that was held up must not catch up with all it missed. With 0 m every target starts at
    the measured pose, as deltas do that were recorded so (robosuite's).
    """

    drift: tuple[float, float] = (0.05, 0.3)
    pose: Pose | None = None
    measured: Pose | None = None

    def anchor(self) -> None:
        self.pose = self.measured

    def check(self) -> set[str]:
        """Anchor anew where target and robot are too far apart; the kinds of clips."""
        if self.measured is None:
            return set()
        if self.pose is None or not self.drift[0]:
            self.anchor()
            return set()
        far = v.norm(v.subtract(self.pose.position, self.measured.position)) > self.drift[0]
        turned = v.angle_between(self.pose.orientation, self.measured.orientation)
        if not far and turned <= self.drift[1]:
            return set()
        self.anchor()
        return {DRIFT}

    def confine(self, low: Vector, high: Vector) -> None:
        """Leave no target outside the box, unless the robot itself is as far out."""
        if self.pose is None or self.measured is None:
            return
        is_at = self.measured.position
        x, y, z = (
            min(max(p, min(a, m)), max(b, m))
            for a, b, m, p in zip(low, high, is_at, self.pose.position, strict=True)
        )
        self.pose = Pose((x, y, z), self.pose.orientation)


@dataclass
class Gripper:
    """Open or closed, told on change only: a new goal preempts the one under way.

    hysteresis: how far beyond 0.5 the model's value must be to change it.
    """

    hysteresis: float = 0.1
    state: float | None = None  # what was told last: 1 open, 0 closed

    def follow(self, value: float) -> float | None:
        """The model's wish (1 open, 0 closed) -> what to tell, or None for nothing new."""
        if value > 0.5 + self.hysteresis:
            wanted = 1.0
        elif value < 0.5 - self.hysteresis:
            wanted = 0.0
        else:
            return None
        if wanted == self.state:
            return None
        self.state = wanted
        return wanted
