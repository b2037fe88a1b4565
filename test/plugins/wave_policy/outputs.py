"""Outputs that another package brings, one for the command node and one for the IK node."""

from __future__ import annotations

import math

from std_msgs.msg import Float64, Float64MultiArray

from vla_inference.errors import VlaError
from vla_inference.ros.command.outputs.base import JOINTS, TopicOutput


class SpeedOutput(TopicOutput):
    """How fast the end effector shall be, as a number."""

    topic, message = "speed", Float64
    PARAMETERS = {"publish_speed": (False, "publish speed (std_msgs/Float64)", None)}

    def __init__(self, node, value):
        super().__init__(node, value)
        self.stops = 0

    @classmethod
    def on(cls, value):
        return value("publish_speed")

    def told(self):
        return f"{super().told()}, in m/s"

    def send(self, command, stamp, in_tool=False):
        self.publisher.publish(Float64(data=math.hypot(*command.linear)))

    def stop(self):
        self.stops += 1


class BrokenOutput(SpeedOutput):
    """Fails at whatever it is to send."""

    PARAMETERS = {"publish_broken": (False, "publish nothing", None)}

    @classmethod
    def on(cls, value):
        return value("publish_broken")

    def send(self, command, stamp, in_tool=False):
        raise VlaError("the cable is out", "plug it in")


class AnglesOutput(TopicOutput):
    """Joint positions as the controllers of ros2_control that only forward them take them."""

    takes = JOINTS
    topic, message = "angles", Float64MultiArray
    PARAMETERS = {"publish_angles": (False, "publish angles (Float64MultiArray)", None)}

    @classmethod
    def on(cls, value):
        return value("publish_angles")

    def send(self, command, stamp, in_tool=False):
        self.publisher.publish(Float64MultiArray(data=list(command.positions)))
