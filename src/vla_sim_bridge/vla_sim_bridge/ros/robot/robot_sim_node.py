"""The robot simulation node: two arms or a mobile base, in real time, without episodes.

It stands for a robot: its controllers' topics, measured states and a camera. What it is told comes
from a command node; who decides is not its matter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rclpy.time import Time
from rclpy.timer import Timer
from sensor_msgs.msg import CameraInfo, Image

from vla_inference.options import option
from vla_inference.ros import qos
from vla_inference.ros.diagnostics import OK, Report
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.lifecycle import ManagedNode, configured, spin_node
from vla_sim_bridge.ros.robot.robot_inputs import JOINT_KINDS
from vla_sim_bridge.ros.robot.robot_scenes import Scene, image_of, make_scene
from vla_sim_bridge.ros.sim_topics import camera_info

PERIOD = 0.05  # s, simulated in each control period


@dataclass(frozen=True, kw_only=True)
class RobotSimConfig:
    scene: str = option(
        "two_arms",
        "the robot: two_arms (robosuite's TwoArmLift) or base (two driven wheels)",
        choices=("two_arms", "base"),
    )
    output: str = option(
        "joint_positions", "two_arms: what each arm is driven by", choices=JOINT_KINDS
    )
    stamped: bool = option(
        True, "base: cmd_vel is a TwistStamped, as diff_drive_controller has it; false: a Twist"
    )
    width: int = option(224, "width of the images [pixels]", low=16, high=4096, unit="pixels")
    height: int = option(224, "height of the images [pixels]", low=16, high=4096, unit="pixels")
    frame_rate: float = option(10.0, "frames per second [Hz]", low=0.1, high=20)
    real_time_factor: float = option(1.0, "simulated seconds per second", low=0.01, high=100)


class RobotSimNode(ManagedNode):
    TASK = "robot simulation"

    def __init__(self, name: str = "robot_sim", **kwargs):
        super().__init__(name, RobotSimConfig, **kwargs)
        self.scene: Scene | None = None
        self._timer: Timer | None = None
        self._steps = 0
        self._image = self.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
        self._info = self.create_publisher(CameraInfo, "camera_info", qos.IMAGE_OUTPUT)

    def do_configure(self) -> None:
        config = self.read(RobotSimConfig)
        size = config.width, config.height
        self.scene = make_scene(self, config.scene, config.output, config.stamped, size)
        image_of(self.scene)  # the first one takes a second
        self._pace = PERIOD / config.real_time_factor
        self._every = max(1, round(1 / (PERIOD * config.frame_rate)))
        self._steps = 0

    def do_activate(self) -> None:
        self._timer = self.create_timer(self._pace, self._period)

    def do_deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def do_cleanup(self) -> None:
        if self.scene is not None:
            self.scene.world.close()
            self.scene = None

    def _period(self) -> None:
        scene = configured(self.scene)
        scene.step(self.get_clock().now().nanoseconds, PERIOD)
        now = self.get_clock().now().nanoseconds
        scene.publish(now)
        if self._steps % self._every == 0:
            self._publish_image(scene, now)
        self._steps += 1

    def _publish_image(self, scene: Scene, now: int) -> None:
        world = scene.world
        stamp, frame = Time(nanoseconds=now).to_msg(), f"{world.camera}_optical"
        msg = rgb_to_image(image_of(scene), stamp, frame)
        self._image.publish(msg)
        self._info.publish(camera_info(msg, world.camera_matrix(world.camera)))

    def diagnose(self) -> Report:
        values: dict[str, object] = {"control periods": 0 if self.scene is None else self._steps}
        if self.scene is not None:
            for part, heard in self.scene.heard().items():
                values[f"{part} commands"] = heard.accepted
                values |= {f"{part} rejected, {why}": n for why, n in heard.rejected.items()}
        return OK, self.state, values


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(RobotSimNode, args)


if __name__ == "__main__":
    sys.exit(main())
