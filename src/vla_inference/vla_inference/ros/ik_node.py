"""The IK node: twists or target poses in, single-point joint trajectories out.

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
from rcl_interfaces.msg import IntegerRange, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState

from vla_inference.control.arm import Arm
from vla_inference.control.commands import Pose
from vla_inference.control.ik import IkSettings, JointCommander
from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.command.messages import diagnostics, msg_to_pose, pose_to_msg
from vla_inference.ros.command.outputs.base import JOINTS, JointCommand
from vla_inference.ros.command.outputs.registry import Outputs, with_outputs
from vla_inference.ros.lifecycle import ManagedNode, spin_node
from vla_inference.ros.parameters import Table, declare, real
from vla_inference.ros.stamps import stamp_ns

DIAGNOSTICS_PERIOD = 1.0


# The node's own, beside those of its outputs. All are read when the node is configured.
OWN: Table = {
    "robot": ("", "the arm's description: path of a URDF or MJCF", None),
    "base_frame": ("base_link", "frame of targets and current_pose: a link of the arm", None),
    "tool_frame": ("tool0", "the link, body or site that is moved", None),
    "rate": (50.0, "joint commands per second [Hz]", real(1.0, 1000.0)),
    "max_joint_velocity": (1.0, "of any joint [rad/s, m/s]", real(1e-3, 100.0)),
    "time_from_start": (0.1, "of the trajectory's point [s]", real(1e-3, 10.0)),
    "damping": (0.01, "of joint motion: rounds off singularities", real(1e-4, 10.0)),
    "rotation_length": (0.2, "[m] that a radian of rotation weighs as much as", real(1e-3, 10.0)),
    "twist_timeout": (
        0.1,
        "after which a twist or a target is not followed any more [s]",
        real(0.01, 10.0),
    ),
    "joint_publishers": (
        1,
        "publishers that joint_states may have: with one more it falls silent",
        IntegerRange(from_value=1, to_value=100),
    ),
    "joint_timeout": (0.2, "without joint states before it falls silent [s]", real(0.01, 10.0)),
    "max_joint_acceleration": (10.0, "of any joint [rad/s^2, m/s^2]", real(0.01, 1e4)),
    "max_joint_drift": (
        0.0,
        "that a commanded joint may be ahead of the measured one [rad, m]; 0: as far as its "
        "velocity leads in time_from_start, which is the most",
        real(0.0, 10.0),
    ),
}


def ik_parameters() -> Table:
    """All of them: the node's own, and those of the outputs that are installed."""
    return with_outputs(OWN, JOINTS)


class IkNode(ManagedNode):
    def __init__(self, name: str = "ik", **kwargs):
        super().__init__(name, **kwargs)
        self._parameters_read = ik_parameters()
        declare(self, self._parameters_read)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.commander: JointCommander | None = None
        self._timer, self._outputs = None, None
        self._sent, self._remark, self._trouble = 0, "", ""
        self._pose = self.create_publisher(PoseStamped, "current_pose", qos.COMMAND)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        make = self.create_subscription
        make(JointState, "joint_states", self._on_joints, **qos.overridable(qos.STATE_INPUT))
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
        arm = Arm(value("robot"), self._tool, self._base)
        settings = IkSettings(
            rate=value("rate"),
            velocity=value("max_joint_velocity"),
            damping=value("damping"),
            length=value("rotation_length"),
            timeout=value("twist_timeout"),
            joint_timeout=value("joint_timeout"),
            drift=value("max_joint_drift"),
            lead=value("time_from_start"),
            acceleration=value("max_joint_acceleration"),
        )
        self._joint_publishers = value("joint_publishers")
        self._outputs = Outputs(self, value, JOINTS)
        self.commander = JointCommander(arm, settings)

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
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _check_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        for p in parameters:
            if self.commander is not None and p.name in self._parameters_read:
                reason = f"{p.name} is read when the node is configured; clean it up first"
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

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

    def _refused(self, reason: str) -> None:
        self._remark = reason
        self.get_logger().warning(f"refused: {reason}", throttle_duration_sec=5.0)

    def callback_refused(self, where: str, reason: str) -> None:
        self._refused(reason)

    def callback_failed(self, where: str, reason: str) -> None:
        """What a node that does not work as it ought to was told before is void."""
        commander, self._remark = self.commander, reason
        if commander is not None:
            self.commander = JointCommander(commander.arm, commander.settings)

    # -- what goes out ------------------------------------------------------------------------

    def _tick(self) -> None:
        commander = self.commander
        positions = commander.tick(time.monotonic(), self._others())
        if commander.trouble != self._trouble:
            self._tell_trouble(commander.trouble)
        if positions is None:
            return
        command = JointCommand(commander.arm.names, positions.tolist())
        self._outputs.send(command, self.get_clock().now().to_msg())
        self._sent += 1

    def _others(self) -> str:
        """Who else measures or commands these joints, in words; empty: nobody."""
        measure = self.resolve_topic_name("joint_states")
        count, most = self.count_publishers(measure), self._joint_publishers
        if count > most:
            return (
                f"{count} publish on {measure}; leave only the arm's own, or set "
                "joint_publishers where each tells joints of its own"
            )
        others = ", ".join(self._outputs.others())
        return f"{others}; leave only this node" if others else ""

    def _tell_trouble(self, trouble: str) -> None:
        self._trouble = trouble
        if trouble:
            self.get_logger().warning(f"silent: {trouble}", throttle_duration_sec=5.0)

    def _publish_diagnostics(self) -> None:
        level, message, values = DiagnosticStatus.OK, self.state, {}
        commander = self.commander
        if self.failure:
            level, message = DiagnosticStatus.ERROR, self.failure
        elif commander is not None:
            trouble = self._others() or commander.states.trouble(time.monotonic())
            if trouble:
                level, message = DiagnosticStatus.WARN, f"silent: {trouble}"
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
