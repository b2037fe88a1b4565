"""Tests of the robot simulation node in a real ROS graph: two arms, and a base."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import Twist, TwistStamped
from graphs import NodeGraph, domain, processes
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_inference.ros import qos
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, ActionPart, ActionSpec, DimSpec, joint_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import CommandStatus
from vla_sim_bridge.ros.robot.robot_scenes import joint_names
from vla_sim_bridge.ros.robot.robot_sim_node import RobotSimNode

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("left_arm", "right_arm")


class Arms(NodeGraph):
    """The node with two arms, and who listens to them."""

    def __init__(self, **parameters):
        small = {"width": 64, "height": 48, **parameters}
        super().__init__(RobotSimNode, {"scene": "two_arms", **small})
        self.states: dict[str, JointState] = {}
        self.images: list[Image] = []
        self.infos: list[CameraInfo] = []
        make = self.client.create_subscription
        for arm in ARMS:
            make(JointState, f"{arm}/joint_states", self._keep, 10)
        make(Image, "image", self.images.append, qos.IMAGE_INPUT)
        make(CameraInfo, "camera_info", self.infos.append, qos.IMAGE_INPUT)
        assert self.start_node(), self.node.failure
        self.until(lambda: len(self.states) == 2 and self.images and self.infos, "the robot")

    def _keep(self, msg: JointState) -> None:
        self.states[f"{msg.name[0].split('_')[0]}_arm"] = msg

    def at(self, arm: str) -> np.ndarray:
        return np.array(self.states[arm].position)


@pytest.fixture
def make_arms():
    made = []

    def make(**parameters) -> Arms:
        made.append(Arms(**parameters))
        return made[-1]

    yield make
    for graph in made:
        graph.close()


def test_each_arm_goes_to_its_own_positions(make_arms):
    graph = make_arms()
    image, info = graph.images[0], graph.infos[0]
    assert (image.width, image.height, image.header.frame_id) == (64, 48, "agentview_optical")
    assert info.width == 64 and info.k[0] > 0
    goals = {arm: graph.at(arm) + (0.2 if arm == "left_arm" else -0.1) for arm in ARMS}
    for arm in ARMS:
        topic = f"{arm}/joint_positions"
        publisher = graph.client.create_publisher(Float64MultiArray, topic, qos.COMMAND)
        graph.until(publisher.get_subscription_count, topic)
        publisher.publish(Float64MultiArray(data=goals[arm].tolist()))
    for arm in ARMS:
        assert tuple(graph.states[arm].name) == joint_names(arm)
        graph.until(lambda arm=arm: np.abs(graph.at(arm) - goals[arm]).max() < 0.01, arm)


def test_a_trajectory_moves_the_arm_that_it_names_alone(make_arms):
    graph = make_arms(output="joint_trajectory")
    before = graph.at("right_arm")
    goal = graph.at("left_arm") + 0.2
    topic = "left_arm/joint_trajectory"
    publisher = graph.client.create_publisher(JointTrajectory, topic, qos.COMMAND)
    graph.until(publisher.get_subscription_count, topic)
    point = JointTrajectoryPoint(positions=goal.tolist())
    point.time_from_start.sec = 1
    wrong = JointTrajectory(joint_names=joint_names("right_arm"), points=[point])
    publisher.publish(wrong)
    graph.until(lambda: graph.node.scene.heard()["left_arm"].rejected, "a refusal")
    assert graph.node.scene.heard()["left_arm"].rejected == {"other joints": 1}
    publisher.publish(JointTrajectory(joint_names=joint_names("left_arm"), points=[point]))
    graph.until(lambda: np.abs(graph.at("left_arm") - goal).max() < 0.01, "the left arm")
    np.testing.assert_allclose(graph.at("right_arm"), before, atol=0.01)
    _, _, values = graph.node.diagnose()
    assert values["left_arm commands"] == 1 and values["left_arm rejected, other joints"] == 1


@pytest.mark.parametrize("stamped", [False, True])
def test_the_base_drives_by_cmd_vel_and_stops_without(stamped):
    messages = pytest.importorskip("nav_msgs.msg", reason="`make setup` installs nav_msgs")
    small = {"width": 64, "height": 48, "scene": "base", "stamped": stamped}
    graph = NodeGraph(RobotSimNode, small)
    try:
        heard: list = []
        graph.client.create_subscription(messages.Odometry, "odom", heard.append, 10)
        kind = TwistStamped if stamped else Twist
        velocities = graph.client.create_publisher(kind, "base/cmd_vel", qos.COMMAND)
        assert graph.start_node(), graph.node.failure
        graph.until(lambda: heard and velocities.get_subscription_count(), "the base")
        assert (heard[0].header.frame_id, heard[0].child_frame_id) == ("odom", "base_link")

        def drive() -> bool:
            msg = kind()
            twist = msg.twist if stamped else msg
            twist.linear.x, twist.angular.z = 0.3, 0.4
            if stamped:
                msg.header.stamp = graph.client.get_clock().now().to_msg()
            velocities.publish(msg)
            return heard[-1].pose.pose.position.x > 0.2

        graph.until(drive, "the base to move")
        at = heard[-1]
        assert 2 * math.asin(at.pose.pose.orientation.z) > 0.1
        assert at.twist.twist.linear.x > 0.1
        graph.until(lambda: heard[-1].twist.twist.linear.x < 0.01, "the base to stop")
    finally:
        graph.close()


class Launched:
    """A launch file of this robot simulation started as a user does it, and a client of it."""

    def __init__(self, name: str, *words: str):
        number = domain(60)
        self._stack = contextlib.ExitStack()
        start = self._stack.enter_context(processes(number))
        launch = ROOT / f"launch/{name}.launch.xml"
        command = ["-m", "vla_inference.cli.main", "launch", launch, "--stand-in", *words]
        self.process = start(*command, stdout=None, stderr=None)
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=number)
        self.node = rclpy.create_node("client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.status = CommandStatus()
        make = self.node.create_subscription
        make(CommandStatus, "command/status", self._keep, qos.LATCHED)
        self.actions = self.node.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
        self.enabler = self.node.create_client(SetBool, "/command/enable")

    def begin(self) -> None:
        """Waits for what the tests take for granted."""

    def _keep(self, msg: CommandStatus) -> None:
        self.status = msg

    def until(self, condition, talk=lambda: None, what: str = "") -> None:
        end, told = time.monotonic() + 60, 0.0
        while not condition():
            assert time.monotonic() < end, f"{what}; {self.status}"
            if time.monotonic() - told > 0.1:
                told = time.monotonic()
                talk()
            self.executor.spin_once(timeout_sec=0.02)

    def idle(self, seconds: float, talk=lambda: None) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, talk)

    def send(self, spec: ActionSpec, step: np.ndarray) -> None:
        """A chunk of one action, which lasts 2 s."""
        stamp = self.node.get_clock().now().to_msg()
        steps = np.tile(step, (round(2 / spec.dt), 1))
        self.actions.publish(chunk_to_msg(ActionChunk(steps, spec), stamp))

    def enable(self, talk) -> None:
        """As an operator does it, again where it was too early."""
        self.until(self.enabler.service_is_ready, talk, "the command node")
        for _ in range(30):
            answer = self.enabler.call_async(SetBool.Request(data=True))
            self.until(answer.done, talk, "an answer")
            if answer.result().success:
                return
            self.idle(0.3, talk)
        raise AssertionError(answer.result().message)

    def move_until(self, condition, talk, what: str) -> None:
        """Enables, again where a busy machine's silence stopped it, until it is there."""
        while not condition():
            if self.status.state != CommandStatus.ENABLED:
                self.enable(talk)
                self.until(lambda: self.status.state == CommandStatus.ENABLED, talk, "its status")
            self.until(
                lambda: condition() or self.status.state != CommandStatus.ENABLED, talk, what
            )

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)
        self._stack.close()


class LaunchedArms(Launched):
    spec = joint_spec(
        {arm: joint_names(arm) for arm in ("right_arm", "left_arm")},
        ("right_gripper", "left_gripper"),
    )

    def __init__(self, *words: str):
        super().__init__("two_arms", "real_time_factor:=0.5", *words)
        self.joints: dict[str, np.ndarray] = {}
        self.speeds: dict[str, float] = {}  # rad/s, of the fastest joint
        for arm in ARMS:
            self.node.create_subscription(JointState, f"{arm}/joint_states", self._joints, 10)

    def begin(self) -> None:
        self.until(lambda: len(self.joints) == 2, what="the arms")
        self.start = dict(self.joints)

    def _joints(self, msg: JointState) -> None:
        arm = f"{msg.name[0].split('_')[0]}_arm"
        self.joints[arm] = np.array(msg.position)
        self.speeds[arm] = float(np.abs(msg.velocity).max())

    def go(self, left: float, right: float):
        """A talker: joint 1 of each arm shall go this far (rad), grippers open."""
        ways = {"left_arm": left, "right_arm": right}
        parts = {
            **{arm: self.start[arm] + ways[arm] * np.eye(7)[0] for arm in ARMS},
            "left_gripper": np.ones(1),
            "right_gripper": np.ones(1),
        }
        return lambda: self.send(self.spec, self.spec.join(parts))

    def moved(self, arm: str) -> float:
        return float((self.joints[arm] - self.start[arm])[0])

    def off(self, left: float, right: float) -> float:
        """How far (rad) the farther arm is from there."""
        return max(abs(self.moved("left_arm") - left), abs(self.moved("right_arm") - right))

    def far(self, left: float, right: float) -> float:
        """How far (rad) the nearer arm is from there."""
        return min(abs(self.moved("left_arm") - left), abs(self.moved("right_arm") - right))


@pytest.fixture
def launched():
    made: list[Launched] = []

    def make(kind, *words: str):
        made.append(kind(*words))
        made[-1].begin()  # where that fails, it is closed as well
        return made[-1]

    yield make
    for graph in made:
        graph.close()


@pytest.mark.parametrize(
    "output",
    [
        "joint_positions",
        pytest.param("joint_trajectory", marks=pytest.mark.slow),
        pytest.param("joint_velocities", marks=pytest.mark.slow),
    ],
)
def test_one_command_node_moves_both_arms_and_one_stop_stops_both(launched, output):
    arms = launched(LaunchedArms, f"output:={output}")
    talk = arms.go(0.2, -0.2)
    arms.move_until(lambda: arms.off(0.2, -0.2) < 0.03, talk, "both arms where they were told")
    talk = arms.go(-0.6, 0.6)
    arms.move_until(lambda: arms.far(0.2, -0.2) > 0.1, talk, "both arms on their way back")
    # Another source of one arm's joints: a fault of that arm alone.
    arms.node.create_publisher(JointState, "left_arm/joint_states", 10)
    arms.until(lambda: arms.status.state == CommandStatus.STOPPED, talk, "a stop")
    assert "left_arm" in arms.status.stop_reason
    # The model goes on talking.
    arms.until(lambda: max(arms.speeds.values()) < 1e-3, talk, "both arms to come to rest")
    rest = dict(arms.joints)
    arms.idle(1.0, talk)
    for arm in ARMS:
        np.testing.assert_allclose(arms.joints[arm], rest[arm], atol=0.01)
    assert arms.moved("left_arm") > -0.5 and arms.moved("right_arm") < 0.5


@pytest.mark.parametrize("stamped", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_the_command_node_drives_the_base_which_stops_with_it(launched, stamped):
    messages = pytest.importorskip("nav_msgs.msg", reason="`make setup` installs nav_msgs")
    base = launched(lambda *words: Launched("base", *words), f"stamped:={stamped}", "scale:=1.0")
    heard: list = []
    base.node.create_subscription(messages.Odometry, "odom", heard.append, 10)
    dims = (DimSpec("linear_x", "m/s"), DimSpec("angular_z", "rad/s"))
    spec = ActionSpec((ActionPart("base", "base_twist", dims, "base_link"),))

    def talk() -> None:
        base.send(spec, np.array([0.25, 0.3]))

    def at():
        return heard[-1].pose.pose.position

    base.move_until(lambda: heard and at().x > 0.2, talk, "the base to move")
    assert heard[-1].twist.twist.linear.x == pytest.approx(0.25, abs=0.05)
    assert heard[-1].twist.twist.angular.z == pytest.approx(0.3, abs=0.1)
    answer = base.enabler.call_async(SetBool.Request(data=False))
    base.until(answer.done, talk, "an answer")
    base.until(lambda: abs(heard[-1].twist.twist.linear.x) < 0.01, talk, "the base to stop")
    rest = at()
    base.idle(1.0, talk)
    assert math.hypot(at().x - rest.x, at().y - rest.y) < 0.02
