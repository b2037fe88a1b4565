"""Joint output: single-point trajectories for joint_trajectory_controller."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_inference.ros.command.outputs.base import JOINTS, JointCommand, TopicOutput, Value


class JointTrajectoryOutput(TopicOutput):
    takes = JOINTS
    topic, message = "joint_trajectory", JointTrajectory
    PARAMETERS = {
        "publish_trajectory": (True, "publish joint_trajectory (trajectory_msgs)", None),
    }

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
