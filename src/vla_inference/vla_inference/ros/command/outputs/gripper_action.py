"""Action client for grippers: sends goals on change and cancels them on a stop.

control_msgs is asked for only here: GripperCommand (Humble's gripper_action_controller) or
ParallelGripperCommand (Jazzy's parallel_gripper_action_controller).
"""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from vla_inference.errors import VlaError

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


class GripperAction:
    """`move` sends a goal, which replaces the current one.

    remark: what went wrong last, in words; empty: nothing.
    """

    def __init__(self, node: Node, name: str, kind: str, joint: str, effort: float):
        if kind == PARALLEL and not joint:
            raise VlaError("gripper_joint is empty", f"{PARALLEL} needs the joint's name")
        self.name, self.kind, self.joint, self.effort = name, kind, joint, effort
        self.type = action_type(kind)
        self.client = ActionClient(node, self.type, name)
        self._node = node
        self.remark = ""
        self.sent = self.rejected = 0
        self._goal = None  # handle of the goal under way
        self._newest = self._stopped = 0  # numbers of goals

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

    def missing(self) -> str:
        """Why there is no gripper action server; empty: there is one."""
        there = self.client.server_is_ready()
        return "" if there else f"no server of the gripper's action {self.name}; start it"

    def others(self) -> int:
        """Number of other clients of the action; 0 on Humble, which cannot count them."""
        count = getattr(self._node, "count_clients", None)
        return max(0, count(f"{self.name}/_action/send_goal") - 1) if count else 0

    def move(self, position: float) -> None:
        self.remark = self.missing()
        if self.remark:
            return
        self.sent += 1
        self._newest += 1
        number = self._newest
        future = self.client.send_goal_async(self.goal(position))
        future.add_done_callback(lambda f: self._answered(f.result(), number))

    def _answered(self, goal, number: int) -> None:
        if not goal.accepted:
            self.rejected += 1
            self.remark = f"the gripper's action {self.name} rejected a goal"
            return
        self.remark = ""
        if self._stopped < number == self._newest:
            self._goal = goal
            goal.get_result_async().add_done_callback(lambda _: self._ended(number))
        elif self._stopped >= number:
            goal.cancel_goal_async()  # the stop came before its acceptance

    def _ended(self, number: int) -> None:
        if number == self._newest:
            self._goal = None

    def stop(self) -> None:
        """Cancels the current goal."""
        self._stopped = self._newest
        goal, self._goal = self._goal, None
        if goal is not None:
            goal.cancel_goal_async()

    def close(self) -> None:
        self.client.destroy()
