"""The parameter and launch files for controllers: understood by the node, and what they remap."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rclpy
import yaml
from geometry_msgs.msg import TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from std_srvs.srv import SetBool

from vla_inference.ik_node import PARAMETERS as IK_PARAMETERS
from vla_inference.launch_standin import read_launch_file
from vla_inference.ros import qos
from vla_inference.ros.command_parameters import PARAMETERS, read_outputs, read_settings
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg

ROOT = Path(__file__).resolve().parent.parent
ROBOTS = sorted(p.stem for p in (ROOT / "config/robots").glob("*.yaml"))
TARGETS = {
    "moveit_servo": "delta_twist:=/servo_node/delta_twist_cmds",
    "fzi_cartesian": "target_pose:=/cartesian_motion_controller/target_frame",
    "crisp": "target_pose:=/target_pose",
    "joint_trajectory": "joint_trajectory:=/joint_trajectory_controller/joint_trajectory",
}
SIMULATED = "robosuite"  # has a launch file of the whole loop
_domains = itertools.count(os.getpid() + 50)


def parameters(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["/**"]["ros__parameters"]


def test_the_parameter_file_says_what_the_node_would_do_without_it():
    said = parameters(ROOT / "config/command.yaml")
    assert said.pop("autostart") is True
    assert said == {name: default for name, (default, _, _) in PARAMETERS.items()}
    assert all(type(said[n]) is type(d) for n, (d, _, _) in PARAMETERS.items())


def test_the_ik_nodes_parameter_file_says_what_it_would_do_without_it():
    said = parameters(ROOT / "config/ik.yaml")
    assert said.pop("autostart") is True
    assert said == {name: default for name, (default, _, _) in IK_PARAMETERS.items()}


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_node_understands_a_robots_parameters(robot):
    values = {name: default for name, (default, _, _) in PARAMETERS.items()}
    changes = parameters(ROOT / f"config/robots/{robot}.yaml")
    assert changes.keys() <= values.keys()
    assert all(type(values[name]) is type(v) for name, v in changes.items())
    values |= changes
    settings, outputs = read_settings(values.__getitem__), read_outputs(values.__getitem__)
    assert 20 <= settings.rate <= 50
    assert outputs.pose != outputs.twist
    assert settings.needs_pose == (outputs.pose or settings.limits.workspace is not None)


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


def test_servo_hears_what_it_takes_once_enabled(monkeypatch):
    """Launched as a user does; the listener keeps Servo's rules."""
    domain = 1 + next(_domains) % 100
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_inference.cli", "launch",
         str(ROOT / "launch/moveit_servo.launch.xml"), "scale:=0.5"],
        env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
    )  # fmt: skip
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    servo = rclpy.create_node("servo", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(servo)
    heard: list[tuple[float, TwistStamped]] = []

    def now() -> float:
        return 1e-9 * servo.get_clock().now().nanoseconds

    servo.create_subscription(
        TwistStamped, "/servo_node/delta_twist_cmds", lambda m: heard.append((now(), m)), 100
    )
    actions = servo.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
    enabler = servo.create_client(SetBool, "/command/enable")

    def until(condition) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end and process.poll() is None
            executor.spin_once(timeout_sec=0.02)

    try:
        until(enabler.service_is_ready)
        until(actions.get_subscription_count)
        enabled = enabler.call_async(SetBool.Request(data=True))
        until(enabled.done)
        assert enabled.result().success, enabled.result().message
        begun = now()
        stamp = Time(seconds=begun).to_msg()
        step = [0.004, 0, 0, 0, 0, 0, 1.0]
        actions.publish(chunk_to_msg(ActionChunk([step] * 5, eef_delta_spec(dt=0.1)), stamp))
        until(lambda: len(heard) > 10 and not heard[-1][1].twist.linear.x)
        assert max(m.twist.linear.x for _, m in heard) == pytest.approx(0.02, rel=1e-3)
        assert {m.header.frame_id for _, m in heard} == {"base_link"}
        # Servo takes what is 0.1 s old at the most: each is stamped when it is published.
        times = [1e-9 * Time.from_msg(m.header.stamp).nanoseconds for _, m in heard]
        assert times[0] >= begun and times == sorted(set(times))
        assert all(t <= arrived for t, (arrived, _) in zip(times, heard, strict=True))
        # Ctrl-C in the midst of a motion: the last thing it says is a halt.
        heard.clear()
        stamp = Time(seconds=now()).to_msg()
        actions.publish(chunk_to_msg(ActionChunk([step] * 200, eef_delta_spec(dt=0.1)), stamp))
        until(lambda: len(heard) > 5)
        assert heard[-1][1].twist.linear.x
        process.send_signal(signal.SIGINT)
        end = time.monotonic() + 15
        while heard[-1][1].twist.linear.x and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.02)
        assert not heard[-1][1].twist.linear.x
        assert len(heard) < 900  # of 1000 that the motion would have had
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(30)
        executor.shutdown()
        servo.destroy_node()
        rclpy.shutdown(context=context)
    assert status in (0, 130)
