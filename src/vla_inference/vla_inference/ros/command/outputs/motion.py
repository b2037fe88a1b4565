"""End-effector outputs: twists or target poses as topics."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.node import Node

from vla_inference.control import Command
from vla_inference.ros.command.messages import command_to_twist, pose_to_msg
from vla_inference.ros.command.outputs.base import TopicOutput, Value


class TwistOutput(TopicOutput):
    topic, message = "delta_twist", TwistStamped
    PARAMETERS = {
        "publish_twist": (True, "publish delta_twist (geometry_msgs/TwistStamped)", None),
    }

    def __init__(self, node: Node, value: Value):
        super().__init__(node, value)
        self.frames = value("base_frame"), value("tool_frame")

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_twist")

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        self.publisher.publish(command_to_twist(command, stamp, self.frames[in_tool]))


class PoseOutput(TopicOutput):
    topic, message, needs_pose = "target_pose", PoseStamped, True
    PARAMETERS = {
        "publish_pose": (False, "publish target_pose (PoseStamped); needs current_pose", None),
    }

    def __init__(self, node: Node, value: Value):
        super().__init__(node, value)
        self.frame = value("base_frame")

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_pose")

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        if command.target is not None:
            self.publisher.publish(pose_to_msg(command.target, stamp, self.frame))
