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
