"""Tests with a real robosuite 1.4, under the Python in VLA_TEST_ROBOSUITE14_PYTHON.

The `mimicgen` it finds is a stand-in: robosuite's own Stack under the package's names.
"""

import numpy as np
import pytest
from elsewhere import interpreter

from vla_sim_bridge.envs.mimicgen_package.process import PYTHON_VARIABLE
from vla_sim_bridge.envs.protocol import make_world
from vla_sim_bridge.evaluation.episode import EpisodeRun

MIMICGEN = """
from robosuite.environments.manipulation.stack import Stack

class Stack_D0(Stack):
    pass

class Stack_D1(Stack):
    pass
"""
# Joints 7, fingers 2, then position and quaternion of the red and of the green block
RED, GREEN = slice(10, 13), slice(17, 20)
HOVER, GRASP, ON_TOP = 0.10, 0.0, 0.05  # m of the grip site over a block


@pytest.fixture
def world(tmp_path, monkeypatch):
    (tmp_path / "mimicgen.py").write_text(MIMICGEN)
    path = tmp_path / "python"
    python = interpreter("VLA_TEST_ROBOSUITE14_PYTHON")
    path.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {python} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(path))
    sim = make_world("mimicgen/Stack_D1", ("agentview", "robot0_eye_in_hand"), 96, 64)
    yield sim
    sim.close()


def stack(run):
    """By script, to the episode's end: the actions, and what the cameras saw last."""
    sim, actions, seen = run.sim, [], None
    start = sim.get_mujoco_state()
    red, green = start[RED], start[GREEN]
    legs = [
        (red, HOVER, 1.0, 25),
        (red, GRASP, 1.0, 25),
        (red, GRASP, 0.0, 10),
        (red, HOVER, 0.0, 20),
        (green, HOVER, 0.0, 30),
        (green, ON_TOP, 0.0, 25),
        (green, ON_TOP, 1.0, 10),
        (green, HOVER + ON_TOP, 1.0, 30),
    ]
    for block, height, gripper, steps in legs:
        for _ in range(steps):
            error = block + np.array([0, 0, height]) - sim.eef_pose()[:3, 3]
            actions.append(np.array([*np.clip(error, -0.05, 0.05), 0, 0, 0, gripper]))
            if run.step(actions[-1]):
                return actions, sim.observation()
    return actions, seen


def test_our_actions_stack_there_and_their_replay_is_the_same_to_the_bit(world):
    run = EpisodeRun(world, 5, 0, 400)
    first = world.observation()
    actions, last = stack(run)
    result = run.result()
    assert (result.outcome, result.task) == ("success", "mimicgen/Stack_D1")
    assert set(last.images) == {"agentview", "robot0_eye_in_hand"}
    for name, image in last.images.items():
        assert image.shape == (64, 96, 3) and image.std() > 10
        assert np.abs(image.astype(int) - first.images[name]).mean() > 1
    end = world.get_mujoco_state()
    again = EpisodeRun(world, 5, 0, 400)
    for action in actions:
        again.step(action)
    assert again.result() == result
    np.testing.assert_array_equal(world.get_mujoco_state(), end)
    # upright: the arm comes into the image from above, the near edge of the table is below
    assert world.render("agentview")[:8].mean() < world.render("agentview")[-8:].mean()
