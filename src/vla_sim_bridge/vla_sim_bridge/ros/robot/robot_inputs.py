"""What moves the simulated robot and what it measures: topics as a real one's controller has.

The rules are in `controller_emulation` and `joint_controllers`; here are their messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vla_inference.errors import VlaError
from vla_inference.ros.qos import CHUNK, COMMAND
from vla_inference.ros.stamps import stamp_ns
from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.envs.protocol import ArmWorld
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.ros.robot.controller_emulation import Heard, PoseController, TwistController
from vla_sim_bridge.ros.robot.joint_controllers import (
    ForwardController,
    TrajectoryController,
    TrajectoryPoint,
    make_controller,
)

if TYPE_CHECKING:
    from vla_sim_bridge.ros.robot.robot_executor import RobotDrive

BASE_FRAME = "base"
ARM = "arm"  # the part's name, which the topics of its joints begin with
JOINTS = tuple(f"joint{i}" for i in range(1, 8))  # of the Panda
JOINT_KINDS = ("joint_trajectory", "joint_positions", "joint_velocities")

Move = Callable[[], StepResult]


class RobotInput:
    """One way to command the robot. `heard` counts what came."""

    def __init__(self, drive: RobotDrive):
        self.drive, self.node = drive, drive.node

    @property
    def heard(self) -> Heard:
        raise NotImplementedError

    def listen(self) -> None:
        """Begins to take commands; each is told to `drive.commanded`."""
        raise NotImplementedError

    def reset(self) -> None:
        """The robot stands elsewhere: what it was told before is void."""
        raise NotImplementedError

    def tell_where(self, now: int) -> None:
        """Publishes what is measured, at `now` in ns."""
        raise NotImplementedError

    def taking_image(self, now: int) -> None:
        """An image is taken at `now` in ns."""

    def move(self, now: float, period: float) -> tuple[Move, bool]:
        """The motion of the control period [s] that begins at `now` [s], and whether it is only
        to hold, for want of a command."""
        raise NotImplementedError

    def stamp(self, msg: Any) -> int | None:
        """Nanoseconds; None: the command is rejected for it."""
        try:
            return stamp_ns(msg.header.stamp, "the command")
        except VlaError as error:
            self.heard.reject("no time as stamp")
            self.node.callback_refused("command", str(error))
            return None


class CartesianInput(RobotInput):
    """delta_twist or target_pose in, current_pose out."""

    def __init__(self, drive: RobotDrive, kind: str):
        super().__init__(drive)
        self.controller = TwistController() if kind == "twist" else PoseController()
        self._pose_topic = drive.node.create_publisher(PoseStamped, "current_pose", COMMAND)

    @property
    def heard(self) -> Heard:
        return self.controller.heard

    def listen(self) -> None:
        hear, guard = self.node.create_subscription, self.drive.episodes.guard
        if isinstance(self.controller, TwistController):
            hear(TwistStamped, "delta_twist", guard(self._on_twist), CHUNK)
        else:
            hear(PoseStamped, "target_pose", guard(self._on_pose), CHUNK)

    def reset(self) -> None:
        self.controller.reset()

    def _on_twist(self, msg: TwistStamped) -> None:
        linear, angular = msg.twist.linear, msg.twist.angular
        twist = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        stamp, controller = self.stamp(msg), self.controller
        if stamp is None or not isinstance(controller, TwistController):
            return
        now = 1e-9 * self.drive.now()
        if controller.receive(msg.header.frame_id, 1e-9 * stamp, twist, now):
            self.drive.commanded(stamp)

    def _on_pose(self, msg: PoseStamped) -> None:
        p, q = msg.pose.position, msg.pose.orientation
        position, quaternion = np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])
        frame, now, stamp = msg.header.frame_id, 1e-9 * self.drive.now(), self.stamp(msg)
        controller = self.controller
        if stamp is None or not isinstance(controller, PoseController):
            return
        if controller.receive(frame, position, quaternion, now):
            self.drive.commanded(stamp)

    def _pose(self) -> np.ndarray:
        """Of the end effector in the robot's base [4, 4]; the base stands upright."""
        sim = self._arm()
        pose = sim.eef_pose()
        pose[:3, 3] -= sim.base_position()
        return pose

    def tell_where(self, now: int) -> None:
        pose = self._pose()
        msg = PoseStamped()
        msg.header.stamp, msg.header.frame_id = Time(nanoseconds=now).to_msg(), BASE_FRAME
        p, q = msg.pose.position, msg.pose.orientation
        p.x, p.y, p.z = pose[:3, 3].tolist()
        q.x, q.y, q.z, q.w = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
        self._pose_topic.publish(msg)

    def move(self, now: float, period: float) -> tuple[Move, bool]:
        sim = self.drive.episodes.sim
        delta = self.controller.delta(self._pose(), now, period)
        action = np.append(np.zeros(6) if delta is None else delta, self.drive.gripper)
        return lambda: sim.step(action), delta is None

    def _arm(self) -> ArmWorld:
        sim = self.drive.episodes.sim
        if not isinstance(sim, ArmWorld):
            raise VlaError(f"{sim.task.name} has no arm", "set driven_by to chunks or base_twist")
        return sim


class JointInput(RobotInput):
    """arm/joint_trajectory, arm/joint_positions or arm/joint_velocities in, arm/joint_states
    out."""

    def __init__(self, drive: RobotDrive, kind: str):
        super().__init__(drive)
        self.kind, self.controller = kind, make_controller(kind, JOINTS)
        self._states = drive.node.create_publisher(JointState, f"{ARM}/joint_states", COMMAND)

    @property
    def heard(self) -> Heard:
        return self.controller.heard

    def listen(self) -> None:
        hear, guard = self.node.create_subscription, self.drive.episodes.guard
        topic = f"{ARM}/{self.kind}"
        if isinstance(self.controller, TrajectoryController):
            hear(JointTrajectory, topic, guard(self._on_trajectory), CHUNK)
        else:
            hear(Float64MultiArray, topic, guard(self._on_numbers), CHUNK)

    def reset(self) -> None:
        self.controller.reset()

    def _on_trajectory(self, msg: JointTrajectory) -> None:
        stamp, controller = self.stamp(msg), self.controller
        if self._void() or stamp is None or not isinstance(controller, TrajectoryController):
            return
        if controller.receive(
            msg.joint_names, trajectory_points(msg), 1e-9 * stamp, 1e-9 * self.drive.now()
        ):
            self.drive.commanded(None)

    def _on_numbers(self, msg: Float64MultiArray) -> None:
        controller = self.controller
        if self._void() or not isinstance(controller, ForwardController):
            return
        if controller.receive(msg.data, 1e-9 * self.drive.now()):
            self.drive.commanded(None)

    def _void(self) -> bool:
        """Whether a command is none: a halt, say, from before the robot was put elsewhere."""
        return not self.drive.operator.ready

    def tell_where(self, now: int) -> None:
        sim = self._sim()
        self._states.publish(
            joint_state(JOINTS, sim.joint_positions(), sim.joint_velocities(), now)
        )

    def taking_image(self, now: int) -> None:
        self.tell_where(now)  # what the image shows: a chunk of joints starts from there

    def move(self, now: float, period: float) -> tuple[Move, bool]:
        sim = self._sim()
        reference = self.controller.reference(sim.joint_positions(), now, period)
        if reference is None:
            return sim.hold, True
        return lambda: sim.follow(reference, self.drive.gripper), False

    def _sim(self) -> Simulation:
        sim = self.drive.episodes.sim
        if not isinstance(sim, Simulation):
            raise VlaError(
                f"{sim.task.name} cannot be driven by joints: its robot runs in another Python",
                "set driven_by to chunks, twist or pose",
            )
        return sim


def trajectory_points(msg: JointTrajectory) -> list[TrajectoryPoint]:
    return [
        TrajectoryPoint(_seconds(p.time_from_start), list(p.positions), list(p.velocities))
        for p in msg.points
    ]


def joint_state(
    names: Sequence[str], positions: np.ndarray, velocities: np.ndarray, now: int
) -> JointState:
    """now: ns."""
    msg = JointState(name=list(names), position=positions.tolist(), velocity=velocities.tolist())
    msg.header.stamp = Time(nanoseconds=now).to_msg()
    return msg


def is_open(msg: Float64MultiArray) -> float | None:
    """A gripper command: 1 open, 0 closed; None: it says nothing."""
    if not len(msg.data) or not math.isfinite(msg.data[0]):
        return None
    return float(msg.data[0] > 0.5)


def _seconds(duration: Duration) -> float:
    return float(duration.sec) + 1e-9 * float(duration.nanosec)
