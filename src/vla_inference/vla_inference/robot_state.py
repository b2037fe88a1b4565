"""The numbers of the robot's state that a model was trained with, from what a robot publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.errors import ObservationError, VlaError

# part -> numbers; "joints" has as many as there are names
POSE_PARTS = {"position": 3, "rotvec": 3, "rpy": 3, "quaternion": 4}


@dataclass(frozen=True)
class StateLayout:
    """Which numbers, in which order.

    parts: of "position" (x y z of the end effector, m), "rotvec", "rpy" (its rotation, rad),
        "quaternion" (x y z w), "joints" (positions of `joints`, rad or m; fingers are joints too).
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
    ) -> np.ndarray:
        """float32 [S]. pose: position (m) and quaternion (x y z w); joints: position by name."""
        values: list[float] = []
        for part in self.parts:
            if part == "joints":
                lacking = [n for n in self.joints if n not in (joints or {})]
                if lacking:
                    raise ObservationError(
                        f"the joint states lack {', '.join(lacking)}",
                        "check joint_names, and who publishes the joint states",
                    )
                values.extend(joints[n] for n in self.joints)
            elif part == "position":
                values.extend(pose[0])
            else:
                values.extend(_rotation(pose[1], part))
        state = np.array(values, np.float32)
        if not np.isfinite(state).all():
            raise ObservationError(
                "the state holds numbers that are not finite", "mend its source"
            )
        return state


def _rotation(quaternion: Sequence[float], part: str) -> Sequence[float]:
    if not 0.99 < np.linalg.norm(quaternion) < 1.01:
        raise ObservationError("the measured rotation is no unit quaternion", "mend its source")
    rotation = Rotation.from_quat(quaternion)
    if part == "rotvec":
        return rotation.as_rotvec()
    return rotation.as_euler("xyz") if part == "rpy" else rotation.as_quat()
