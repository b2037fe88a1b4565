"""Outputs that another package brings, one for the command node and one for the IK node."""

from __future__ import annotations

import math
from dataclasses import dataclass

from std_msgs.msg import Float64, Float64MultiArray

from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros.command.outputs.base import JOINTS, TopicOutput


@dataclass(frozen=True)
class SpeedConfig:
    publish_speed: bool = option(False, "publish speed (std_msgs/Float64)")


class SpeedOutput(TopicOutput):
    """Speed of the end effector, as a number."""

    topic, message = "speed", Float64
    CONFIG = SpeedConfig

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


@dataclass(frozen=True)
class BrokenConfig:
    publish_broken: bool = option(False, "publish nothing")


class BrokenOutput(SpeedOutput):
    """Fails at whatever it is to send."""

    CONFIG = BrokenConfig

    @classmethod
    def on(cls, value):
        return value("publish_broken")

    def send(self, command, stamp, in_tool=False):
        raise VlaError("the cable is out", "plug it in")


@dataclass(frozen=True)
class AnglesConfig:
    publish_angles: bool = option(False, "publish angles (Float64MultiArray)")


class AnglesOutput(TopicOutput):
    """Joint positions as the controllers of ros2_control that only forward them take them."""

    takes = JOINTS
    topic, message = "angles", Float64MultiArray
    CONFIG = AnglesConfig

    @classmethod
    def on(cls, value):
        return value("publish_angles")

    def send(self, command, stamp, in_tool=False):
        self.publisher.publish(Float64MultiArray(data=list(command.positions)))
