"""Builds a model's state vector from the topics that a robot publishes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.errors import ObservationError, VlaError

# part -> numbers; "joints" has as many as there are names
POSE_PARTS = {"position": 3, "axis_angle": 3, "rotvec": 3, "rpy": 3, "quaternion": 4}
ROTATIONS = frozenset(POSE_PARTS) - {"position"}
SEAM = 0.1  # rad; nearer to where its numbers jump, a rotation is remarked upon


class QuaternionSign:
    """Chooses, of the two quaternions (x y z w) of a rotation, the one nearer to the previous
    one.

    The first one has a positive w where it turns by less than 75 degrees, else a positive x: so
    a hand that points down begins as in robosuite and LIBERO, with any source.
    """

    def __init__(self) -> None:
        self._last: np.ndarray | None = None

    def __call__(self, quaternion: Sequence[float] | np.ndarray) -> np.ndarray:
        q = np.asarray(quaternion, np.float64)
        if self._last is not None:
            sign = q @ self._last
        elif abs(q[3]) > 0.8:
            sign = q[3]
        else:
            sign = next((v for v in q if abs(v) > 0.1), 1.0)
        self._last = -q if sign < 0 else q
        return self._last

    def of_matrix(self, rotation: np.ndarray) -> np.ndarray:
        """The same for a rotation matrix [3, 3]."""
        return self(Rotation.from_matrix(rotation).as_quat())


def axis_angle(quaternion: Sequence[float] | np.ndarray) -> np.ndarray:
    """Axis times angle [3] rad of a quaternion (x y z w) by its own sign: 0 to 2 pi long.

    As robosuite's `quat2axisangle`, and with it LIBERO and OpenVLA-OFT, has it; a rotation vector
    ends at pi instead, where a hand that points down jumps from one side to the other.
    """
    x, y, z, w = quaternion
    sine = math.hypot(x, y, z)
    factor = 2 * math.atan2(sine, w) / sine if sine > 1e-9 else 0.0
    return np.array([x, y, z]) * factor


@dataclass(frozen=True)
class StateLayout:
    """Which numbers the state vector contains, in which order.

    parts: of "position" (x y z of the end effector, m), "axis_angle" (LIBERO's, up to 2 pi),
        "rotvec" (up to pi), "rpy" (its rotation, rad), "quaternion" (x y z w), "joints"
        (positions of `joints`, rad or m; fingers are joints too).
    """

    parts: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()

    def __post_init__(self):
        for part in self.parts:
            if part != "joints" and part not in POSE_PARTS:
                raise VlaError(
                    f"unknown part {part!r} of the state",
                    f"use {', '.join(POSE_PARTS)} or joints",
                )
        if self.needs_joints != bool(self.joints):
            raise VlaError(
                f"the state {'has' if self.needs_joints else 'has no'} part 'joints', "
                f"{len(self.joints)} joints are named",
                "name the joints, in the order the model was trained with",
            )

    @property
    def needs_pose(self) -> bool:
        return any(p in POSE_PARTS for p in self.parts)

    @property
    def needs_joints(self) -> bool:
        return "joints" in self.parts

    def __len__(self) -> int:
        return sum(POSE_PARTS.get(p, len(self.joints)) for p in self.parts)

    def read(
        self,
        pose: tuple[Sequence[float], Sequence[float]] | None = None,
        joints: Mapping[str, float] | None = None,
        sign: QuaternionSign | None = None,
    ) -> np.ndarray:
        """float32 [S]. pose: position (m) and quaternion (x y z w); joints: position by name.

        sign: keeps axis angles continuous from one call to the next.
        """
        if self.needs_pose and pose is None:
            raise ObservationError("the measured pose is missing", "check who publishes it")
        position, measured = pose or ((), ())
        turned = any(p in ROTATIONS for p in self.parts)
        quaternion = _checked(measured) if turned else np.zeros(4)
        if "axis_angle" in self.parts:
            signed = (sign or QuaternionSign())(quaternion)
        values: list[float] = []
        for part in self.parts:
            if part == "joints":
                known = joints or {}
                lacking = [n for n in self.joints if n not in known]
                if lacking:
                    raise ObservationError(
                        f"the joint states lack {', '.join(lacking)}",
                        "check joint_names, and who publishes the joint states",
                    )
                values.extend(known[n] for n in self.joints)
            elif part == "position":
                values.extend(position)
            elif part == "axis_angle":
                values.extend(axis_angle(signed))
            else:
                values.extend(_rotation(quaternion, part))
        state = np.array(values, np.float32)
        if not np.isfinite(state).all():
            raise ObservationError(
                "the state contains numbers that are not finite", "fix its source"
            )
        return state

    def seam(self, quaternion: Sequence[float]) -> str:
        """Describes where a rotation's numbers may jump; "": nowhere."""
        if not ROTATIONS & set(self.parts):
            return ""  # nor need it be a rotation
        rotation = Rotation.from_quat(quaternion)
        angle = rotation.magnitude()
        near_pi = math.pi - angle < SEAM
        roll, pitch, yaw = np.abs(rotation.as_euler("xyz")) if "rpy" in self.parts else (0, 0, 0)
        if "rotvec" in self.parts and near_pi:
            return "the rotation vector is near pi, where it changes sign (axis_angle does not)"
        if "rpy" in self.parts and (max(roll, yaw) > math.pi - SEAM or pitch > math.pi / 2 - SEAM):
            return "roll, pitch or yaw is where it jumps"
        if "quaternion" in self.parts and near_pi:
            return "the quaternion's w is near 0, where many drivers change its sign"
        return ""


def _checked(quaternion: Sequence[float]) -> np.ndarray:
    q = np.asarray(quaternion, np.float64)
    length = np.linalg.norm(q)
    if not 0.99 < length < 1.01:
        raise ObservationError("the measured rotation is not a unit quaternion", "fix its source")
    return q / length


def _rotation(quaternion: np.ndarray, part: str) -> np.ndarray:
    rotation = Rotation.from_quat(quaternion)
    if part == "rotvec":
        return rotation.as_rotvec()
    return rotation.as_euler("xyz") if part == "rpy" else quaternion
