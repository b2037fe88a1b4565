"""What moves the simulated rover and what it measures: cmd_vel in, odometry and scans out.

The rules are diff_drive_controller's, in `base_controller`; here are their messages.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from geometry_msgs.msg import TwistStamped
from rclpy.time import Time
from sensor_msgs.msg import LaserScan

from vla_inference.errors import VlaError
from vla_inference.ros.qos import CHUNK, COMMAND, IMAGE_OUTPUT
from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.envs.rover.world import BEAMS, RADIUS, RANGE, SEPARATION, RoverWorld
from vla_sim_bridge.ros.robot.base_controller import BaseController, Odometry
from vla_sim_bridge.ros.robot.controller_emulation import Heard
from vla_sim_bridge.ros.robot.odometry_messages import odometry_message, odometry_type
from vla_sim_bridge.ros.robot.robot_inputs import Move, RobotInput

if TYPE_CHECKING:
    from vla_sim_bridge.ros.robot.robot_executor import RobotDrive


class BaseInput(RobotInput):
    """base/cmd_vel (TwistStamped) in; odom and base/scan out."""

    def __init__(self, drive: RobotDrive):
        super().__init__(drive)
        self._heard = Heard()
        self._odom = self.node.create_publisher(odometry_type(), "odom", COMMAND)
        self._scan = self.node.create_publisher(LaserScan, "base/scan", IMAGE_OUTPUT)
        self._begin()

    @property
    def heard(self) -> Heard:
        return self._heard

    def listen(self) -> None:
        take = self.drive.episodes.guard(self._on_velocity)
        self.node.create_subscription(TwistStamped, "base/cmd_vel", take, CHUNK)

    def reset(self) -> None:
        self._rover()  # an arm's task is refused before it is played
        self._begin()

    def _begin(self) -> None:
        self.controller = BaseController(RADIUS, SEPARATION, heard=self._heard)
        self.odometry = Odometry(RADIUS, SEPARATION)

    def _on_velocity(self, msg: TwistStamped) -> None:
        stamp = self.stamp(msg)
        if stamp is None or not self.drive.operator.ready:
            return  # a halt from before the rover was put elsewhere, say
        twist, now = msg.twist, 1e-9 * self.drive.now()
        if self.controller.receive(twist.linear.x, twist.angular.z, 1e-9 * stamp, now):
            self.drive.commanded(stamp)

    def tell_where(self, now: int) -> None:
        self._odom.publish(odometry_message(self.odometry, now))
        scan = LaserScan(range_min=0.02, range_max=RANGE, angle_min=-math.pi)
        scan.header.stamp, scan.header.frame_id = Time(nanoseconds=now).to_msg(), "base_link"
        scan.angle_increment = 2 * math.pi / BEAMS
        scan.angle_max = math.pi - scan.angle_increment
        scan.ranges = self._rover().lidar().tolist()
        self._scan.publish(scan)

    def move(self, now: float, period: float) -> tuple[Move, bool]:
        rover = self._rover()
        left, right = self.controller.wheels(now)

        def turn() -> StepResult:
            result = rover.turn_wheels(left, right)
            self.odometry.update(*rover.wheels(), period)
            return result

        return turn, self.controller.holds(now)

    def _rover(self) -> RoverWorld:
        sim = self.drive.episodes.sim
        if not isinstance(sim, RoverWorld):
            raise VlaError(
                f"{sim.task.name} is not driven by a base's velocity",
                "set driven_by to chunks or twist, or name a task such as Rover_D0",
            )
        return sim
