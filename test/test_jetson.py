"""The Jetson's launch file comes to the nodes, topics and parameters that it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vla_inference.launch_standin import read_launch_file
from vla_inference.ros.inference_parameters import AT_CONFIGURE, AT_ONCE

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
    without = read_launch_file(LAUNCH, {"model": "/models/mine"})
    assert len(without.processes) == 2


def test_the_parameter_file_says_what_the_node_would_do_without_it():
    said = yaml.safe_load((ROOT / "config/inference.yaml").read_text())["/**"]["ros__parameters"]
    assert said.pop("autostart") is True
    assert said == {n: default for n, (default, _, _) in {**AT_CONFIGURE, **AT_ONCE}.items()}
