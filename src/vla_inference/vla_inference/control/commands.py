"""The commands a controller receives: velocities of a chunk's steps, target pose, gripper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.control import vectors as v
from vla_inference.control.vectors import Quaternion, Vector
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import in_si
from vla_inference.types import ActionChunk, ActionPart, ActionSpec

DRIFT = "drift"  # kind of clip: the target was kept from running away from the end effector
SHORTEST, LONGEST = 1e-3, 60.0  # s, of a chunk's step
MOST_STEPS = 10_000  # more would hold up the command period that they come in


def check_dt(dt: float) -> None:
    """Raises VlaError if a step cannot last this long."""
    if not SHORTEST <= dt <= LONGEST:
        raise VlaError(f"dt is {dt:g} s", f"a step of a chunk lasts {SHORTEST:g} to {LONGEST:g} s")


def arm_and_gripper(spec: ActionSpec) -> tuple[ActionPart, ActionPart | None]:
    """The end-effector delta of the only arm, and its gripper if it has one.

    Raises VlaError, which names the parts that are neither.
    """
    arms = [p for p in spec.parts if p.kind == "eef_delta"]
    grippers = [p for p in spec.parts if p.kind == "gripper"]
    others = [p for p in spec.parts if p not in (*arms[:1], *grippers[:1])]
    if not arms or others:
        found = [f"{p.name} ({p.kind})" for p in others or spec.parts]
        raise VlaError(
            f"the chunk's {', '.join(found)} cannot be executed",
            "only one arm's end-effector delta (eef_delta) and one gripper can",
        )
    gripper = grippers[0] if grippers else None
    if gripper is not None and len(gripper) != 1:
        raise VlaError(f"{gripper.name} has {len(gripper)} numbers", "a gripper has one")
    return arms[0], gripper


def check_chunk(chunk: ActionChunk) -> None:
    """Raises VlaError if a chunk must not be executed."""
    arm_and_gripper(chunk.spec)
    check_steps(in_si(chunk))


def check_steps(chunk: ActionChunk) -> None:
    """Raises VlaError unless a chunk, of whichever parts, has steps of finite numbers."""
    check_dt(chunk.spec.dt)
    if len(chunk) == 0:
        raise VlaError("the chunk has no steps", "have the model give at least one")
    if len(chunk) > MOST_STEPS:
        raise VlaError(f"the chunk has {len(chunk)} steps", f"give at most {MOST_STEPS}")
    bad = np.flatnonzero(~np.isfinite(chunk.actions).all(axis=1))
    if len(bad):
        raise VlaError(
            f"step {bad[0]} contains a number that is not finite",
            "such a chunk must not be executed; fix the model",
        )


def chunk_deltas(chunk: ActionChunk) -> tuple[np.ndarray, np.ndarray | None]:
    """Deltas [T, 6] (m; rotation vector rad) in the arm's frame, and grippers [T] if there is one.

    Raises VlaError where it has other parts.
    """
    arm, gripper = arm_and_gripper(chunk.spec)
    chunk = in_si(chunk)
    parts = chunk.spec.split(np.asarray(chunk.actions, np.float64))
    deltas = parts[arm.name]
    if arm.rotation == "rpy":
        turns = Rotation.from_euler("xyz", deltas[:, 3:]).as_rotvec()
        deltas = np.hstack([deltas[:, :3], turns])
    return deltas, parts[gripper.name][:, 0] if gripper else None


def chunk_velocities(chunk: ActionChunk) -> tuple[np.ndarray, list[float] | list[None]]:
    """Velocities [T, 6] (m/s; rotation vector rad/s) in the chunk's frame, and grippers [T]."""
    deltas, grippers = chunk_deltas(chunk)
    told = [None] * len(chunk) if grippers is None else grippers.tolist()
    return deltas / chunk.spec.dt, told


@dataclass(frozen=True)
class Pose:
    """m, and a unit quaternion (x, y, z, w), in the base frame."""

    position: Vector
    orientation: Quaternion = v.IDENTITY

    def __post_init__(self) -> None:
        length = math.hypot(*self.orientation)
        if not all(map(math.isfinite, (*self.position, length))):
            raise VlaError("the pose contains numbers that are not finite", "fix its publisher")
        if not 0.99 < length < 1.01:
            raise VlaError(f"the pose's quaternion has length {length:g}", "normalise it")

    def within(self, other: Pose, far: float, turned: float) -> bool:
        """Whether the other pose is within this distance (m) and angle (rad)."""
        return (
            v.norm(v.subtract(self.position, other.position)) <= far
            and v.angle_between(self.orientation, other.orientation) <= turned
        )

    def towards(self, other: Pose, far: float, turned: float) -> Pose:
        """The pose this far (m, rad) on the way to the other one, or the other one if nearer."""
        return Pose(
            v.towards(self.position, other.position, far),
            v.turned_towards(self.orientation, other.orientation, turned),
        )

    def moved(self, linear: Vector, angular: Vector, time: float, in_tool: bool) -> Pose:
        """The pose after following a twist for `time` s; its axes are the tool's or the base's."""
        turn = v.from_rotation_vector(v.scale(angular, time))
        way = v.scale(linear, time)
        if in_tool:
            position = v.add(self.position, v.rotate(self.orientation, way))
            return Pose(position, v.multiply(self.orientation, turn))
        return Pose(v.add(self.position, way), v.multiply(turn, self.orientation))


@dataclass(frozen=True)
class Command:
    """To an end effector, a base or a gripper.

    linear [m/s] and angular [rad/s] are in the axes of the deltas, or the base's; both zero: halt.

    target: pose to be reached by the end of the period, where a pose is known.
    gripper: 1 open, 0 closed; None: nothing new.
    live: whether to send it; False in a dry run.
    """

    linear: Vector = v.ZERO
    angular: Vector = v.ZERO
    target: Pose | None = None
    gripper: float | None = None
    live: bool = True
    clips: frozenset[str] = frozenset()

    @property
    def moves(self) -> bool:
        return any(self.linear) or any(self.angular)


@dataclass
class Target:
    """The target pose: the previous one plus the commanded motion.

    It never jumps: from one command period to the next it gets no farther than `step`.

    drift: how far ahead of the measured pose it may be [m, rad]; then it waits for the robot. One
        that was held up must not catch up with all it missed. With 0 m every target starts at
        the measured pose, as deltas do that were recorded so (robosuite's).
    step: the limits' velocities times the period [m, rad]; infinite: any.
    box: lowest and highest corner, which it doesn't leave; None: there is none. A robot that is
        outside when it is enabled may come in.
    """

    drift: tuple[float, float] = (0.05, 0.3)
    step: tuple[float, float] = (math.inf, math.inf)
    box: tuple[Vector, Vector] | None = None
    pose: Pose | None = None
    _before: Pose | None = None  # this period's begin

    def anchor(self, measured: Pose | None) -> None:
        self.pose = self._before = measured

    def follow(self, measured: Pose | None) -> set[str]:
        """A command period begins: wait for the robot where it is too far behind; the clips."""
        if measured is None:
            return set()
        self._before = pose = measured if self.pose is None else self.pose
        self.pose = pose
        far = v.norm(v.subtract(pose.position, measured.position)) - self.drift[0]
        turned = v.angle_between(pose.orientation, measured.orientation)
        if not self.drift[0]:
            self.pose = self.confine(pose.towards(measured, *self.step))
            return set()
        turned -= self.drift[1]
        if far <= 0 and turned <= 0:
            return set()
        back = min(max(far, 0.0), self.step[0]), min(max(turned, 0.0), self.step[1])
        self.pose = self.confine(pose.towards(measured, *back))
        return {DRIFT}

    def stay(self) -> None:
        """A command period begins in which it stays where it is."""
        self._before = self.pose

    def advance(self, linear: Vector, angular: Vector, period: float, in_tool: bool) -> None:
        """Adds the commanded motion of this period."""
        if self.pose is not None:
            before = self._before or self.pose
            self.pose = before.towards(
                self.confine(self.pose.moved(linear, angular, period, in_tool)), *self.step
            )

    def confine(self, pose: Pose) -> Pose:
        """The pose nearest to `pose` in the workspace, or no farther outside than the target
        already is."""
        if self.box is None:
            return pose
        is_at = (self.pose or pose).position
        x, y, z = (
            min(max(p, min(a, t)), max(b, t))
            for a, b, t, p in zip(*self.box, is_at, pose.position, strict=True)
        )
        return Pose((x, y, z), pose.orientation)


@dataclass
class Gripper:
    """Open or closed, sent only on change: a new goal preempts the current one.

    hysteresis: how far beyond 0.5 the model's value must be to change it.
    """

    hysteresis: float = 0.1
    state: float | None = None  # the last value sent: 1 open, 0 closed

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
