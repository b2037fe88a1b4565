"""Converts a chunk of end-effector deltas to one of joint positions, by differential IK.

For models that speak of the end effector and arms that take joints. It decides nothing about
safety: limits and watchdogs are the command node's, which executes what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.control.arm import Arm
from vla_inference.control.commands import arm_and_gripper, chunk_deltas
from vla_inference.control.ik import IkSettings, joint_step
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec, joint_part

KINDS = ("joint_position", "joint_delta")
PASSES = 3  # of differential IK per step of a chunk


@dataclass(frozen=True)
class ChunkIk:
    """arm: with the tool frame that the deltas are of.

    base, tool: the frames whose axes deltas may be in.
    kind: of the joints' numbers, one of KINDS.
    damping, length: see `IkSettings`.
    follow: share of a delta that the robot covers within its step, 0 to 1: each step starts where
        the one before has led to.
    """

    arm: Arm
    base: str = "base_link"
    tool: str = "tool0"
    kind: str = "joint_position"
    damping: float = 0.01
    length: float = 0.2
    follow: float = 1.0

    def convert(self, chunk: ActionChunk, joints: np.ndarray) -> ActionChunk:
        """The chunk with joints in place of the end effector. joints: where they are when it
        begins [n] rad."""
        part, gripper = arm_and_gripper(chunk.spec)
        if part.frame not in (self.base, self.tool):
            raise VlaError(
                f"the deltas are in frame {part.frame!r}",
                f"have them in {self.base!r} or {self.tool!r}, or set base_frame or tool_frame",
            )
        ways, grippers = chunk_deltas(chunk)
        numbers = self._joints(joints, ways, part.frame == self.tool != self.base)
        parts = [joint_part(part.name, self.arm.names, self.kind)]
        if gripper is not None and grippers is not None:
            parts.append(gripper)
            numbers = np.column_stack([numbers, grippers])
        spec = ActionSpec(tuple(parts), chunk.spec.dt)
        return replace(chunk, actions=numbers, spec=spec, tokens=None)

    def _joints(self, joints: np.ndarray, ways: np.ndarray, in_tool: bool) -> np.ndarray:
        """Positions or deltas [T, n] rad of ways [T, 6] (m, rotation vector) of the tool."""
        at, found = np.array(joints, float), []
        for way in ways:
            if in_tool:
                way = (way.reshape(2, 3) @ self.arm.pose(at)[:3, :3].T).ravel()
            delta = self._solve(at, way) - at
            found.append(at + delta if self.kind == "joint_position" else delta)
            at = at + self.follow * delta
        return np.array(found).reshape(len(ways), len(self.arm))

    def _solve(self, joints: np.ndarray, way: np.ndarray) -> np.ndarray:
        """Joints [n] rad that `way` leads to: damping and curvature leave a rest of each pass,
        which the next goes."""
        settings = IkSettings(damping=self.damping, length=self.length)
        start = self.arm.pose(joints)
        there = start[:3, 3] + way[:3]
        turned = Rotation.from_rotvec(way[3:]).as_matrix() @ start[:3, :3]
        for _ in range(PASSES):
            joints = joints + joint_step(self.arm, joints, way, settings)[0]
            pose = self.arm.pose(joints)
            turn = Rotation.from_matrix(turned @ pose[:3, :3].T).as_rotvec()
            way = np.concatenate([there - pose[:3, 3], turn])
        return joints
