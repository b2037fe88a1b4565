"""Attempts at demonstrations by the rover's expert.

As in `generation/attempt`, an attempt is a function of the configuration and its number alone, and
success must last: through steps that belong to the demonstration, so that a policy learns to stay
where it stopped, and through as many again.
"""

from __future__ import annotations

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import Episode, make_steps
from vla_sim_bridge.envs.base import episode_rng
from vla_sim_bridge.envs.rover.world import RoverWorld
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.experts.rover import FULL, rover_expert
from vla_sim_bridge.generation.attempt import Attempt, attributes_of
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.rover_answers import other_answers

MEMORY = 0.9  # AR(1) factor of the noise: it leads astray for about ten steps


def check(config: GenerateConfig) -> None:
    """Refuses options that a rover does not have."""
    changed = {
        "--method": config.method != "scripted",
        "--randomize": bool(config.randomize),
        "--recovery": config.recovery > 0,
    }
    if given := [name for name, is_so in changed.items() if is_so]:
        raise VlaError(
            f"{config.task} cannot be generated with {given[0]}",
            "leave it out; Rover_D2 has random light, floor and walls",
        )


def make_attempt(world: RoverWorld, config: GenerateConfig, index: int) -> Attempt:
    """Runs attempt `index`. What is recorded is what the expert wants, not the noise."""
    rng = episode_rng("generate", config.seed, index)
    world.reset(rng)
    scale, noise = rng.uniform(0, config.noise) * FULL, np.zeros(2)
    cameras = world.cameras if config.images else ()
    rows: list[dict] = []
    settled, ever = 0, False
    for _ in range(config.horizon or world.task.horizon):
        action = rover_expert(world)
        noise = MEMORY * noise + np.sqrt(1 - MEMORY**2) * rng.standard_normal(2)
        rows.append(_before(world, cameras, action))
        # At rest it stays so: a nudge then would only be undone again
        result = world.step(action + scale * noise if action.any() else action)
        rows[-1]["reward"] = float(result.success)
        settled, ever = settled + 1 if result.success else 0, ever or result.success
        if settled > SETTLE_STEPS or result.wrong == "collision":
            break
    outcome = world.wrong() or ("unsettled" if ever else "timeout")
    if settled > SETTLE_STEPS:
        lasts = all(world.hold().success for _ in range(SETTLE_STEPS))
        outcome = "success" if lasts else "unsettled"
    attributes = attributes_of(config, index, outcome, world.scene_record())
    return Attempt(outcome, _episode(world, rows, attributes))


def _before(world: RoverWorld, cameras, action: np.ndarray) -> dict:
    """The world as it is, and the action chosen for it."""
    return {
        "images": {name: world.seen_by(name) for name in cameras},
        # float32, as every format has it: so it comes back to the bit
        "action": np.asarray(action, np.float32),
        "state": world.state(),
        "states": world.get_mujoco_state(),
        "pose": np.array(world.pose()),
        "said": world.instruction,
    }


def _episode(world: RoverWorld, rows: list[dict], metadata: dict) -> Episode:
    def column(name: str) -> np.ndarray:
        return np.stack([row[name] for row in rows])

    steps = make_steps(
        column("images"),
        column("said").tolist(),
        column("state"),
        column("action"),
        column("reward"),
        np.arange(len(rows)) == len(rows) - 1,
    )
    columns = {
        "states": column("states"),
        "obs/robot0_state": column("state"),
        "datagen_info/base_pose": column("pose"),
    }
    scene, poses = world.scene, [tuple(row["pose"].tolist()) for row in rows]
    if [*scene.roles] == ["target"] and world.task.language == "episode":
        columns |= other_answers(scene, world.course, world.places, poses)
    return Episode(steps, world.spec, metadata, columns)
