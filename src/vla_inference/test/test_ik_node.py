"""Tests of the IK node in a real ROS graph: what it publishes and when it publishes nothing."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from six_axes import HOME, urdf
from trajectory_msgs.msg import JointTrajectory

from vla_inference.control.arm import Arm
from vla_inference.ros.ik.node import IkNode

DOMAIN = 1 + (os.getpid() + 70) % 100
PATIENCE = 30.0


class Graph:
    """An IK node, the arm that follows it, and the command node's side; all in one thread."""

    def __init__(self, robot: str):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN)
        self.node = IkNode(
            context=self.context,
            parameter_overrides=[Parameter("robot", value=robot)],
        )
        self.client = rclpy.create_node("client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        for node in (self.node, self.client):
            self.executor.add_node(node)
        self.points: list[JointTrajectory] = []
        self.poses: list[PoseStamped] = []
        self.client.create_subscription(JointTrajectory, "joint_trajectory", self._follow, 10)
        self.client.create_subscription(PoseStamped, "current_pose", self.poses.append, 10)
        self.joints = self.client.create_publisher(JointState, "joint_states", 10)
        self.twists = self.client.create_publisher(TwistStamped, "delta_twist", 1)
        self.targets = self.client.create_publisher(PoseStamped, "target_pose", 1)
        self.at = HOME.copy()

    def _follow(self, msg: JointTrajectory) -> None:
        self.points.append(msg)
        self.at = np.array(msg.points[0].positions)

    def now(self, late: float = 0.0) -> Time:
        return (self.client.get_clock().now() - Duration(seconds=late)).to_msg()

    def tell_joints(self, at=None, stamp: Time | None = None) -> None:
        msg = JointState(name=[*(f"j{i}" for i in range(6)), "finger"])
        msg.position = [*(self.at if at is None else at), 0.0]
        msg.header.stamp = self.now() if stamp is None else stamp
        self.joints.publish(msg)

    def tell_twist(
        self, frame: str = "base_link", y: float = 0.05, stamp: Time | None = None
    ) -> None:
        msg = TwistStamped()
        msg.header.frame_id = frame
        msg.header.stamp = self.now() if stamp is None else stamp
        msg.twist.linear.y = y
        self.twists.publish(msg)

    def tell_target(self, goal: np.ndarray, stamp: Time | None = None) -> None:
        target = PoseStamped()
        target.header.frame_id = "base_link"
        target.header.stamp = self.now() if stamp is None else stamp
        p, q = target.pose.position, target.pose.orientation
        p.x, p.y, p.z = goal[:3, 3].tolist()
        q.x, q.y, q.z, q.w = Rotation.from_matrix(goal[:3, :3]).as_quat().tolist()
        self.targets.publish(target)

    def meet(self) -> None:
        assert self.node.start(), self.node.failure
        publishers = (self.twists, self.targets, self.joints)
        self.until(lambda: all(p.get_subscription_count() for p in publishers))
        self.until(lambda: len(self.points) > 5, self.tell_joints, self.tell_twist)

    def idle(self, seconds: float, *talk) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, *talk)

    def until(self, condition, *talk) -> None:
        end, told = time.monotonic() + PATIENCE, 0.0
        while not condition():
            assert time.monotonic() < end, self.node._remark
            if time.monotonic() - told > 0.02:
                told = time.monotonic()
                for say in talk:
                    say()
            self.executor.spin_once(timeout_sec=0.01)

    def close(self) -> None:
        self.node.trigger_shutdown()
        self.executor.shutdown()
        self.node.destroy_node()
        self.client.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def graph(tmp_path, monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    path = tmp_path / "six.urdf"
    path.write_text(urdf())
    graph = Graph(str(path))
    graph.arm = Arm(path, "tool0", "base_link")
    yield graph
    graph.close()


def test_joints_follow_twists_and_targets_once_they_are_known(graph):
    g = graph
    assert g.node.start(), g.node.failure
    g.until(lambda: g.twists.get_subscription_count() and g.joints.get_subscription_count())
    told = time.monotonic()
    g.until(lambda: time.monotonic() > told + 0.5, g.tell_twist)
    assert not g.points and not g.poses  # it knows no joints
    for word, refused in (
        ("frame ''", lambda: g.tell_twist(frame="")),
        ("delta_twist has no stamp", lambda: g.tell_twist(stamp=Time())),
        ("the twist is", lambda: g.tell_twist(stamp=g.now(1.0))),
        ("in the future", lambda: g.tell_twist(stamp=g.now(-1.0))),
        ("the stamp of delta_twist is not a valid time", lambda: g.tell_twist(stamp=Time(sec=-1))),
        ("the target is", lambda: g.tell_target(np.eye(4), g.now(1.0))),
        ("in the future", lambda: g.tell_target(np.eye(4), g.now(-1.0))),
        ("target_pose has no stamp", lambda: g.tell_target(np.eye(4), Time())),
        (
            "the stamp of target_pose is not a valid time",
            lambda: g.tell_target(np.eye(4), Time(sec=-1)),
        ),
        ("joint_states has no stamp", lambda: g.tell_joints(stamp=Time())),
        ("joint states are", lambda: g.tell_joints(stamp=g.now(1.0))),
        ("in the future", lambda: g.tell_joints(stamp=g.now(-1.0))),
        (
            "the stamp of joint_states is not a valid time",
            lambda: g.tell_joints(stamp=Time(sec=-1)),
        ),
    ):
        g.node._remark = ""
        g.until(lambda word=word: word in g.node._remark, refused, g.tell_joints)
    assert not g.points
    g.until(lambda: len(g.points) > 20, g.tell_joints, g.tell_twist)
    point = g.points[-1].points[0]
    assert g.points[-1].joint_names == [f"j{i}" for i in range(6)]
    assert not point.velocities and point.time_from_start.nanosec == 100_000_000
    way = (g.arm.pose(np.array(point.positions)) - g.arm.pose(HOME))[:3, 3]
    assert way[1] / np.linalg.norm(way) > 0.99
    assert g.poses[-1].header.frame_id == "base_link"

    goal = g.arm.pose(HOME)

    def there() -> bool:
        return np.linalg.norm((g.arm.pose(g.at) - goal)[:3, 3]) < 1e-3

    assert not there()
    g.until(there, g.tell_joints, lambda: g.tell_target(goal))
    # Without joint states it falls silent, whatever else is said.
    g.until(lambda: g.node.commander.states.trouble(time.monotonic()))
    told = time.monotonic()
    g.until(lambda: time.monotonic() > told + 0.2)  # what was under way has arrived
    g.points.clear()
    told = time.monotonic()
    g.until(lambda: time.monotonic() > told + 0.3, g.tell_twist)
    assert not g.points


def test_after_a_stop_it_holds_the_arm_once_and_falls_silent(graph):
    """Review M1: the command node's hold is its last word; nothing may be driven there later."""
    g = graph
    g.meet()
    hold = g.arm.pose(g.at)
    for _ in range(2):  # as the command node's halt
        g.tell_target(hold)
        g.idle(0.02, g.tell_joints)
    g.idle(1.0, g.tell_joints)
    g.points.clear()
    moved = g.at + 0.3  # by hand, slowly
    for share in np.linspace(0, 1, 60):
        g.tell_joints(g.at + share * (moved - g.at))
        g.idle(0.02)
    g.at = moved
    g.idle(0.5, g.tell_joints)
    assert not g.points and not g.node.commander.trouble


def test_stray_joint_states_silence_it_and_the_arm_does_not_jump(graph):
    """Review C3: a joint_state_publisher beside the driver, which tells zeros."""
    g = graph
    g.meet()
    before = len(g.points)
    g.tell_joints(np.zeros(6))  # a single one is refused and survived
    g.until(lambda: g.node.commander.refusals["joints_jump"] == 1, g.tell_joints, g.tell_twist)
    g.until(lambda: len(g.points) > before + 10, g.tell_joints, g.tell_twist)

    def zeros() -> None:
        g.tell_joints(np.zeros(6))

    g.until(lambda: "jump" in g.node.commander.trouble, g.tell_joints, zeros, g.tell_twist)
    g.idle(0.2, g.tell_joints, zeros, g.tell_twist)
    quiet, poses = len(g.points), len(g.poses)
    g.idle(0.5, g.tell_joints, zeros, g.tell_twist)
    assert len(g.points) == quiet and len(g.poses) == poses  # so the command node stops too
    told = np.array([p.points[0].positions for p in g.points])
    assert np.abs(np.diff(told, axis=0)).max() <= 1.0 / 50 * (1 + 1e-6)
    g.until(lambda: len(g.points) > quiet + 5, g.tell_joints, g.tell_twist)


@pytest.mark.parametrize("topic", ["joint_states", "joint_trajectory"])
def test_a_second_publisher_silences_it(graph, topic):
    g = graph
    g.meet()
    kind = JointState if topic == "joint_states" else JointTrajectory
    other = g.client.create_publisher(kind, topic, 1)
    g.until(lambda: "publish on" in g.node.commander.trouble, g.tell_joints, g.tell_twist)
    assert topic in g.node.commander.trouble
    g.idle(0.1, g.tell_joints, g.tell_twist)
    quiet = len(g.points)
    g.idle(0.3, g.tell_joints, g.tell_twist)
    assert len(g.points) == quiet
    g.client.destroy_publisher(other)
    g.until(lambda: len(g.points) > quiet, g.tell_joints, g.tell_twist)


def test_a_fault_of_its_own_is_survived_and_what_it_was_told_is_forgotten(graph, monkeypatch):
    g = graph
    g.meet()
    monkeypatch.setattr(g.node.commander, "tick", lambda *_: 1 / 0)
    g.until(lambda: g.node.faults["timer tick"], g.tell_joints)
    g.points.clear()
    g.idle(0.3, g.tell_joints)  # nobody commands: nothing of before goes on
    assert not g.points
    g.until(lambda: len(g.points) > 5, g.tell_joints, g.tell_twist)


def test_a_drift_beyond_what_the_velocity_allows_leaves_it_unconfigured(graph):
    graph.node.set_parameters([Parameter("max_joint_drift", value=0.2)])
    assert not graph.node.start()
    assert "max_joint_drift is 0.2" in graph.node.failure


def test_without_a_description_it_stays_unconfigured_and_says_why(graph):
    graph.node.set_parameters([Parameter("robot", value="")])
    assert not graph.node.start()
    assert "parameter 'robot' is empty" in graph.node.failure
    graph.node.set_parameters([Parameter("robot", value="/nowhere.urdf")])
    assert not graph.node.start() and "no robot description" in graph.node.failure


def test_without_an_output_it_tells_the_pose_and_commands_nothing(graph):
    g = graph
    g.node.set_parameters([Parameter("publish_trajectory", value=False)])
    assert g.node.start(), g.node.failure
    g.until(lambda: g.twists.get_subscription_count() and g.joints.get_subscription_count())
    g.until(lambda: len(g.poses) > 20, g.tell_joints, g.tell_twist)
    assert not g.points
    assert np.allclose(g.poses[-1].pose.position.x, g.arm.pose(HOME)[0, 3])
