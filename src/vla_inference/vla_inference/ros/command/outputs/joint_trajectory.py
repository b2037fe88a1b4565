"""Joint output: single-point trajectories for joint_trajectory_controller."""

from __future__ import annotations

from dataclasses import dataclass

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_inference.options import option
from vla_inference.ros.command.outputs.base import JOINTS, JointCommand, TopicOutput, Value


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    publish_trajectory: bool = option(
        True, "publish joint_trajectory (trajectory_msgs/JointTrajectory), one point each"
    )


class JointTrajectoryOutput(TopicOutput):
    takes = JOINTS
    topic, message = "joint_trajectory", JointTrajectory
    CONFIG = TrajectoryConfig

    def __init__(self, node: Node, value: Value):
        super().__init__(node, value)
        self.lead = Duration(seconds=value("time_from_start")).to_msg()

    @classmethod
    def on(cls, value: Value) -> bool:
        return value("publish_trajectory")

    def send(self, command: JointCommand, stamp: Time, in_tool: bool = False) -> None:
        # No stamp: at once. No velocities: a last point that moves is refused (Jazzy's JTC).
        positions = list(command.positions)
        point = JointTrajectoryPoint(positions=positions, time_from_start=self.lead)
        self.publisher.publish(JointTrajectory(joint_names=list(command.names), points=[point]))
