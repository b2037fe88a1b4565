"""End-effector outputs: twists or target poses as topics."""

from __future__ import annotations

from dataclasses import dataclass

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node

from vla_inference.control import Command
from vla_inference.options import option
from vla_inference.ros.command.outputs.base import EEF, TopicOutput, Value
from vla_inference.ros.geometry import command_to_twist, pose_to_msg


@dataclass(frozen=True, kw_only=True)
class TwistConfig:
    publish_twist: bool = option(
        True, "publish delta_twist (geometry_msgs/TwistStamped): delta / dt"
    )


class TwistOutput(TopicOutput):
    topic, message, CONFIG = "delta_twist", TwistStamped, TwistConfig
    drives = EEF

    def __init__(self, node: Node, value: Value, part: str = ""):
        super().__init__(node, value, part)
        self.frames = value("base_frame"), value("tool_frame")

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_twist")

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        self.publisher.publish(command_to_twist(command, stamp, self.frames[in_tool]))


@dataclass(frozen=True, kw_only=True)
class PoseConfig:
    publish_pose: bool = option(False, "publish target_pose (PoseStamped); needs current_pose")


class PoseOutput(TopicOutput):
    topic, message, CONFIG = "target_pose", PoseStamped, PoseConfig
    drives, needs_pose = EEF, True

    def __init__(self, node: Node, value: Value, part: str = ""):
        super().__init__(node, value, part)
        self.frame = value("base_frame")

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_pose")

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        if command.target is not None:
            self.publisher.publish(pose_to_msg(command.target, stamp, self.frame))
