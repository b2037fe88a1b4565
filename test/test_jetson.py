"""Tests that the Jetson launch file starts the promised nodes, topics and parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_inference.cli.launch_standin import read_launch_file
from vla_inference.ros.camera_node import CameraConfig
from vla_inference.ros.parameters import defaults

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch/jetson.launch.xml"


@pytest.mark.parametrize("robot", ["moveit_servo", "fzi_cartesian", "crisp"])
def test_camera_model_and_the_controllers_command_node(robot):
    given = {"model": "/models/mine", "robot": robot, "camera": "true", "image": "/eye/raw"}
    plan = read_launch_file(LAUNCH, given)
    camera, inference, command = plan.processes
    assert "image:=/eye/raw" in camera.remaps and "image:=/eye/raw" in inference.remaps
    assert any(str(p).endswith(f"robots/{robot}.yaml") for p in command.parameters)
    for process in plan.processes:
        profile = process.environment["FASTRTPS_DEFAULT_PROFILES_FILE"]
        assert Path(profile).is_file()
    # Nothing is set that a node does not have: rclpy would not tell.
    names = {k for p in camera.parameters if isinstance(p, dict) for k in p}
    assert names and names <= defaults(CameraConfig).keys()
    # Brought back after a crash, but not for ever where it cannot start.
    said = {k: v for p in inference.parameters if isinstance(p, dict) for k, v in p.items()}
    assert inference.respawn and said["end_on_failure"] is False
    without = read_launch_file(LAUNCH, {"model": "/models/mine"})
    assert len(without.processes) == 2
    servo = read_launch_file(LAUNCH, {"model": "/models/mine", "servo_api": "jazzy"})
    assert servo.processes[-1].command[3] == "/servo_node/switch_command_type"


JOINTS = ["joint_trajectory", "ros2_control_trajectory", "ros2_control_position"]


@pytest.mark.parametrize("robot", [*JOINTS, "follow_joint_trajectory"])
def test_controllers_of_joints_get_the_urdf_and_the_robots_own_settings(robot, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("/**:\n  ros__parameters:\n    command_rate: 40.0\n")
    given = {"model": "/models/mine", "robot": robot, "urdf": "/arm.urdf"}
    plan = read_launch_file(LAUNCH, {**given, "robot_config": str(mine)})
    parameters = [p for process in plan.processes[1:] for p in process.parameters]
    assert "/arm.urdf" in [v for p in parameters if isinstance(p, dict) for v in p.values()]
    assert str(mine) in map(str, parameters)
