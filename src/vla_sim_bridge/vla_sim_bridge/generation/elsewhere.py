"""Attempts at demonstrations in worlds that play them whole, in a Python of their own.

As in `attempt`, an attempt is a function of the configuration and its number alone, and success
must last. The expert runs over there first; images are drawn afterwards, of successes alone.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.episodes.robosuite import to_robosuite
from vla_inference.errors import VlaError
from vla_inference.types import Episode, make_steps
from vla_sim_bridge.envs.base import Demonstration
from vla_sim_bridge.envs.protocol import ExpertWorld
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.generation.attempt import Attempt, attributes_of
from vla_sim_bridge.generation.config import GenerateConfig


def check(config: GenerateConfig) -> None:
    """Refuses options that such a world does not have."""
    changed = {
        "--method": config.method != "scripted",
        "--randomize": bool(config.randomize),
        "--recovery": config.recovery > 0,
        "--keep-failures": config.keep_failures,
    }
    if given := [name for name, is_so in changed.items() if is_so]:
        raise VlaError(f"{config.task} cannot be generated with {given[0]}", "leave it out")


def make_attempt(world: ExpertWorld, config: GenerateConfig, index: int) -> Attempt:
    """Runs attempt `index`. A failure has no images."""
    limit = config.horizon or world.task.horizon
    done = world.demonstrate(config.seed, index, limit, SETTLE_STEPS, config.noise)
    attributes = attributes_of(config, index, done.outcome, done.scene)
    cameras = world.cameras if config.images and done.outcome == "success" else ()
    images = [_draw(world, state, cameras) for state in done.columns["states"]]
    return Attempt(done.outcome, _episode(world, done, images, attributes))


def _draw(world: ExpertWorld, state: np.ndarray, cameras) -> dict[str, np.ndarray]:
    if cameras:
        world.set_mujoco_state(state)
    return {name: world.seen_by(name) for name in cameras}


def _episode(world: ExpertWorld, done: Demonstration, images, attributes: dict) -> Episode:
    columns = dict(done.columns)
    actions, rewards = columns.pop("actions"), columns.pop("success")
    last = np.arange(len(actions)) == len(actions) - 1
    rotations = columns.pop("robot0_eef_rotation")
    columns["robot0_eef_quat_site"] = Rotation.from_matrix(rotations).as_quat()
    poses = np.tile(np.eye(4), (len(actions), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotations, columns["robot0_eef_pos"]
    kept = {
        "states": columns.pop("states"),
        "datagen_info/eef_pose": poses,
        "datagen_info/gripper_action": to_robosuite(actions)[:, 6:7],
    }
    for name, values in columns.items():
        kind, slash, object_name = name.partition("/")
        key = f"datagen_info/object_poses/{object_name}" if slash else f"obs/{kind}"
        kept[key] = values
    told = [world.instruction] * len(actions)
    steps = make_steps(images, told, columns["robot0_state"], actions, rewards, last)
    return Episode(steps, world.spec, attributes, kept)
