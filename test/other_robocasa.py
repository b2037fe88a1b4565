"""Stand-ins for robosuite 1.5, mujoco and RoboCasa, for a Python of their own.

A point on a base: the hand goes where it is told, in the axes of the base, which drives and turns
as it is told. A reset draws the kitchen, the base's heading and the sentence from the
environment's generator. A task is done where the hand is 0.1 m or more above its start.
"""

import sys
from pathlib import Path

KITCHEN = "REGISTERED_KITCHEN_ENVS = dict.fromkeys(['OpenDrawer', 'CloseFridge', 'Dies', 'Fails'])"
REGISTRY = """
ATOMIC_TASK_DATASETS = {"OpenDrawer": {"horizon": 750}}
COMPOSITE_TASK_DATASETS = {"CloseFridge": {}}
"""
ENV_UTILS = """
import os, sys
from types import SimpleNamespace
import numpy as np

def create_env(env_name, robots, split, seed):
    assert robots == "PandaOmron" and split in ("target", "pretrain")
    print("robocasa chatters on standard output")
    return Env(env_name, split)

class State(np.ndarray):
    pass

class Env:
    control_freq = 20

    def __init__(self, name, split):
        self.name, self.split, self.use_camera_obs = name, split, True
        base = SimpleNamespace(correct_naming=lambda n: f"mobilebase0_{n}")
        self.robots = [SimpleNamespace(
            arms=["right"], eef_site_id={"right": 0}, robot_model=SimpleNamespace(base=base),
            _ref_gripper_joint_pos_indexes={"right": [0, 1]})]
        self.data = SimpleNamespace(
            site_xpos=np.zeros((1, 3)), site_xmat=np.eye(3).reshape(1, 9), qpos=np.zeros(2),
            get_body_xpos=self.base, get_body_xmat=lambda n: self.turn())
        model = SimpleNamespace(
            camera_names=("robot0_agentview_left", "robot0_eye_in_hand"),
            cam_fovy=np.array([60.0, 75.0]))
        self.sim = SimpleNamespace(data=self.data, model=model, render=self.render,
                                   get_state=lambda: self.data.site_xpos[0].copy().view(State),
                                   set_state_from_flattened=self.set_state, forward=print)

    def base(self, name):
        assert name == "mobilebase0_base"
        return self.at

    def turn(self):
        c, s = np.cos(self.heading), np.sin(self.heading)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])

    def reset(self):
        assert not self.use_camera_obs
        self.steps, self.at, self.data.qpos[:] = 0, np.array([1.0, -1.0, 0.0]), 0
        self.layout, self.heading = int(self.rng.integers(1, 60)), float(self.rng.uniform(-3, 3))
        self.side = str(self.rng.choice(["left", "right"]))
        self.data.site_xpos[0] = self.start = self.rng.uniform(size=3)
        return self._get_observations()

    def get_ep_meta(self):
        return {"lang": f"Open the {self.side} drawer.", "layout_id": self.layout,
                "style_id": {"a": "style of one's own"}}

    def step(self, action):
        assert action.shape == (12,) and (np.abs(action) <= 1).all()
        self.steps += 1
        if self.name == "Dies" and self.steps == 3:
            print("lost my kitchen", file=sys.stderr, flush=True)
            os.kill(os.getpid(), 9)
        if self.name == "Fails":
            raise RuntimeError("no sink")
        assert (action[11] > 0) == bool(np.abs(action[7:11]).any())
        self.at = self.at + self.turn() @ [0.05 * action[7], 0.05 * action[8], 0]
        self.heading += 0.05 * action[9]
        self.data.site_xpos[0] += self.turn() @ (0.05 * action[:3])
        self.data.qpos[:] = 0.02 - 0.02 * action[6], 0.02 * action[6] - 0.02
        return self._get_observations(), 0.0, False, {}

    def _get_observations(self, force_update=False):
        quat = [0, 0, np.sin(self.heading / 2), np.cos(self.heading / 2)]
        return {"robot0_base_pos": self.at, "robot0_base_quat": np.array(quat),
                "robot0_base_to_eef_pos": self.turn().T @ (self.data.site_xpos[0] - self.at),
                "robot0_base_to_eef_quat": np.array([0, 0, 0, 1.0]),
                "robot0_gripper_qpos": self.data.qpos.copy()}

    def _check_success(self):
        return np.bool_(self.data.site_xpos[0][2] >= self.start[2] + 0.1 - 1e-9)

    def render(self, camera_name, width, height):
        image = np.zeros((height, width, 3), np.uint8)
        image[0] = 255 if camera_name == "robot0_agentview_left" else 100  # the lowest row
        return image

    def set_state(self, state):
        self.data.site_xpos[0] = state

    def close(self):
        pass
"""


def write_other_python(folder: Path) -> Path:
    """An interpreter in this folder that has the stand-ins, which are files beside it."""
    package = folder / "robocasa"
    for path, text in {
        folder / "mujoco.py": "__version__ = '3.3.1'",
        folder / "robosuite" / "__init__.py": "__version__ = '1.5.2'",
        package / "__init__.py": "__version__ = '1.0.1'",
        package / "environments" / "__init__.py": "",
        package / "environments" / "kitchen" / "__init__.py": "",
        package / "environments" / "kitchen" / "kitchen.py": KITCHEN,
        package / "utils" / "__init__.py": "",
        package / "utils" / "dataset_registry.py": REGISTRY,
        package / "utils" / "env_utils.py": ENV_UTILS,
        package / "models" / "assets" / "textures" / "README": "",
        package / "models" / "assets" / "objects" / "README": "",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python
