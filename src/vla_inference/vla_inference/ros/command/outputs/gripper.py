"""Gripper outputs, sent on change: as a topic or as an action."""

from __future__ import annotations

from dataclasses import dataclass

from builtin_interfaces.msg import Time
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from vla_inference.control import Command
from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros.command.outputs.base import GRIPPER, Output, TopicOutput, Value
from vla_inference.ros.command.outputs.gripper_action import PARALLEL, TYPES, GripperAction


@dataclass(frozen=True, kw_only=True)
class Positions:
    gripper_open: float = option(1.0, "value published for open", low=-1e6, high=1e6)
    gripper_closed: float = option(0.0, "value published for closed", low=-1e6, high=1e6)


@dataclass(frozen=True, kw_only=True)
class TopicConfig(Positions):
    publish_gripper: bool = option(True, "publish gripper (std_msgs/Float64MultiArray) on change")


@dataclass(frozen=True, kw_only=True)
class ActionConfig(Positions):
    gripper_action: str = option(
        "", "name of the gripper's action, such as /gripper_controller/gripper_cmd; empty: none"
    )
    gripper_action_type: str = option(
        PARALLEL, "action type of control_msgs; Humble has only GripperCommand", choices=TYPES
    )
    gripper_joint: str = option("", "joint name in ParallelGripperCommand")
    gripper_effort: float = option(
        0.0, "maximum effort in an action's goal [N or Nm]", low=0, high=1e4
    )


def position(command: Command, value: Value) -> float | None:
    """The gripper position of a command; None: unchanged."""
    if command.gripper is None:
        return None
    return value("gripper_open") if round(command.gripper) else value("gripper_closed")


class GripperTopicOutput(TopicOutput):
    topic, message, CONFIG = "gripper", Float64MultiArray, TopicConfig
    drives, PART_CONFIG = GRIPPER, Positions

    def __init__(self, node: Node, value: Value, part: str = ""):
        super().__init__(node, value, part)
        self.value = value

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_gripper")

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        wanted = position(command, self.value)
        if wanted is not None:
            self.publisher.publish(Float64MultiArray(data=[wanted]))


class GripperActionOutput(Output):
    CONFIG = PART_CONFIG = ActionConfig
    drives = GRIPPER

    def __init__(self, node: Node, value: Value, part: str = ""):
        if part and not value("gripper_action"):
            raise VlaError(f"parameter '{part}.gripper_action' is empty", "name the action")
        names = ("gripper_action", "gripper_action_type", "gripper_joint", "gripper_effort")
        self.value = value
        self.action = GripperAction(node, *map(value, names))

    @classmethod
    def on(cls, value: Value) -> bool:
        return bool(value("gripper_action"))

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
