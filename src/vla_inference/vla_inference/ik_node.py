"""The IK node: twists or target poses in, joint trajectories of a single point out.

For arms whose controller takes joints alone (joint_trajectory_controller). All that decides is in
`vla_inference.control.ik`. It is no second safety: limits, watchdogs and the enabling are the
command node's. It also tells the measured pose that the command node needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rcl_interfaces.msg import FloatingPointRange, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_inference.control.arm import Arm
from vla_inference.control.commands import Pose
from vla_inference.control.ik import IkSettings, JointCommander
from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.command_parameters import descriptor
from vla_inference.ros.commands import diagnostics, msg_to_pose, pose_to_msg
from vla_inference.ros.lifecycle import ManagedNode, spin_node
from vla_inference.ros.stamps import stamp_ns

DIAGNOSTICS_PERIOD = 1.0


def _real(low: float, high: float) -> FloatingPointRange:
    return FloatingPointRange(from_value=low, to_value=high)


# name: (default, description, range). All are read when the node is configured.
PARAMETERS: dict[str, tuple[Any, str, Any]] = {
    "robot": ("", "the arm's description: path of a URDF or MJCF", None),
    "base_frame": ("base_link", "frame of targets and current_pose: a link of the arm", None),
    "tool_frame": ("tool0", "the link, body or site that is moved", None),
    "rate": (50.0, "joint commands per second [Hz]", _real(1.0, 1000.0)),
    "max_joint_velocity": (1.0, "of any joint [rad/s, m/s]", _real(1e-3, 100.0)),
    "time_from_start": (0.1, "of the trajectory's point [s]", _real(1e-3, 10.0)),
    "damping": (0.01, "of joint motion: rounds off singularities", _real(1e-4, 10.0)),
    "rotation_length": (0.2, "[m] that a radian of rotation weighs as much as", _real(1e-3, 10.0)),
    "twist_timeout": (0.1, "after which a twist is not followed any more [s]", _real(0.01, 10.0)),
    "joint_timeout": (0.2, "without joint states before it falls silent [s]", _real(0.01, 10.0)),
    "max_joint_drift": (
        0.2,
        "commanded to measured joint before it starts from there again [rad, m]",
        _real(1e-3, 10.0),
    ),
}


class IkNode(ManagedNode):
    def __init__(self, name: str = "ik", **kwargs):
        super().__init__(name, **kwargs)
        for key, (default, description, bounds) in PARAMETERS.items():
            self.declare_parameter(key, default, descriptor(description, bounds))
        self.add_on_set_parameters_callback(self._check_parameters)
        self.commander: JointCommander | None = None
        self._timer = self._trajectory = None
        self._sent, self._remark = 0, ""
        self._pose = self.create_publisher(PoseStamped, "current_pose", qos.COMMAND)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        make = self.create_subscription
        make(JointState, "joint_states", self._on_joints, **qos.overridable(qos.IMAGE_INPUT))
        make(TwistStamped, "delta_twist", self._on_twist, **qos.overridable(qos.COMMAND))
        make(PoseStamped, "target_pose", self._on_target, **qos.overridable(qos.COMMAND))
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(DIAGNOSTICS_PERIOD, self._publish_diagnostics, clock=self._steady)

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        value = self._value
        if not value("robot"):
            raise VlaError("parameter 'robot' is empty", "set it to the path of a URDF or MJCF")
        self._base, self._tool = value("base_frame"), value("tool_frame")
        self._lead = Duration(seconds=value("time_from_start")).to_msg()
        arm = Arm(value("robot"), self._tool, self._base)
        settings = IkSettings(
            value("rate"),
            value("max_joint_velocity"),
            value("damping"),
            value("rotation_length"),
            value("twist_timeout"),
            value("joint_timeout"),
            value("max_joint_drift"),
        )
        self.commander = JointCommander(arm, settings)
        self._trajectory = self.create_lifecycle_publisher(
            JointTrajectory, "joint_trajectory", **qos.overridable(qos.COMMAND)
        )

    def do_activate(self) -> None:
        # Nothing that was heard before counts.
        self.commander = JointCommander(self.commander.arm, self.commander.settings)
        self._sent, self._remark = 0, ""
        self._timer = self.create_timer(self.commander.period, self._tick, clock=self._steady)

    def do_deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def do_cleanup(self) -> None:
        self.commander = None
        if self._trajectory is not None:
            self.destroy_publisher(self._trajectory)
            self._trajectory = None

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _check_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        for p in parameters:
            if self.commander is not None and p.name in PARAMETERS:
                reason = f"{p.name} is read when the node is configured; clean it up first"
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    # -- what comes in ------------------------------------------------------------------------

    def _on_joints(self, msg: JointState) -> None:
        commander = self.commander
        if commander is None:
            return
        if not commander.measured(msg.name, list(msg.position), time.monotonic()):
            return self._refused()
        pose = commander.pose()
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
        stamp = stamp_ns(msg.header.stamp, "delta_twist")
        age = 1e-9 * (self.get_clock().now().nanoseconds - stamp)
        if not stamp:
            return self._refused("delta_twist has no stamp")
        if age >= commander.settings.timeout:
            return self._refused(f"delta_twist is {age:.2f} s old")
        linear, angular = msg.twist.linear, msg.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        if not commander.twist(twist, frame == self._tool != self._base, time.monotonic()):
            self._refused()

    def _on_target(self, msg: PoseStamped) -> None:
        commander, frame = self.commander, msg.header.frame_id
        if commander is None:
            return
        if frame != self._base:
            return self._refused(f"target_pose is in frame {frame!r}, not {self._base!r}")
        try:
            pose = msg_to_pose(msg)
        except VlaError as error:
            return self._refused(str(error))
        if not commander.target(np.array(pose.position), np.array(pose.orientation)):
            self._refused()

    def _refused(self, reason: str = "") -> None:
        self._remark = reason or self.commander.refusal
        self.get_logger().warning(f"refused: {self._remark}", throttle_duration_sec=5.0)

    def callback_failed(self, where: str, reason: str) -> None:
        """What a node that does not work as it ought to was told before is void."""
        commander, self._remark = self.commander, reason
        if commander is not None:
            self.commander = JointCommander(commander.arm, commander.settings)

    # -- what goes out ------------------------------------------------------------------------

    def _tick(self) -> None:
        positions = self.commander.tick(time.monotonic())
        if positions is None:
            return
        # No stamp: at once. No velocities: a last point that moves is refused (Jazzy's JTC).
        point = JointTrajectoryPoint(positions=positions.tolist(), time_from_start=self._lead)
        names = list(self.commander.arm.names)
        self._trajectory.publish(JointTrajectory(joint_names=names, points=[point]))
        self._sent += 1

    def _publish_diagnostics(self) -> None:
        level, message, values = DiagnosticStatus.OK, self.state, {}
        commander = self.commander
        if self.failure:
            level, message = DiagnosticStatus.ERROR, self.failure
        elif commander is not None:
            if not commander.knows_joints(time.monotonic()):
                level, message = DiagnosticStatus.WARN, "no joint states that tell of all joints"
            elif self._remark:
                level, message = DiagnosticStatus.WARN, f"refused: {self._remark}"
            values = {"commands": self._sent, "joints": " ".join(commander.arm.names)}
            values |= {f"clips {k}": n for k, n in commander.clips.items()}
            values |= {f"refusals {k}": n for k, n in commander.refusals.items()}
        values = {**values, **self.fault_values()}
        stamp, name = self.get_clock().now().to_msg(), self.get_fully_qualified_name()
        self._diagnostics.publish(
            diagnostics(stamp, f"{name.lstrip('/')}: joints", name, level, message, values)
        )


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(IkNode, args)


if __name__ == "__main__":
    sys.exit(main())
