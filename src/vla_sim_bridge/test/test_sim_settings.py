"""Tests of the simulation node's parameters and their checks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from vla_inference.errors import VlaError
from vla_inference.inputs.robot_state import axis_angle
from vla_inference.policies.base import Needs
from vla_sim_bridge.cli import rollout
from vla_sim_bridge.ros.sim_settings import SimSettings
from vla_sim_bridge.ros.sim_topics import pose_message


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"episodes": 0}, "0 episodes were requested; ask for at least 1"),
        ({"task": "Stak_D0"}, "no task 'Stak_D0'; did you mean Stack_D0"),
        ({"horizon": -1}, "horizon is -1; give at least 1"),
        ({"language": "french"}, "language is 'french'; give train or held-out or free"),
        ({"execute_steps": -1}, "execute_steps is -1"),
        ({"seed": -5}, "seed is -5"),
        ({"width": 8}, "width is 8"),
        ({"height": 100_000}, "height is 100000; give 16 to 4096 pixels"),
        ({"action_timeout": 0.0}, "action_timeout is 0.0; give more than 0"),
        ({"control_rate": float("nan")}, "control_rate is nan"),
        ({"discovery_time": -1.0}, "discovery_time is -1.0"),
        (
            {"task": "Rover_D0", "driven_by": "twist"},
            "Rover_D0 is driven by twist; a rover",
        ),
        ({"driven_by": "base_twist"}, "Stack_D0 is driven by base_twist; only a rover is"),
        ({"task": "Rover_D0", "state": True}, "state is true, Rover_D0 has no arm"),
        ({"episodes": "many"}, "parameter episodes is 'many'; give a whole number"),
        ({"episodes": 2.5}, "parameter episodes is 2.5; give a whole number"),
        ({"lock_step": "yes"}, "parameter lock_step is 'yes'; give true or false"),
        ({"episodes": True}, "parameter episodes is True"),
        ({"history": 1, "history_interval": 0.12}, "0.12 s apart, steps last 0.05 s"),
        ({"second_camera": "agentview"}, "both cameras are agentview; name another"),
        ({"state": True, "driven_by": "twist"}, "set state: false"),
        ({"auto_enable": False}, "auto_enable is false; only what is driven by commands"),
    ],
)
def test_refusals_name_the_parameter_and_the_remedy(values, complaint):
    with pytest.raises(VlaError) as caught:
        SimSettings.from_values(values)
    assert complaint in str(caught.value)


def test_loose_types_that_mean_the_same_pass():
    settings = SimSettings.from_values({"action_timeout": 5, "output": 7, "task": "stack_d3"})
    assert settings.action_timeout == 5.0 and settings.output == "7"
    assert settings.task == "Stack_D3"


def test_a_folder_with_results_is_not_overwritten(tmp_path):
    settings = SimSettings(output=str(tmp_path))
    assert settings.output_folder() == tmp_path
    (tmp_path / "results.json").write_text(json.dumps({}))
    with pytest.raises(VlaError, match="contains results already; choose another"):
        settings.output_folder()


def test_without_a_folder_the_task_and_time_name_one():
    assert SimSettings(task="Stack_D1").output_folder().name.startswith("Stack_D1_2")


def test_without_a_horizon_the_task_has_its_own():
    assert SimSettings.from_values({"task": "Stack_D1"}).horizon == 200
    assert SimSettings.from_values({"task": "Stack_D1", "horizon": 30}).horizon == 30


def test_a_chunk_has_as_many_steps_as_are_to_be_executed():
    assert SimSettings().steps_of(2) == 2 and SimSettings().steps_of(16) == 4
    with pytest.raises(VlaError, match="chunks have 2; give 1 to 2"):
        SimSettings(execute_steps=3).steps_of(2)
    with pytest.raises(VlaError, match="chunk has no steps"):
        SimSettings().steps_of(0)


@pytest.mark.parametrize(
    ("needs", "second", "state", "heard"),
    [
        (Needs(1, 0), "", False, {}),
        (Needs(2, 0), "robot0_eye_in_hand", False, {"cameras": ["image", "image_wrist"]}),
        (
            Needs(4, 0, history=1, interval=0.2),
            "robot0_eye_in_hand",
            False,
            {"cameras": ["image", "image_wrist", "image_past1", "image_wrist_past1"]},
        ),
        (
            Needs(1, 8),
            "",
            True,
            {
                "state": ["position", "axis_angle", "joints"],
                "joint_names": ["finger_joint1", "finger_joint2"],
            },
        ),
    ],
)
def test_a_model_is_given_the_cameras_and_the_state_that_it_needs(
    tmp_path, monkeypatch, needs, second, state, heard
):
    """The rest of its parameters stand as in the file that ships."""
    shipped = {"cameras": ["image"], "state": [""], "joint_names": [""], "history": 0}
    (tmp_path / "inference.yaml").write_text(json.dumps({"/**": {"ros__parameters": shipped}}))
    monkeypatch.setattr(rollout, "share_folders", lambda *_: [tmp_path])
    settings = SimSettings()
    made = rollout.give_what_it_needs(settings, needs, tmp_path)
    assert (settings.second_camera, settings.state) == (second, state)
    assert (settings.history, settings.needs) == (needs.history, replace(needs, state=0))
    if heard:
        text = yaml.safe_load(Path(made["inference_config"]).read_text())
        assert text["/**"]["ros__parameters"] == {**shipped, **heard}
    else:
        assert made == {}


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(0.01, 6.2))
def test_a_pose_says_the_same_axis_angle_up_to_a_full_turn(axis, angle):
    assume(np.linalg.norm(axis) > 0.1)
    turn = angle * np.array(axis) / np.linalg.norm(axis)
    pose = pose_message(np.concatenate([[0.1, 0.2, 0.3], turn, [0, 0]])).pose
    quaternion = [getattr(pose.orientation, n) for n in "xyzw"]
    np.testing.assert_allclose(axis_angle(quaternion), turn, atol=1e-9)
