"""Simulated robots without episodes: their controllers, topics and measured states.

A scene is moved by its controllers alone, as a real robot is: `TwoArmScene` by each arm's joints,
`BaseScene` by cmd_vel.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from geometry_msgs.msg import Twist, TwistStamped
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vla_inference.errors import VlaError
from vla_inference.ros.qos import CHUNK, COMMAND
from vla_inference.ros.stamps import stamp_ns
from vla_sim_bridge.envs.diff_drive import WHEEL_RADIUS, WHEEL_SEPARATION, DiffDrive
from vla_sim_bridge.envs.joint_tracking import held
from vla_sim_bridge.envs.two_arms import ARMS, TwoArms
from vla_sim_bridge.ros.robot.base_controller import BaseController, Odometry
from vla_sim_bridge.ros.robot.controller_emulation import Heard
from vla_sim_bridge.ros.robot.joint_controllers import (
    ForwardController,
    JointController,
    TrajectoryController,
    make_controller,
)
from vla_sim_bridge.ros.robot.odometry_messages import odometry_message, odometry_type
from vla_sim_bridge.ros.robot.robot_inputs import JOINTS, is_open, joint_state, trajectory_points


class Scene(Protocol):
    @property
    def world(self) -> TwoArms | DiffDrive: ...

    def step(self, now: int, period: float) -> None:
        """One control period [s] that begins at `now` [ns] of the node's clock."""

    def publish(self, now: int) -> None:
        """What is measured at `now` [ns]."""

    def heard(self) -> dict[str, Heard]:
        """What the controllers received, by part."""


class TwoArmScene:
    """right_arm/joint_positions and so on, as `output` says, and right_gripper/gripper in;
    right_arm/joint_states out; the left one's alike."""

    def __init__(self, node: Node, output: str, width: int, height: int):
        self.node, self.output = node, output
        self.world = TwoArms(width, height)
        self.controllers: dict[str, JointController] = {}
        self.grippers: dict[str, float] = {}
        self._states: dict[str, Publisher] = {}
        for arm in ARMS:
            self._listen(arm)

    def _listen(self, arm: str) -> None:
        names = joint_names(arm)
        controller = self.controllers[arm] = make_controller(self.output, names)
        self.grippers[arm] = 1.0
        self._states[arm] = self.node.create_publisher(JointState, f"{arm}/joint_states", COMMAND)

        def gripper(msg: Float64MultiArray) -> None:
            told = is_open(msg)
            self.grippers[arm] = self.grippers[arm] if told is None else told

        def trajectory(msg: JointTrajectory) -> None:
            if isinstance(controller, TrajectoryController):
                stamp = stamp_ns(msg.header.stamp, "the command")
                points = trajectory_points(msg)
                controller.receive(msg.joint_names, points, 1e-9 * stamp, self._now())

        def numbers(msg: Float64MultiArray) -> None:
            if isinstance(controller, ForwardController):
                controller.receive(msg.data, self._now())

        hear, topic = self.node.create_subscription, f"{arm}/{self.output}"
        hear(Float64MultiArray, f"{gripper_of(arm)}/gripper", gripper, COMMAND)
        if self.output == "joint_trajectory":
            hear(JointTrajectory, topic, trajectory, CHUNK)
        else:
            hear(Float64MultiArray, topic, numbers, CHUNK)

    def _now(self) -> float:
        return 1e-9 * self.node.get_clock().now().nanoseconds

    def step(self, now: int, period: float) -> None:
        references = {}
        for arm, (positions, _) in self.world.joints().items():
            told = self.controllers[arm].reference(positions, 1e-9 * now, period)
            references[arm] = told or held(positions)
        self.world.step(references, self.grippers)

    def publish(self, now: int) -> None:
        for arm, (positions, velocities) in self.world.joints().items():
            self._states[arm].publish(joint_state(joint_names(arm), positions, velocities, now))

    def heard(self) -> dict[str, Heard]:
        return {arm: c.heard for arm, c in self.controllers.items()}


class BaseScene:
    """base/cmd_vel in, odom (nav_msgs/Odometry, from the wheels) out."""

    def __init__(self, node: Node, stamped: bool, width: int, height: int):
        self.node = node
        self.world = DiffDrive(width, height)
        self.controller = BaseController(WHEEL_RADIUS, WHEEL_SEPARATION)
        self.odometry = Odometry(WHEEL_RADIUS, WHEEL_SEPARATION)
        kind = TwistStamped if stamped else Twist
        node.create_subscription(kind, "base/cmd_vel", self._on_velocity, CHUNK)
        self._odom = node.create_publisher(odometry_type(), "odom", COMMAND)

    def _on_velocity(self, msg: Twist | TwistStamped) -> None:
        stamp = 0
        if isinstance(msg, TwistStamped):
            stamp, msg = stamp_ns(msg.header.stamp, "the command"), msg.twist
        now = 1e-9 * self.node.get_clock().now().nanoseconds
        self.controller.receive(msg.linear.x, msg.angular.z, 1e-9 * stamp, now)

    def step(self, now: int, period: float) -> None:
        self.world.step(*self.controller.wheels(1e-9 * now), period)
        self.odometry.update(*self.world.wheels(), period)

    def publish(self, now: int) -> None:
        self._odom.publish(odometry_message(self.odometry, now))

    def heard(self) -> dict[str, Heard]:
        return {"base": self.controller.heard}


def joint_names(arm: str) -> tuple[str, ...]:
    """left_arm -> left_joint1 ... left_joint7"""
    return tuple(arm.replace("arm", joint) for joint in JOINTS)


def gripper_of(arm: str) -> str:
    return arm.replace("arm", "gripper")


def image_of(scene: Scene) -> np.ndarray:
    """uint8 [H, W, 3], of the scene's camera."""
    return scene.world.render(scene.world.camera)


def make_scene(node: Node, name: str, output: str, stamped: bool, size: tuple[int, int]) -> Scene:
    """size: width and height of the images, pixels."""
    if name == "two_arms":
        return TwoArmScene(node, output, *size)
    if name == "base":
        return BaseScene(node, stamped, *size)
    raise VlaError(f"there is no scene {name!r}", "use two_arms or base")
