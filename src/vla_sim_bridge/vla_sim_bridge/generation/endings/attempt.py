"""Runs an episode to one of many ends, and records it with the rule's answer at every step.

It ends when success has lasted for `SETTLE_STEPS` steps, or is none: what the last step shows is
what the episode came to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.chunk_to_actions import sim_actions
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.experts import expert_for
from vla_sim_bridge.experts.motion import Noise
from vla_sim_bridge.generation.attempt import Attempt, DemonstrationRecorder, attributes_of
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.corrections.attempt import Act, executed
from vla_sim_bridge.generation.endings.mishaps import mishaps_of, rest
from vla_sim_bridge.tasks import get_task

PURPOSE = "ending"  # of the random generator: no evaluation has these episodes


def check(config: GenerateConfig) -> None:
    """Refuses, before any work, what would leave the failures out."""
    expert_for(get_task(config.task))
    if len(get_task(config.task).subtasks) > 2:
        raise VlaError(f"{config.task} has more than two subtasks", "name a task that has fewer")
    if not config.keep_failures:
        raise VlaError("--method endings is for its failures", "give --keep-failures")


def make_attempt(
    sim: Simulation, config: GenerateConfig, index: int, act: Act | None = None
) -> Attempt:
    """Runs attempt `index`. act: a model, which acts in every other one."""
    rng = episode_rng(PURPOSE, config.seed, index)
    sim.reset(rng)
    mishaps = mishaps_of(sim.task)
    kind = str(rng.choice(list(mishaps)))
    noise = Noise(rng, rng.uniform(0, config.noise))
    by_model = act is not None and index % 2 == 1
    source = _model(sim, act, config.execute_steps) if act and by_model else _expert(sim)
    acts = (noise.disturb(action) for action in source)
    horizon = config.horizon or sim.task.horizon
    course = itertools.islice(mishaps[kind](sim, acts, rng), horizon)
    recorder, settled = DemonstrationRecorder(sim, config.images), 0
    for action in itertools.chain(course, rest(sim, rng), _wait(sim)):
        recorder.before(executed(action))
        success = sim.step(action).success
        recorder.after(success)
        settled = settled + 1 if success else 0
    outcome = "success" if settled >= SETTLE_STEPS else sim.wrong() or kind
    attributes = attributes_of(config, index, outcome, recorder.scene)
    attributes |= {"mishap": kind, "by": "model" if by_model else "expert"}
    return Attempt(outcome, recorder.episode(attributes))


def _expert(sim: Simulation) -> Iterator[np.ndarray]:
    expert = expert_for(sim.task)
    while True:
        yield expert(sim)


def _model(sim: Simulation, act: Act, execute_steps: int) -> Iterator[np.ndarray]:
    while True:
        yield from sim_actions(act(sim.observation()))[:execute_steps]


def _wait(sim: Simulation) -> Iterator[np.ndarray]:
    """No motion for as long as success is there, but has not lasted."""
    lasted = 0
    while sim.succeeded() and lasted < SETTLE_STEPS:
        yield np.array([0, 0, 0, 0, 0, 0, sim.gripper])
        lasted += 1
