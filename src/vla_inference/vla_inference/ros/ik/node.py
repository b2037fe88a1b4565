"""The IK node: twists or target poses in, single-point joint trajectories out.

For arms whose controller takes joints alone (joint_trajectory_controller). All that decides is in
`vla_inference.control.ik`. It is no second safety: limits, watchdogs and the enabling are the
command node's. It also tells the measured pose that the command node needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.clock import Clock, ClockType
from rclpy.timer import Timer
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState

from vla_inference.control.commands import Pose
from vla_inference.control.ik import IkSettings, JointCommander
from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros import qos
from vla_inference.ros.command.outputs.base import JOINTS, JointCommand
from vla_inference.ros.command.outputs.registry import Outputs, output_configs, switched_on
from vla_inference.ros.diagnostics import OK, WARN, Report
from vla_inference.ros.geometry import msg_to_pose, pose_to_msg
from vla_inference.ros.ik.base import ArmConfig, ArmNode
from vla_inference.ros.lifecycle import configured, spin_node
from vla_inference.ros.stamps import stamp_ns


@dataclass(frozen=True, kw_only=True)
class IkConfig(ArmConfig):
    """The node's own parameters, beside those of its outputs."""

    rate: float = option(50.0, "joint commands per second [Hz]", low=1, high=1000)
    max_joint_velocity: float = option(
        1.0,
        "velocity limit of any joint [rad/s, m/s]; the URDF's own if lower",
        low=1e-3,
        high=100,
    )
    max_joint_acceleration: float = option(
        10.0,
        "acceleration limit of any joint [rad/s^2, m/s^2]; position limits and braking at "
        "them take precedence",
        low=0.01,
        high=1e4,
    )
    max_joint_drift: float = option(
        0.0,
        "maximum lead of a commanded joint over the measured one [rad, m]; 0: its velocity "
        "limit times time_from_start, which is the maximum",
        low=0,
        high=10,
    )
    time_from_start: float = option(
        0.1,
        "time_from_start of the trajectory point [s], over which the controller interpolates",
        low=1e-3,
        high=10,
    )
    twist_timeout: float = option(
        0.1, "time after which a twist or a target expires [s]", low=0.01, high=10
    )
    joint_timeout: float = option(
        0.2,
        "maximum time without joint states, by their stamps, before the node stops publishing [s]",
        low=0.01,
        high=10,
    )
    joint_publishers: int = option(
        1,
        "allowed publishers of joint_states; with more the node stops publishing",
        low=1,
        high=100,
    )

    def settings(self) -> IkSettings:
        return IkSettings(
            rate=self.rate,
            velocity=self.max_joint_velocity,
            damping=self.damping,
            length=self.rotation_length,
            timeout=self.twist_timeout,
            joint_timeout=self.joint_timeout,
            drift=self.max_joint_drift,
            lead=self.time_from_start,
            acceleration=self.max_joint_acceleration,
        )


def ik_configs() -> tuple[type, ...]:
    """All parameters: the node's own, and those of the outputs that are installed."""
    return (IkConfig, *output_configs(JOINTS))


class IkNode(ArmNode):
    TASK = "joints"

    def __init__(self, name: str = "ik", **kwargs):
        super().__init__(name, *ik_configs(), **kwargs)
        self.commander: JointCommander | None = None
        self._timer: Timer | None = None
        self._outputs: Outputs | None = None
        self._trouble = ""
        self._pose = self.create_publisher(PoseStamped, "current_pose", qos.COMMAND)
        make = self.create_subscription
        make(TwistStamped, "delta_twist", self._on_twist, **qos.overridable(qos.COMMAND))
        make(PoseStamped, "target_pose", self._on_target, **qos.overridable(qos.COMMAND))
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        config = self.read(IkConfig)
        arm = config.arm()
        self._base, self._tool = config.base_frame, config.tool_frame
        self._joint_publishers = config.joint_publishers
        # Without any it tells the pose alone: of an arm that something else drives.
        self._outputs = Outputs(self, self.value, switched_on(JOINTS, self.value))
        self.commander = JointCommander(arm, config.settings())

    def do_activate(self) -> None:
        # Nothing that was heard before counts.
        before = configured(self.commander)
        self.commander = JointCommander(before.arm, before.settings)
        self._sent, self._remark = 0, ""
        self._timer = self.create_timer(self.commander.period, self._tick, clock=self._steady)

    def do_deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def do_cleanup(self) -> None:
        self.commander = None
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    # -- what comes in ------------------------------------------------------------------------

    def _on_joints(self, msg: JointState) -> None:
        commander = self.commander
        if commander is None:
            return
        age, now = self._age(msg, "joint_states"), time.monotonic()
        known = commander.measured(msg.name, list(msg.position), now, age)
        if commander.refusal:
            return self._refused(commander.refusal)
        if not known or self._others() or commander.states.trouble(now):
            return  # then the pose is not to be relied on either: the command node stops
        pose = configured(commander.pose())
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
        measured = Pose(tuple(pose[:3, 3].tolist()), tuple(quaternion))
        self._pose.publish(pose_to_msg(measured, msg.header.stamp, self._base))

    def _on_twist(self, msg: TwistStamped) -> None:
        commander, frame = self.commander, msg.header.frame_id
        if commander is None:
            return
        if frame not in (self._base, self._tool):
            wanted = f"{self._base!r} or {self._tool!r}"
            return self._refused(f"delta_twist is in frame {frame!r}, not {wanted}")
        age = self._age(msg, "delta_twist")
        linear, angular = msg.twist.linear, msg.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        in_tool = frame == self._tool != self._base
        if not commander.twist(twist, in_tool, time.monotonic(), age):
            self._refused(commander.refusal)

    def _on_target(self, msg: PoseStamped) -> None:
        commander, frame = self.commander, msg.header.frame_id
        if commander is None:
            return
        if frame != self._base:
            return self._refused(f"target_pose is in frame {frame!r}, not {self._base!r}")
        pose, age = msg_to_pose(msg), self._age(msg, "target_pose")
        position, orientation = np.array(pose.position), np.array(pose.orientation)
        if not commander.target(position, orientation, time.monotonic(), age):
            self._refused(commander.refusal)

    def _age(self, msg: Any, what: str) -> float:
        """Seconds since its stamp, by the node's clock; negative: it is in the future."""
        stamp = stamp_ns(msg.header.stamp, what)
        if not stamp:
            raise VlaError(f"{what} has no stamp", "set header.stamp when publishing it")
        return 1e-9 * (self.get_clock().now().nanoseconds - stamp)

    def callback_failed(self, where: str, reason: str) -> None:
        """After a failed callback, earlier commands are void."""
        commander, self._remark = self.commander, reason
        if commander is not None:
            self.commander = JointCommander(commander.arm, commander.settings)

    # -- what goes out ------------------------------------------------------------------------

    def _tick(self) -> None:
        commander = configured(self.commander)
        positions = commander.tick(time.monotonic(), self._others())
        if commander.trouble != self._trouble:
            self._tell_trouble(commander.trouble)
        if positions is None:
            return
        command = JointCommand(commander.arm.names, positions.tolist())
        configured(self._outputs).send(command, self.get_clock().now().to_msg())
        self._sent += 1

    def _others(self) -> str:
        """Describes other nodes that measure or command these joints; empty: none."""
        measure = self.resolve_topic_name("joint_states")
        count, most = self.count_publishers(measure), self._joint_publishers
        if count > most:
            return (
                f"{count} publish on {measure}; leave only the arm's own, or set "
                "joint_publishers where each tells joints of its own"
            )
        others = ", ".join(configured(self._outputs).others())
        return f"{others}; leave only this node" if others else ""

    def _tell_trouble(self, trouble: str) -> None:
        self._trouble = trouble
        if trouble:
            self.get_logger().warning(f"silent: {trouble}", throttle_duration_sec=5.0)

    def diagnose(self) -> Report:
        commander = self.commander
        if commander is None:
            return OK, self.state, {}
        values = {"commands": self._sent, "joints": " ".join(commander.arm.names)}
        values |= {f"clips {k}": n for k, n in commander.clips.items()}
        values |= {f"refusals {k}": n for k, n in commander.refusals.items()}
        trouble = self._others() or commander.states.trouble(time.monotonic())
        if trouble:
            return WARN, f"silent: {trouble}", values
        return self.report(values)


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(IkNode, args)


if __name__ == "__main__":
    sys.exit(main())
