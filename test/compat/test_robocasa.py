"""Our bridge with RoboCasa's own code, under the Python in VLA_ROBOCASA_PYTHON.

Its assets are not on a package index: where there are none, stand-ins take their place (textures,
objects and kitchens; see `robocasa_assets.py`). Tasks, rules, sentences, cameras and the robot are
the package's.
"""

import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from elsewhere import HIDDEN, interpreter

from vla_inference.episodes.robocasa import STATE, from_robocasa, to_robocasa
from vla_sim_bridge.envs.protocol import make_world
from vla_sim_bridge.envs.renderer import WAY
from vla_sim_bridge.envs.robocasa_package.environment import PYTHON_VARIABLE
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_training.datasets import open_dataset

CAMERAS = ("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand")
DRAWN = {"MUJOCO_GL": WAY, "PYOPENGL_PLATFORM": WAY}
# A demonstration as the package's collection scripts leave it: twelve numbers, ep_meta, its names.
COLLECT = """
import json, sys
import h5py, numpy as np
from robocasa.utils.env_utils import create_env

out, state = sys.argv[1], sys.argv[2].split(",")
env = create_env("CloseDrawer", split="target", seed=3, camera_widths=32, camera_heights=32)
obs, rows, rng = env.reset(), [], np.random.default_rng(0)
actions = rng.uniform(-0.5, 0.5, (4, 12))
actions[:, 7:11], actions[:, 11], actions[:, 6] = 0, -1, 1
for action in actions:
    rows.append(obs)
    obs = env.step(action)[0]
with h5py.File(out, "w") as file:
    data = file.create_group("data")
    kwargs = {"robots": "PandaOmron", "control_freq": 20,
              "controller_configs": env.robot_configs[0]["composite_controller_config"]}
    data.attrs["env_args"] = json.dumps({"env_name": "CloseDrawer", "type": 1,
                                         "env_version": "1.5.2", "env_kwargs": kwargs})
    demo = data.create_group("demo_0")
    demo.attrs["ep_meta"] = json.dumps(env.get_ep_meta())
    demo["actions"] = actions
    for name in [*state, "robot0_agentview_left_image"]:
        images = name.endswith("_image")
        demo["obs/" + name] = np.stack([r[name][::-1] if images else r[name] for r in rows])
"""


@pytest.fixture(scope="module", autouse=True)
def assets():
    """What stands for the assets: "assets" or "stand-ins"."""
    script = Path(__file__).with_name("robocasa_assets.py")
    return run(script).splitlines()[-1]


def run(script: Path, *arguments: object) -> str:
    env = {k: v for k, v in os.environ.items() if k not in HIDDEN} | DRAWN
    command = [interpreter(PYTHON_VARIABLE), str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def world():
    made = make_world("robocasa/CloseDrawer", CAMERAS, 64, 48)
    yield made
    made.close()


def test_an_episode_follows_from_its_seed_and_replays_to_the_bit(world):
    told = []
    for index in (0, 1, 0):
        run = EpisodeRun(world, 7, index, world.task.horizon)
        first = world.observation()
        for action in np.random.default_rng(0).uniform(-0.02, 0.02, (6, 7)):
            run.step(action)
        told.append((world.instruction, world.kitchen, world.get_mujoco_state().tolist()))
        assert first.state.shape == (16,) and set(first.images) == set(CAMERAS)
        for image in first.images.values():
            assert image.shape == (48, 64, 3) and image.std() > 5
    assert told[0] == told[2] and told[0] != told[1]
    assert told[0][0].startswith("Close the ") and told[0][0].endswith(" drawer.")
    assert world.task.horizon > 200


def test_the_hand_goes_where_it_is_told_and_the_base_less_its_friction_as_fast(world):
    world.start_episode("evaluate", 7, 2)
    before = world.eef_pose()[:3, 3]
    for _ in range(10):
        world.step(np.array([0, 0, 0.05, 0, 0, 0, 1.0]))
    moved = world.eef_pose()[:3, 3] - before
    assert moved[2] > 0.08 and np.abs(moved[:2]).max() < 0.2 * moved[2]
    for _ in range(15):  # away from the counter, until it is at speed
        world.step(np.array([0, 0, 0, 0, 0, 0, 1.0, -0.6, 0, 0, 0]))
    start = world.base_position()
    for _ in range(20):
        world.step(np.array([0, 0, 0, 0, 0, 0, 1.0, -0.6, 0, 0, 0]))
    assert np.linalg.norm(world.base_position() - start) == pytest.approx(0.6 - 0.25, rel=0.1)


def test_success_is_the_packages_own_rule(world):
    """The drawer's joints are set as the rule asks, and back."""
    world.start_episode("evaluate", 7, 0)
    open_state = world.get_mujoco_state()
    assert not world.hold().success
    closed = open_state.copy()
    moved = np.flatnonzero(np.abs(closed[1:40]) > 0.2)  # time, then positions
    outcomes = set()
    for index in moved:
        trial = open_state.copy()
        trial[1 + index] = 0.0
        world.set_mujoco_state(trial)
        outcomes.add(bool(world.succeeded()))
    assert outcomes == {True, False}  # one of these joints is the drawer's
    world.set_mujoco_state(open_state)
    assert not world.succeeded()


def test_its_data_is_read_as_its_environment_takes_it(tmp_path):
    script = tmp_path / "collect.py"
    script.write_text(COLLECT)
    run(script, tmp_path / "demo.hdf5", ",".join(STATE))
    data = open_dataset(tmp_path / "demo.hdf5")
    with h5py.File(tmp_path / "demo.hdf5") as file:
        raw = file["data/demo_0/actions"][:]
    np.testing.assert_array_equal(data.actions(0), from_robocasa(raw))
    np.testing.assert_allclose(to_robocasa(data.actions(0)), raw, atol=1e-12)
    assert data[0].states.shape == (4, 16) and data.cameras() == ["robot0_agentview_left"]
    assert data[0].instructions[0].startswith("Close the ")
