"""Action client for grippers: sends goals on change and cancels them on a stop.

control_msgs is asked for only here: GripperCommand (Humble's gripper_action_controller) or
ParallelGripperCommand (Jazzy's parallel_gripper_action_controller).
"""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from vla_inference.errors import VlaError
from vla_inference.ros.command.outputs.goals import Goals

PARALLEL, PLAIN = "ParallelGripperCommand", "GripperCommand"
TYPES = (PARALLEL, PLAIN)


def action_type(kind: str) -> Any:
    """The action's class; raises VlaError if it is unknown or not installed."""
    if kind not in TYPES:
        raise VlaError(f"unknown gripper_action_type {kind!r}", f"use {' or '.join(TYPES)}")
    try:
        import control_msgs.action
    except ImportError as error:
        raise VlaError(
            f"control_msgs cannot be imported ({error})",
            "apt install ros-$ROS_DISTRO-control-msgs, or leave gripper_action empty",
        ) from None
    if not hasattr(control_msgs.action, kind):
        raise VlaError(f"this control_msgs has no {kind}", f"use {PLAIN}")
    return getattr(control_msgs.action, kind)


class GripperAction(Goals):
    """`move` sends a goal, which replaces the current one."""

    def __init__(self, node: Node, name: str, kind: str, joint: str, effort: float):
        if kind == PARALLEL and not joint:
            raise VlaError("gripper_joint is empty", f"{PARALLEL} needs the joint's name")
        self.kind, self.joint, self.effort = kind, joint, effort
        self.type = action_type(kind)
        super().__init__(node, ActionClient(node, self.type, name), name, "the gripper's action")

    def goal(self, position: float) -> Any:
        """position: of the joint, m or rad."""
        goal = self.type.Goal()
        if self.kind == PARALLEL:
            goal.command.name, goal.command.position = [self.joint], [position]
            if self.effort:
                goal.command.effort = [self.effort]
        else:
            goal.command.position, goal.command.max_effort = position, self.effort
        return goal

    def move(self, position: float) -> None:
        self.send(self.goal(position))
