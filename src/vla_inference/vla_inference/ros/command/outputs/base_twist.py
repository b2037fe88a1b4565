"""Outputs of a mobile base: its velocity as Twist or TwistStamped (diff_drive_controller)."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node

from vla_inference.control import Command
from vla_inference.ros.command.outputs.base import BASE, BASE_PART, TopicOutput, Value
from vla_inference.ros.geometry import command_to_twist


class BaseTwistOutput(TopicOutput):
    takes, drives = BASE, BASE_PART
    topic, message = "cmd_vel", Twist

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        self.publisher.publish(command_to_twist(command, stamp, "").twist)


class BaseTwistStampedOutput(TopicOutput):
    takes, drives = BASE, BASE_PART
    topic, message = "cmd_vel", TwistStamped

    def __init__(self, node: Node, value: Value, part: str = ""):
        super().__init__(node, value, part)
        self.frame = value("frame")

    def send(self, command: Command, stamp: Time, in_tool: bool = False) -> None:
        self.publisher.publish(command_to_twist(command, stamp, self.frame))
