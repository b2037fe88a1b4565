"""Runs an episode of a model that a stand-in corrects, and records who did what.

Its success is a rollout's (`EpisodeRun`): it must last through steps without motion. Of a success
these are cut off; the last step is the one in which it was reached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np

from vla_inference.episodes.robosuite import ACTION_SCALE
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, Episode, Observation
from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.envs.chunk_to_actions import sim_actions
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.experts import expert_for
from vla_sim_bridge.generation.attempt import Attempt, DemonstrationRecorder, attributes_of
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.corrections.stand_in import StandIn
from vla_sim_bridge.tasks import get_task

PURPOSE = "correct"  # of the random generator: no evaluation has these episodes
Act = Callable[[Observation], ActionChunk]


def check(config: GenerateConfig) -> None:
    """Refuses, before any work, a model or a task that cannot be corrected."""
    if config.model is None:
        raise VlaError("--method corrected has no model", "give --model CHECKPOINT")
    if get_task(config.task).package:
        raise VlaError(f"{config.task} cannot be corrected here", "name one of our tasks")
    expert_for(get_task(config.task))
    if not config.cameras or not config.images:
        raise VlaError("the model sees no image", "give --cameras, and images")
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import check_policy

    wanted = check_policy(config.model, LoadOptions.given(engine="plain")).needs.images
    if wanted != len(config.cameras):
        raise VlaError(
            f"{config.model} sees {wanted} images, --cameras has {len(config.cameras)}",
            "name as many, in its order",
        )


def load_act(config: GenerateConfig) -> Act:
    """The model as a function from an observation to a chunk."""
    import torch

    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy

    torch.set_num_threads(1)
    assert config.model is not None  # by `check`
    return load_policy(config.model, LoadOptions.given(device=config.device, engine="plain")).act


def make_attempt(sim: Simulation, config: GenerateConfig, index: int, act: Act) -> Attempt:
    """Runs attempt `index`: the model acts, and the stand-in where it errs."""
    world = RecordedWorld(sim)
    horizon = config.horizon or 2 * sim.task.horizon  # mistakes and their corrections take time
    run = EpisodeRun(world, config.seed, index, horizon, PURPOSE)
    stand_in = StandIn(sim, config.stall, config.takeover_steps)
    for action in steps(world, stand_in, act, config.execute_steps):
        world.by_hand = stand_in.acts
        if run.step(action):
            break
        stand_in.look()
    result = run.result()
    if result.success:
        world.cut(result.frames)
    metadata = attributes_of(config, index, result.outcome, world.recorder.scene)
    metadata |= {
        "takeovers": len(stand_in.reasons),
        "reasons": ",".join(stand_in.reasons),
    }
    if sim.randomized:
        metadata["randomized"] = json.dumps(sim.randomized)
    return Attempt(result.outcome, world.episode(metadata))


def steps(
    sim: RecordedWorld, stand_in: StandIn, act: Act, execute_steps: int
) -> Iterator[np.ndarray]:
    """The actions of the source in charge, one a control step; `stand_in.look` comes in between.

    A hand-over drops what is left of a chunk, and the model is asked anew with the image of then.
    """
    while True:
        if stand_in.acts:
            yield stand_in.action()
            continue
        for action in sim_actions(act(sim.observation()))[:execute_steps]:
            yield action
            if stand_in.acts:
                break


class RecordedWorld:
    """A simulation that records every step of an episode as a demonstration, and who acted."""

    def __init__(self, sim: Simulation):
        self.sim, self.by_hand = sim, False

    def __getattr__(self, name: str):
        return getattr(self.sim, name)

    def start_episode(self, purpose: str, seed: int, index: int) -> None:
        self.sim.start_episode(purpose, seed, index)
        self.recorder = DemonstrationRecorder(self.sim)
        self.acted: list[bool] = []

    def step(self, action: np.ndarray) -> StepResult:
        return self._record(executed(action), lambda: self.sim.step(action))

    def hold(self) -> StepResult:
        still = np.array([0, 0, 0, 0, 0, 0, self.sim.gripper])
        return self._record(still, self.sim.hold)

    def _record(self, action: np.ndarray, move: Callable[[], StepResult]) -> StepResult:
        self.recorder.before(action)
        result = move()
        self.recorder.after(result.success)
        self.acted.append(self.by_hand)
        return result

    def cut(self, length: int) -> None:
        """Forgets what came after so many steps."""
        recorded: tuple[list, ...] = (self.recorder.rows, *self.recorder.images.values())
        for column in (self.acted, *recorded):
            del column[length:]

    def episode(self, metadata: dict) -> Episode:
        made = self.recorder.episode(metadata)
        acted = np.array(self.acted, np.uint8)
        return Episode(
            made.steps, made.spec, made.metadata, {**made.columns, "intervention": acted}
        )


def executed(action: np.ndarray) -> np.ndarray:
    """What the controller makes of an SI action [7]: within its range, the gripper open or not."""
    arm = np.clip(action[:6], -ACTION_SCALE, ACTION_SCALE)
    return np.append(arm, float(action[6] > 0.5))
