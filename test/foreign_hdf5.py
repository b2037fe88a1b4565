"""Small HDF5 files in the layouts of robomimic, LIBERO, Isaac Lab, RoboCasa and ALOHA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from foreign_files import jpeg, osc, robosuite_actions, scene
from scipy.spatial.transform import Rotation

from vla_inference.episodes.hdf5 import write_columns, write_header

COUNT = 8
SENTENCE = "open the top drawer of the cabinet"


def scenes(count: int = COUNT) -> np.ndarray:
    return np.stack([scene(t) for t in range(count)])


def robomimic(
    path: Path,
    env: Mapping[str, Any] | None,
    actions: np.ndarray,
    obs: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """One demonstration in robomimic's layout; env: what env_args say, if anything."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if env is not None:
            data.attrs["env_args"] = json.dumps(env)
        demo = data.create_group("demo_0")
        demo["actions"] = actions
        for key, value in obs.items():
            demo[f"obs/{key}"] = value
        demo["rewards"], demo["dones"] = np.zeros(len(actions)), np.zeros(len(actions), int)
        demo.attrs["num_samples"] = len(actions)
        for key, value in (attrs or {}).items():
            demo.attrs[key] = value
    return path


def osc_1_5(**settings: Any) -> dict:
    """env_args of a robosuite 1.5 file: a composite controller."""
    env = osc()
    arm = dict(
        env["env_kwargs"]["controller_configs"], input_type="delta", gripper={"type": "GRIP"}
    )
    del arm["control_delta"]
    parts = {"arms": {"right": {**arm, **settings}}}
    env["env_kwargs"]["controller_configs"] = {"type": "BASIC", "body_parts": parts}
    return env


PLACE = np.array([0.1, -0.05, 1.0]) + 0.01 * np.arange(COUNT)[:, None]
HAND = Rotation.from_rotvec([3.1, 0.05, 0.02])
SITE = HAND * Rotation.from_euler("z", -90, degrees=True)  # Panda's grip site


def poses(path: Path, env: Mapping[str, Any], site: bool, behind: float = 0.0) -> Path:
    """Targets that are the grip site's own pose, or `behind` m ahead of it, along each axis."""
    turns = np.tile(SITE.as_rotvec(), (COUNT, 1))
    targets = np.hstack([PLACE, turns, -np.ones((COUNT, 1))])
    seen = {
        "agentview_image": scenes(),
        "robot0_eef_pos": PLACE - behind,
        "robot0_eef_quat": np.tile(HAND.as_quat(), (COUNT, 1)),
    }
    if site:
        seen["robot0_eef_quat_site"] = np.tile(SITE.as_quat(), (COUNT, 1))
    return robomimic(path, env, targets, seen)


def isaac(path: Path) -> Path:
    """Isaac Lab Mimic: robomimic's layout and another simulator."""
    env = {
        "env_name": "Isaac-Stack-Cube-Franka-IK-Rel-Mimic-v0",
        "type": 2,
        "sim_args": {"dt": 0.01, "decimation": 5},
    }
    actions = np.zeros((COUNT, 7), np.float32)
    actions[:, [0, 6]] = 1
    seen = {
        "table_cam": scenes(),
        "wrist_cam": scenes(),
        "eef_pos": np.zeros((COUNT, 3)),
        "datagen_info/object_pose/cube_1": np.tile(np.eye(4), (COUNT, 1, 1)),
    }
    return robomimic(path, env, actions, seen)


def libero(path: Path, stated: bool = True) -> Path:
    """A file of the benchmark; stated False: what is left of it when others have rewritten it."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if stated:
            problem = {"domain_name": "robosuite", "language_instruction": SENTENCE}
            data.attrs.update(
                problem_info=json.dumps(problem),
                env_args=json.dumps(osc()),
                tag="libero-v1",
                macros_image_convention="opengl",
                num_demos=2,
                total=2 * COUNT,
            )
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = robosuite_actions(COUNT, number)
            demo["states"] = np.zeros((COUNT, 20))
            demo["obs/agentview_rgb"] = demo["obs/eye_in_hand_rgb"] = scenes()[:, ::-1]
            demo["obs/ee_pos"] = np.zeros((COUNT, 3))
    return path


def robocasa(path: Path, **attrs: Any) -> Path:
    """RoboCasa: three cameras, the sentence in ep_meta."""
    names = ("agentview_left", "agentview_right", "eye_in_hand")
    seen = {f"robot0_{n}_image": scenes() for n in names}
    meta = {"ep_meta": json.dumps({"layout_id": 1, "lang": SENTENCE})}
    return robomimic(path, osc_1_5(), robosuite_actions(COUNT), seen, meta | attrs)


def aloha(path: Path, compress: bool = False, count: int = 6, sentence: bool = False) -> Path:
    """ALOHA: one episode, 14 joints, three cameras; compressed: padded JPEGs."""
    with h5py.File(path, "w") as file:
        file.attrs["sim"], file.attrs["compress"] = False, compress
        file["action"] = np.arange(count * 14).reshape(count, 14) / 100
        for key in ("observations/qpos", "observations/qvel", "observations/effort"):
            file[key] = np.full((count, 14), 0.5)
        images = scenes(count)
        if compress:
            coded = [np.frombuffer(jpeg(p), np.uint8) for p in images]
            longest = max(map(len, coded))
            images = np.stack([np.pad(c, (0, longest - len(c))) for c in coded])
        for camera in ("cam_right_wrist", "cam_left_wrist", "cam_high"):
            file[f"observations/images/{camera}"] = images
        if sentence:
            text = h5py.string_dtype("utf-8")
            file.create_dataset("language_raw", data=np.array([SENTENCE], object), dtype=text)
    return path


def libero_published(path: Path, suite: str = "libero_goal") -> Path:
    """As LIBERO's own script writes: `obs` after each action, `states` before it.

    Image and joints of moment t tell t; action t leads from moment t to t + 1.
    """
    moments, rng = np.arange(COUNT + 1), np.random.default_rng(3)
    problem = {
        "problem_name": "libero_tabletop_manipulation",
        "domain_name": "robosuite",
        "language_instruction": "open the top layer of the drawer",
    }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(
            bddl_file_name=f"libero/libero/bddl_files/{suite}/open_the_top_layer.bddl",
            env_name="Libero_Tabletop_Manipulation",
            problem_info=json.dumps(problem),
            env_args=json.dumps(osc()),
            tag="libero-v1",
            macros_image_convention="opengl",
            num_demos=1,
            total=COUNT,
        )
        demo = data.create_group("demo_0")
        demo["actions"] = robosuite_actions(COUNT)
        joints = 0.1 * moments[:, None] + np.arange(7)
        qpos = np.hstack([joints, rng.normal(size=(COUNT + 1, 9))])
        demo["states"] = np.hstack([0.05 * moments[:, None], qpos])[:-1]
        seen, sampled = np.array([scene(t) for t in moments]), 0.005  # rad before the step's end
        demo["obs/agentview_rgb"] = demo["obs/eye_in_hand_rgb"] = seen[1:, ::-1]
        demo["obs/joint_states"] = joints[1:] - sampled
        hand = np.column_stack(
            [moments, moments, moments, 0 * moments, 3.5 + 0 * moments, moments]
        )
        demo["obs/ee_states"] = hand[1:].astype(float)
        demo["obs/ee_pos"], demo["obs/ee_ori"] = hand[1:, :3] * 1.0, hand[1:, 3:] * 1.0
        demo["obs/gripper_states"] = np.tile([0.04, -0.04], (COUNT, 1))
        demo["robot_states"] = np.zeros((COUNT, 9))
        ends = (np.arange(COUNT) == COUNT - 1).astype(np.uint8)
        demo["rewards"] = demo["dones"] = ends
        demo.attrs.update(num_samples=COUNT, model_file="<mujoco/>", init_state=demo["states"][0])
    return path


LIBERO_TASKS = ("KITCHEN_SCENE3_turn_on_the_stove", "open_the_top_drawer")


def libero_generated(path: Path) -> Path:
    """Three demonstrations of two tasks as `vla generate` makes them in LIBERO."""
    random = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        write_header(file, "libero_goal", 3 * COUNT, {})
        for number, task in enumerate((1, 0, 1)):
            told = {
                "suite": "libero_goal",
                "task": task,
                "name": LIBERO_TASKS[task],
                "problem": "libero_tabletop_manipulation",
                "in_file": f"do {task}",
                "mirrored": True,
            }
            arm = random.normal(size=(COUNT, 7))
            images = np.stack([scene(t + number)[:, ::-1] for t in range(COUNT)])
            sentence = LIBERO_TASKS[task].split("SCENE3_")[-1].replace("_", " ")
            data = {
                "actions": robosuite_actions(COUNT, number),
                "states": np.hstack([np.zeros((COUNT, 1)), arm, np.ones((COUNT, 9))]),
                "rewards": (np.arange(COUNT) > COUNT - 3) * 1.0,
                "dones": np.arange(COUNT) == COUNT - 1,
                "instructions": [sentence] * COUNT,
                "obs": {
                    "agentview_image": images,
                    "robot0_eye_in_hand_image": images // 2,
                    "robot0_state": random.normal(size=(COUNT, 8)).astype("f4"),
                    "robot0_joint_pos": arm,
                },
                "attrs": {"task": "libero_goal", "scene": json.dumps(told)},
            }
            write_columns(file.create_group(f"data/demo_{number}"), data)
    return path
