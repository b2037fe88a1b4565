"""Joint output: single-point trajectories on joint_trajectory_controller's topic."""

from __future__ import annotations

from dataclasses import dataclass

from builtin_interfaces.msg import Duration as DurationMsg
from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_inference.control.parts.joints import JointTargets
from vla_inference.options import option
from vla_inference.ros.command.outputs.base import (
    JOINT_PART,
    JOINTS,
    JointCommand,
    TopicOutput,
    Value,
)


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    publish_trajectory: bool = option(
        True, "publish joint_trajectory (trajectory_msgs/JointTrajectory), one point each"
    )


@dataclass(frozen=True, kw_only=True)
class LeadConfig:
    time_from_start: float = option(
        0.1,
        "time_from_start of the trajectory point [s], over which the controller interpolates",
        low=1e-3,
        high=10,
    )


def trajectory(command: JointCommand | JointTargets, lead: DurationMsg) -> JointTrajectory:
    """Of one point, to be reached after `lead`."""
    # No stamp: at once. No velocities: a last point that moves is refused (Jazzy's JTC).
    positions = list(command.positions)
    point = JointTrajectoryPoint(positions=positions, time_from_start=lead)
    return JointTrajectory(joint_names=list(command.names), points=[point])


class JointTrajectoryOutput(TopicOutput):
    takes, drives = JOINTS, JOINT_PART
    topic, message = "joint_trajectory", JointTrajectory
    CONFIG, PART_CONFIG = TrajectoryConfig, LeadConfig

    def __init__(self, node: Node, value: Value, part: str = ""):
        super().__init__(node, value, part)
        self.lead = Duration(seconds=value("time_from_start")).to_msg()

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_trajectory")

    def send(self, command: JointCommand, stamp: Time, in_tool: bool = False) -> None:
        self.publisher.publish(trajectory(command, self.lead))
