"""Gripper outputs, sent on change: as a topic or as an action."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from vla_inference.control import Command
from vla_inference.ros.command.outputs.base import Output, TopicOutput, Value
from vla_inference.ros.command.outputs.gripper_action import PARALLEL, GripperAction
from vla_inference.ros.parameters import real

POSITIONS = {
    "gripper_open": (1.0, "what is published for open", real(-1e6, 1e6)),
    "gripper_closed": (0.0, "what is published for closed", real(-1e6, 1e6)),
}


def position(command: Command, value: Value) -> float | None:
    """What the command means to this gripper; None: nothing new."""
    if command.gripper is None:
        return None
    return value("gripper_open") if round(command.gripper) else value("gripper_closed")


class GripperTopicOutput(TopicOutput):
    topic, message = "gripper", Float64MultiArray
    PARAMETERS = {
        "publish_gripper": (True, "publish gripper (std_msgs/Float64MultiArray) on change", None),
        **POSITIONS,
    }

    def __init__(self, node: Node, value: Value):
        super().__init__(node, value)
        self.value = value

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_gripper")

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        wanted = position(command, self.value)
        if wanted is not None:
            self.publisher.publish(Float64MultiArray(data=[wanted]))


class GripperActionOutput(Output):
    PARAMETERS = {
        "gripper_action": ("", "name of the gripper's action; empty: none", None),
        "gripper_action_type": (
            PARALLEL,
            "ParallelGripperCommand or GripperCommand, of control_msgs",
            None,
        ),
        "gripper_joint": ("", "the joint that ParallelGripperCommand names", None),
        "gripper_effort": (
            0.0,
            "the most effort in an action's goal [N or Nm]",
            real(0.0, 1e4),
        ),
        **POSITIONS,
    }

    def __init__(self, node: Node, value: Value):
        names = ("gripper_action", "gripper_action_type", "gripper_joint", "gripper_effort")
        self.value = value
        self.action = GripperAction(node, *map(value, names))

    @classmethod
    def on(cls, value: Value) -> bool:
        return bool(value("gripper_action"))

    @property
    def remark(self) -> str:
        return self.action.remark

    def told(self) -> str:
        return f"{self.action.kind} on {self.action.name}"

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        wanted = position(command, self.value)
        if wanted is not None:
            self.action.move(wanted)

    def stop(self) -> None:
        self.action.stop()

    def missing(self) -> str:
        return self.action.missing()

    def others(self) -> str:
        n = self.action.others()
        return f"{n} more clients of the action {self.action.name}" if n else ""

    def close(self) -> None:
        self.action.close()
