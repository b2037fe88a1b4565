"""Tests of the parameter and launch files for controllers."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
import yaml
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.time import Time
from sensor_msgs.msg import JointState
from six_axes import HOME, urdf
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from vla_inference.cli.launch_standin import read_launch_file
from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.command.outputs.base import MOTION
from vla_inference.ros.command.outputs.motion import PoseOutput, TwistOutput
from vla_inference.ros.command.outputs.registry import chosen
from vla_inference.ros.command.parameters import command_configs, read_settings
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.ros.parameters import defaults
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "config/robots").glob("*.yaml"))
TARGETS = {
    "moveit_servo": "delta_twist:=/servo_node/delta_twist_cmds",
    "fzi_cartesian": "target_pose:=/cartesian_motion_controller/target_frame",
    "crisp": "target_pose:=/target_pose",
    "joint_trajectory": "joint_trajectory:=/joint_trajectory_controller/joint_trajectory",
}
GRIPPERS = {robot: "/gripper_controller/commands" for robot in TARGETS}
GRIPPERS["crisp"] = "/gripper/gripper_position_controller/commands"
SIMULATED = "robosuite"  # has a launch file of the whole loop
_domains = itertools.count(os.getpid() + 50)


def parameters(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["/**"]["ros__parameters"]


ROVER = "rover"  # the simulated one: its topics are our own
BY_PARTS = [f.stem for f in FILES if "parts" in parameters(f)]
ROBOTS = [f.stem for f in FILES if f.stem not in BY_PARTS]


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_node_understands_a_robots_parameters(robot):
    values = defaults(*command_configs())
    changes = parameters(ROOT / f"config/robots/{robot}.yaml")
    assert changes.keys() <= values.keys()
    assert all(type(values[name]) is type(v) for name, v in changes.items())
    values |= changes
    settings, outputs = read_settings(values.__getitem__), chosen(MOTION, values.__getitem__)
    assert 20 <= settings.rate <= 50
    assert (PoseOutput in outputs) != (TwistOutput in outputs)
    assert settings.needs_pose == (PoseOutput in outputs or settings.limits.workspace is not None)


@pytest.mark.parametrize("robot", sorted(set(ROBOTS) - {SIMULATED}))
def test_a_robots_launch_file_remaps_our_topics_to_its_own(robot):
    given = {"robot_config": str(ROOT / f"config/robots/{robot}.yaml")}
    if robot == "joint_trajectory":
        given |= {"robot": "/arm.urdf", "ik_config": str(ROOT / "config/ik.yaml")}
    plan = read_launch_file(ROOT / f"launch/{robot}.launch.xml", given)
    command, last = plan.processes[0], plan.processes[-1]
    assert TARGETS[robot] in last.remaps
    files = [p for p in command.parameters if isinstance(p, Path)]
    assert [f.name for f in files] == ["command.yaml", f"{robot}.yaml"]


@pytest.mark.parametrize("robot", sorted(set(BY_PARTS) - {ROVER}))
def test_the_node_drives_each_part_of_a_robot_with_what_its_launch_file_says(robot, monkeypatch):
    """Both files together configure a node, whose topics are the controller's."""
    given = {"robot_config": str(ROOT / f"config/robots/{robot}.yaml"), "scale": "0.5"}
    if robot != "diff_drive":
        given["robot"] = _description(robot)
    if robot == "isaac_franka":
        given["model"] = "m"
    plan = read_launch_file(ROOT / f"launch/{robot}.launch.xml", given).processes[0]
    assert [f.name for f in plan.parameters if isinstance(f, Path)][-1] == f"{robot}.yaml"
    values = _flat(parameters(ROOT / f"config/robots/{robot}.yaml"))
    for each in plan.parameters:
        values |= each if isinstance(each, dict) else {}
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=1 + next(_domains) % 100)
    node = CommandNode(
        context=context,
        parameter_overrides=[Parameter(k, value=v) for k, v in values.items()],
        cli_args=["--ros-args", *plan.remaps],
    )
    try:
        assert node.start(), node.failure
        topics = {p.topic_name for p in node.publishers} | {
            s.topic_name for s in node.subscriptions
        }
        # Those of a part that were left as they are have nobody at their other end.
        assert not [t for t in topics if t.split("/")[1] in values["parts"]]
        assert set(values["parts"]) == set(node.commander.parts)
    finally:
        node.trigger_shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)


def _flat(values: dict, at: str = "") -> dict:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return found


def _description(robot: str) -> str:
    """A URDF with the joints that a robot's file names, and nothing else."""
    values = _flat(parameters(ROOT / f"config/robots/{robot}.yaml"))
    joints = [j for name, v in values.items() if name.endswith(".joints") for j in v]
    limit = '<limit lower="-2" upper="2" effort="1" velocity="1"/>'
    return (
        '<robot name="it">'
        + "".join(f'<joint name="{j}" type="revolute">{limit}</joint>' for j in joints)
        + "</robot>"
    )


@pytest.mark.parametrize("path", ["twist", "pose"])
def test_the_simulated_robot_hears_what_the_command_node_says(path):
    robot = ROOT / f"config/robots/{SIMULATED}.yaml"
    arguments = {"path": path, "robot_config": str(robot)}
    plan = read_launch_file(ROOT / f"launch/{SIMULATED}.launch.xml", arguments)
    values = [
        {k: v for p in process.parameters if isinstance(p, dict) for k, v in p.items()}
        for process in plan.processes
    ]
    assert [v["use_sim_time"] for v in values[:2]] == [True, True]
    command, sim = values[1:]
    assert (command["publish_twist"], command["publish_pose"]) == (path == "twist", path == "pose")
    assert sim["driven_by"] == path and sim["lock_step"] is command["lock_step"] is True


class Arm:
    """A launch file started as a user does it, and the controller that it is for."""

    def __init__(self, robot: str, *words: str):
        number = 1 + next(_domains) % 100
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vla_inference.cli.main",
                "launch",
                str(ROOT / f"launch/{robot}.launch.xml"),
                "scale:=0.5",
                *words,
            ],
            env={**os.environ, "ROS_DOMAIN_ID": str(number)},
        )
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=number)
        self.node = rclpy.create_node("controller", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.heard: list[tuple[float, Any]] = []
        self.grippers: list[float] = []
        self.actions = self.node.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
        self.enabler = self.node.create_client(SetBool, "/command/enable")
        self.node.create_subscription(
            Float64MultiArray, GRIPPERS[robot], lambda m: self.grippers.extend(m.data), 10
        )

    def now(self) -> float:
        return 1e-9 * self.node.get_clock().now().nanoseconds

    def hear(self, kind: Any, topic: str) -> None:
        self.node.create_subscription(
            kind, topic, lambda m: self.heard.append((self.now(), m)), 100
        )

    def tell(self, topic: str, make: Callable[[], Any]) -> None:
        """Publish what `make` gives, 20 times a second."""
        publisher = self.node.create_publisher(type(make()), topic, 10)
        self.node.create_timer(0.05, lambda: publisher.publish(make()))

    def spin(self) -> None:
        self.executor.spin_once(timeout_sec=0.02)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None
            self.spin()

    def enable(self) -> None:
        self.until(self.enabler.service_is_ready)
        self.until(self.actions.get_subscription_count)

        def enabled() -> bool:
            self.act(0.0)  # a model answers, and wants nothing yet
            answer = self.enabler.call_async(SetBool.Request(data=True))
            self.until(answer.done)
            return answer.result().success

        self.until(enabled)

    def act(self, x: float = 0.004) -> None:
        """A chunk: 0.02 m ahead in half a second."""
        steps = [[x, 0, 0, 0, 0, 0, 1.0]] * 5
        stamp = Time(seconds=self.now()).to_msg()
        self.actions.publish(chunk_to_msg(ActionChunk(steps, eef_delta_spec(dt=0.1)), stamp))

    def close(self) -> int:
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(10)
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)
        return status


@pytest.fixture
def arm(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    made = []

    def make(*words: str) -> Arm:
        made.append(Arm(*words))
        return made[-1]

    yield make
    assert all(a.close() in (0, 130) for a in made)


def test_servo_hears_what_it_takes_once_enabled(arm):
    """The listener keeps Servo's rules."""
    servo = arm("moveit_servo")
    heard = servo.heard
    servo.hear(TwistStamped, "/servo_node/delta_twist_cmds")
    servo.enable()
    servo.act()
    servo.until(lambda: len(heard) > 10 and not heard[-1][1].twist.linear.x)
    assert max(m.twist.linear.x for _, m in heard) == pytest.approx(0.02, rel=1e-3)
    assert servo.grippers == [1.0]
    for arrived, msg in heard:
        age = arrived - 1e-9 * Time.from_msg(msg.header.stamp).nanoseconds
        assert msg.header.frame_id == "base_link" and 0 <= age < 0.1
    # Ctrl-C in the midst of a motion: the last thing it says is a halt.
    heard.clear()
    servo.act()
    servo.until(lambda: len(heard) > 5)
    assert heard[-1][1].twist.linear.x
    servo.process.send_signal(signal.SIGINT)
    end = time.monotonic() + 5
    while heard[-1][1].twist.linear.x and time.monotonic() < end:
        servo.spin()
    assert not heard[-1][1].twist.linear.x
    assert len(heard) < 20  # of 25 that the motion would have had


@pytest.mark.parametrize(
    ("robot", "target", "pose", "frame"),
    [
        (
            "fzi_cartesian",
            "/cartesian_motion_controller/target_frame",
            "/cartesian_motion_controller/current_pose",
            "base_link",
        ),
        ("crisp", "/target_pose", "/current_pose", "base"),
    ],
)
def test_a_controller_of_target_poses_hears_what_it_takes(arm, robot, target, pose, frame):
    """FZI's drops another frame than its own, CRISP all while there is a second publisher."""
    controller = arm(robot)
    heard = controller.heard

    def here() -> PoseStamped:
        msg = PoseStamped()
        msg.header.frame_id, msg.header.stamp = frame, Time(seconds=controller.now()).to_msg()
        msg.pose.orientation.w = 1.0
        msg.pose.position.x = heard[-1][1].pose.position.x if heard else 0.4
        return msg

    controller.hear(PoseStamped, target)
    controller.tell(pose, here)
    controller.enable()
    controller.act()

    def held() -> bool:
        return len(heard) > 10 and heard[-1][1].pose == heard[-2][1].pose

    controller.until(held)
    assert controller.node.count_publishers(target) == 1 and controller.grippers == [1.0]
    way = [m.pose.position.x for _, m in heard]
    assert way == sorted(way) and 0.4 < way[0] < 0.402
    assert 0.405 < way[-1] < 0.4101  # less what had passed when the chunk came
    for arrived, msg in heard:
        q, stamp = msg.pose.orientation, Time.from_msg(msg.header.stamp).nanoseconds
        assert msg.header.frame_id == frame and 0 <= arrived - 1e-9 * stamp < 0.1
        assert math.hypot(q.x, q.y, q.z, q.w) == pytest.approx(1)


def test_a_controller_of_joints_hears_trajectories_of_one_point(arm, tmp_path):
    """Jazzy's refuses a last point that moves, and a stamp of another time."""
    path = tmp_path / "arm.urdf"
    path.write_text(urdf())
    controller = arm("joint_trajectory", f"robot:={path}")
    heard, names = controller.heard, [f"j{i}" for i in range(6)]
    controller.hear(JointTrajectory, "/joint_trajectory_controller/joint_trajectory")

    def measure() -> JointState:
        msg = JointState(name=names, position=HOME.tolist())
        msg.header.stamp = controller.node.get_clock().now().to_msg()
        return msg

    controller.tell("/joint_states", measure)
    controller.enable()
    controller.act()
    controller.until(lambda: len(heard) > 10)
    for _, msg in heard:
        (point,) = msg.points
        assert msg.joint_names == names and msg.header.stamp == Time().to_msg()
        assert not point.velocities and point.time_from_start.nanosec == 100_000_000
        assert np.abs(np.array(point.positions) - HOME).max() < 0.2
    assert list(heard[-1][1].points[0].positions) != HOME.tolist()


@pytest.mark.parametrize(
    ("api", "call"),
    [
        (
            "jazzy",
            ["/arm/switch_command_type", "moveit_msgs/srv/ServoCommandType", "{command_type: 1}"],
        ),
        ("humble", ["/arm/start_servo", "std_srvs/srv/Trigger"]),
        ("none", None),
    ],
)
def test_servo_is_made_to_take_twists_by_its_distributions_api(api, call):
    given = {"servo_api": api, "servo_node": "/arm"}
    _, *more = read_launch_file(ROOT / "launch/moveit_servo.launch.xml", given).processes
    assert [p.command for p in more] == ([["ros2", "service", "call", *call]] if call else [])
