"""Stand-ins for robosuite 1.4, mujoco and LIBERO, for a Python of their own.

A point goes where it is told. Sensors see it half a step late. A reset draws where the furniture
is, and the point's start beside it; a task's goal is reached at x >= 0.1 m, and something else is
there at x <= -0.1 m.
"""

import sys
from pathlib import Path

MUJOCO = """
__version__ = "2.3.7"

class MjData:
    def __init__(self, model):
        self.at, self.fingers = None, None

    def __copy__(self):
        other = MjData(None)
        other.at, other.fingers = self.at.copy(), self.fingers.copy()
        return other
"""
OBSERVABLES = """
def sensor(modality):
    return lambda function: function

class Observable:
    def __init__(self, name, sensor, sampling_rate, active):
        self.name, self.sensor = name, sensor
        assert sampling_rate == 20 and not active  # not among what `step` returns
"""
WRAPPER = """
import os, sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace
import mujoco, numpy as np
from libero.libero.envs.bddl_utils import robosuite_parse_problem

HOME = [0.0, 0.0, 0.5]
TURNED = np.array([-0.6, 0.0, 0.8, 0.0])  # w x y z, a quaternion whose w is below 0

class Data:
    def __init__(self):
        self._data = mujoco.MjData(None)
        self._data.at, self._data.fingers = np.zeros(3), np.array([0.02, -0.02])
        self.site_xmat = np.eye(3).reshape(1, 9)
    site_xpos = property(lambda self: self._data.at[None])
    qpos = property(lambda self: self._data.fingers)
    def get_body_xpos(self, name):
        return np.zeros(3)
    def get_body_xmat(self, name):
        return np.eye(3)
    def get_body_xquat(self, name):
        assert name == "hand"
        return TURNED

def dies(path):
    "Once where there is this file; always where it is no path."
    if os.path.isabs(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
    return True

class Env:
    control_freq, _visualizations = 20, ("grippers",)

    def __init__(self):
        gripper = SimpleNamespace(current_action=np.array([0.7]))
        model = SimpleNamespace(eef_name="hand")
        self.robots = [SimpleNamespace(
            eef_site_id=0, _ref_gripper_joint_pos_indexes=[0, 1],
            _ref_joint_pos_indexes=[0], gripper=gripper,
            robot_model=model)]
        self.observables, self.steps, self.log = {}, 0, []
        names = ("agentview", "robot0_eye_in_hand")
        shape = SimpleNamespace(
            camera_names=names, cam_fovy=np.array([45.0, 75.0]), _model=None,
            body_pos=np.array([HOME]), body_quat=np.array([[1.0, 0.0, 0.0, 0.0]]),
            body_name2id={"cabinet": 0}.__getitem__)
        self.fixtures_dict = {"cabinet": SimpleNamespace(root_body="cabinet")}
        root = ET.fromstring("<worldbody><body name='cabinet' pos='0 0 0.5'/></worldbody>")
        self.model = SimpleNamespace(worldbody=root)
        self.sim = SimpleNamespace(
            data=Data(), model=shape, render=self.render, forward=lambda: None)
        self.draw()

    def draw(self):
        body = self.sim.model.body_pos
        assert (body[0] == HOME).all()  # else what stands on furniture hangs in the air
        body[0, 1] = np.random.uniform()
        self.sim.data._data.at = np.array([0.0, body[0, 1], 0.0])

    def visualize(self, vis_settings):
        assert vis_settings == {"grippers": False}

    @property
    def observation_names(self):
        return set(self.observables)

    def add_observable(self, observable):
        self.observables[observable.name] = observable

    def see(self):
        for observable in self.observables.values():
            observable.sensor({})

    def step(self, action):
        self.steps += 1
        data = self.sim.data._data
        if self.memory and action[6] > 0:
            raise RuntimeError("the gripper remembers the episode before")
        data.fingers = np.array([0.04, -0.04]) if action[6] < 0 else np.array([0.0, 0.0])
        data.at += 0.025 * action[:3]
        self.see()
        data.at += 0.025 * action[:3]
        if self.steps == 13 and os.environ.get("DIE") and dies(os.environ["DIE"]):
            print("lost my bowl", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 9)

    @property
    def memory(self):
        return self.robots[0].gripper.current_action.any()

    def _eval_predicate(self, goal):
        assert goal[1] != self.parsed_problem["goal_state"][0][1]
        return np.bool_(self.sim.data._data.at[0] <= -0.1 + 1e-9)

    def _check_success(self):
        return np.bool_(self.sim.data._data.at[0] >= 0.1 - 1e-9)

    def render(self, camera_name, width, height):
        image = np.zeros((height, width, 3), np.uint8)  # the lowest row comes first
        image[0] = 1000 * self.sim.data._data.at[0] + 1
        image[:, 0, 1] = 200  # the left column
        return image

class ControlEnv:
    def __init__(self, bddl_file_name, use_camera_obs, has_offscreen_renderer, hard_reset,
                 control_freq, horizon):
        assert not use_camera_obs and not hard_reset and control_freq == 20 and horizon > 1000
        if "broken" in open(bddl_file_name).read():
            raise ValueError("Error opening file 'bowl.obj'")
        self.env = Env()
        self.env.parsed_problem = robosuite_parse_problem(bddl_file_name)

    def reset(self):
        env = self.env
        env.steps = 0
        env.draw()
        env.see()
        env.robots[0].gripper.current_action = np.array([0.7])

    def set_init_state(self, state):
        self.env.sim.data._data.at[0] = state[0]
        self.env.see()

    def close(self):
        pass
"""
BENCHMARK = """
import os
from types import SimpleNamespace
import numpy as np

class Suite:
    n_tasks = 10
    def get_task(self, i):
        return SimpleNamespace(name=f"t{i}", language=f"pick up bowl {i}")
    def get_task_bddl_file_path(self, i):
        return os.path.join(os.path.dirname(__file__), f"{i}.bddl")
    def get_task_init_states(self, i):
        return -0.001 * np.arange(50)[:, None] - 0.01 * i

def get_benchmark_dict():
    return dict.fromkeys(("libero_spatial", "libero_spatial_task"))

def get_benchmark(name):
    return Suite
"""
BDDL = """
def robosuite_parse_problem(path):
    bowls = ["akita_black_bowl_1", "akita_black_bowl_2"]
    began = [["on", bowls[0], "cookies_1"], ["on", bowls[1], "flat_stove_1_cook_region"]]
    goal = ["open", "drawer"] if path[-6] == "7" else ["on", bowls[0], "plate_1"]
    return {
        "language_instruction": ("Pick the Akita " + path[-6]).split(),
        "fixtures": {},
        "initial_state": began,
        "objects": {"akita_black_bowl": bowls, "plate": ["plate_1"]},
        "goal_state": [goal],
    }
"""


def write_other_python(folder: Path) -> Path:
    """An interpreter in this folder that has the stand-ins, which are files beside it."""
    for name, text in {
        "mujoco.py": MUJOCO,
        "robosuite/__init__.py": "__version__ = '1.4.0'",
        "robosuite/utils/__init__.py": "",
        "robosuite/utils/errors.py": "class RandomizationError(Exception): pass",
        "robosuite/utils/observables.py": OBSERVABLES,
        "libero/__init__.py": "",
        "libero/libero/__init__.py": "",
        "libero/libero/benchmark.py": BENCHMARK,
        "libero/libero/envs/__init__.py": "",
        "libero/libero/envs/bddl_utils.py": BDDL,
        "libero/libero/envs/env_wrapper.py": WRAPPER,
        **{f"libero/libero/{i}.bddl": "" for i in range(10)},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path
