"""What both IK nodes have: the arm's parameters, joint states, and what was refused last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import JointState

from vla_inference.control.arm import Arm
from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros import qos
from vla_inference.ros.diagnostics import OK, WARN, Report
from vla_inference.ros.lifecycle import ManagedNode


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    robot: str = option("", "path of the arm's URDF or MJCF file")
    base_frame: str = option(
        "base_link", "link of the arm: base frame of targets, deltas and current_pose"
    )
    tool_frame: str = option(
        "tool0", "link, body or site to move; its axes may be those of deltas"
    )
    damping: float = option(
        0.01,
        "damping of joint motion: smooths singularities at a cost in accuracy",
        low=1e-4,
        high=10,
    )
    rotation_length: float = option(
        0.2, "length that weighs as much as a radian of rotation [m]", low=1e-3, high=10
    )

    def arm(self) -> Arm:
        if not self.robot:
            raise VlaError("parameter 'robot' is empty", "set it to the path of a URDF or MJCF")
        return Arm(self.robot, self.tool_frame, self.base_frame)


class ArmNode(ManagedNode):
    def __init__(self, name: str, *configs: type, **kwargs: Any):
        super().__init__(name, *configs, **kwargs)
        self._sent, self._remark = 0, ""
        joints = qos.overridable(qos.STATE_INPUT)
        self.create_subscription(JointState, "joint_states", self._on_joints, **joints)

    def _on_joints(self, msg: JointState) -> None:
        raise NotImplementedError

    def _refused(self, reason: str) -> None:
        self._remark = reason
        self.get_logger().warning(f"refused: {reason}", throttle_duration_sec=5.0)

    def callback_refused(self, where: str, reason: str) -> None:
        self._refused(reason)

    def report(self, values: Mapping[str, Any]) -> Report:
        if self._remark:
            return WARN, f"refused: {self._remark}", values
        return OK, self.state, values
