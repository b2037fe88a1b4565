"""The IK node in a real ROS graph: what a joint_trajectory_controller hears, and when nothing."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import JointState
from six_axes import HOME, urdf
from trajectory_msgs.msg import JointTrajectory

from vla_inference.control.arm import Arm
from vla_inference.ik_node import IkNode

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
        self.joints = self.client.create_publisher(JointState, "joint_states", 1)
        self.twists = self.client.create_publisher(TwistStamped, "delta_twist", 1)
        self.targets = self.client.create_publisher(PoseStamped, "target_pose", 1)
        self.at = HOME.copy()

    def _follow(self, msg: JointTrajectory) -> None:
        self.points.append(msg)
        self.at = np.array(msg.points[0].positions)

    def tell_joints(self) -> None:
        names = [*(f"j{i}" for i in range(6)), "finger"]
        self.joints.publish(JointState(name=names, position=[*self.at, 0.0]))

    def tell_twist(self, frame: str = "base_link", y: float = 0.05, stamped: bool = True) -> None:
        msg = TwistStamped()
        msg.header.frame_id = frame
        if stamped:
            msg.header.stamp = self.client.get_clock().now().to_msg()
        msg.twist.linear.y = y
        self.twists.publish(msg)

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
        ("no stamp", lambda: g.tell_twist(stamped=False)),
    ):
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
    target = PoseStamped()
    target.header.frame_id = "base_link"
    p, q = target.pose.position, target.pose.orientation
    p.x, p.y, p.z = goal[:3, 3].tolist()
    q.x, q.y, q.z, q.w = Rotation.from_matrix(goal[:3, :3]).as_quat().tolist()

    def there() -> bool:
        return np.linalg.norm((g.arm.pose(g.at) - goal)[:3, 3]) < 1e-3

    assert not there()
    g.until(there, g.tell_joints, lambda: g.targets.publish(target))
    # Without joint states it falls silent, whatever else is said.
    g.until(lambda: not g.node.commander.knows_joints(time.monotonic()))
    told = time.monotonic()
    g.until(lambda: time.monotonic() > told + 0.2)  # what was under way has arrived
    g.points.clear()
    told = time.monotonic()
    g.until(lambda: time.monotonic() > told + 0.3, g.tell_twist)
    assert not g.points


def test_without_a_description_it_stays_unconfigured_and_says_why(graph):
    graph.node.set_parameters([Parameter("robot", value="")])
    assert not graph.node.start()
    assert "parameter 'robot' is empty" in graph.node.failure
    graph.node.set_parameters([Parameter("robot", value="/nowhere.urdf")])
    assert not graph.node.start() and "no robot description" in graph.node.failure
