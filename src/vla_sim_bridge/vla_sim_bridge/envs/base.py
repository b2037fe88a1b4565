"""The base class of all simulated worlds, for any Python and robosuite version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, Observation
from vla_sim_bridge.envs.chunk_to_actions import sim_actions


@dataclass(frozen=True)
class StepResult:
    """Result of a control step: success by the task's rule at this moment (not yet settled).

    wrong: name of the outcome that it is instead, by the task's other rules; empty: none.
    """

    success: bool
    reward: float
    wrong: str = ""


@dataclass
class Demonstration:
    """What an expert did in a world that plays whole demonstrations itself.

    outcome: "success", or why not. first: steps until success was first reached; 0: never.
    scene: what of it is in no state, as JSON values. columns: [T, ...] each, from the beginning of
    a step: actions SI [7], states as MuJoCo's, robot0_*, object poses [4, 4] as objects/NAME;
    success at the end of it.
    """

    outcome: str
    first: int
    scene: dict
    columns: dict[str, np.ndarray]


def episode_rng(purpose: str, seed: int, index: int) -> np.random.Generator:
    """The only random generator of an episode.

    `purpose` ("generate", "evaluate") is part of the seed, so that no evaluation episode can ever
    be one that training data was generated from.
    """
    if seed < 0 or index < 0:
        raise VlaError(f"seed {seed}, episode {index}", "both must be 0 or more")
    key = [seed, index, *purpose.encode()]
    return np.random.default_rng(np.random.SeedSequence(key))


class WorldBase:
    """What all worlds share: observations, a step without motion, the check of actions."""

    cameras: Sequence[str]
    instruction: str
    gripper: float  # 1 open, as it was told last

    def reset(self, rng: np.random.Generator) -> None:
        raise NotImplementedError

    def start_episode(self, purpose: str, seed: int, index: int) -> None:
        """Starts an episode, whose random generator is `episode_rng`'s."""
        self.reset(episode_rng(purpose, seed, index))

    def step(self, action: np.ndarray) -> StepResult:
        raise NotImplementedError

    def state(self) -> np.ndarray:
        raise NotImplementedError

    def render(self, camera: str, width: int | None = None, height: int | None = None):
        raise NotImplementedError

    def still(self) -> np.ndarray:
        """The action of no motion; the gripper stays as it is."""
        return np.array([0, 0, 0, 0, 0, 0, self.gripper])

    def hold(self) -> StepResult:
        """One control period without motion."""
        return self.step(self.still())

    def actions(self, chunk: ActionChunk) -> np.ndarray:
        """float64 [T, D]: a model's chunk as actions of `step`."""
        return sim_actions(chunk)

    def seen_by(self, camera: str) -> np.ndarray:
        """The image uint8 [H, W, 3] of a camera as a policy is given it."""
        return self.render(camera)

    def observation(self) -> Observation:
        """Images of all cameras, instruction and state (see `state`)."""
        images = {name: self.seen_by(name) for name in self.cameras}
        return Observation(images, self.instruction, self.state())

    def _take_action(self, action: np.ndarray) -> np.ndarray:
        """float64 [7]; stores its gripper value."""
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise VlaError(f"action {action} is not 7 finite numbers", "nothing was moved")
        self.gripper = float(action[6] > 0.5)
        return action
