"""Joint outputs for ros2_control's forward controllers: positions or velocities as an array."""

from __future__ import annotations

from dataclasses import dataclass

from builtin_interfaces.msg import Time
from std_msgs.msg import Float64MultiArray

from vla_inference.control.parts.joints import JointTargets
from vla_inference.options import option
from vla_inference.ros.command.outputs.base import (
    JOINT_PART,
    JOINT_TARGETS,
    JOINTS,
    JointCommand,
    TopicOutput,
    Value,
)


@dataclass(frozen=True, kw_only=True)
class PositionsConfig:
    publish_positions: bool = option(
        False, "publish joint_positions (std_msgs/Float64MultiArray) in the order of the joints"
    )


class JointPositionsOutput(TopicOutput):
    takes, drives = JOINTS, JOINT_PART
    topic, message, CONFIG = "joint_positions", Float64MultiArray, PositionsConfig

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_positions")

    def send(self, command: JointCommand, stamp: Time, in_tool: bool = False) -> None:
        self.publisher.publish(Float64MultiArray(data=list(command.positions)))


class JointVelocitiesOutput(TopicOutput):
    takes, drives = JOINT_TARGETS, JOINT_PART
    topic, message, by_velocity = "joint_velocities", Float64MultiArray, True

    def send(self, command: JointTargets, stamp: Time, in_tool: bool = False) -> None:
        self.publisher.publish(Float64MultiArray(data=list(command.velocities)))
