"""Counts an episode's steps and decides its outcome; success counts once it has settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.envs.protocol import World

Outcome = str  # "running", "success", "timeout", "aborted", or one of `WRONG`
# Names of `Task.wrong`, of all tasks: ends that are counted apart.
WRONG = (
    *("wrong_order", "wrong_object", "wrong_task", "wrong_side"),
    *("collision", "drove_on", "lost"),
)
SETTLE_STEPS = 10  # extra steps of zero motion over which success must last


@dataclass
class EpisodeResult:
    """The result of an episode. frames: control steps until success, or the horizon."""

    task: str
    seed: int
    index: int
    instruction: str
    frames: int
    horizon: int
    outcome: Outcome
    ever_success: bool

    @property
    def success(self) -> bool:
        return self.outcome == "success"


class EpisodeRun:
    """Steps a simulation through one episode.

    Success is counted by the settle rule: a step whose state is successful is followed by
    `SETTLE_STEPS` steps of zero motion, and only if success lasts through all of them has the
    episode succeeded, at the frame where it began. Otherwise the episode goes on, those steps
    spent, and `ever_success` alone remembers. A wrong end by the task's rules (`Task.wrong`) is
    settled in the same way, and ends the episode under its own name.
    """

    def __init__(self, sim: World, seed: int, index: int, horizon: int, purpose="evaluate"):
        self.sim, self.seed, self.index, self.horizon = sim, seed, index, horizon
        sim.start_episode(purpose, seed, index)
        self.first_instruction = sim.instruction
        self.step_count = 0
        self.reward = 0.0
        self.ever_success = False
        self.outcome: Outcome = "running"
        self.on_step: Callable[[], None] = lambda: None  # after every control step

    @property
    def done(self) -> bool:
        return self.outcome != "running"

    def step(self, action: np.ndarray) -> bool:
        """Executes one SI end-effector delta [7]; returns whether the episode is over."""
        return self.advance(lambda: self.sim.step(action))

    def advance(self, move: Callable[[], StepResult]) -> bool:
        """The same for any other way to move the robot for one control period."""
        result = move()
        self.step_count += 1
        self.reward = result.reward
        self.on_step()
        if result.success:
            self.ever_success = True
            frames = self.step_count
            if all(self._settle_step() for _ in range(SETTLE_STEPS)):
                self.outcome, self.step_count = "success", frames
        elif result.wrong:
            frames = self.step_count
            if all(self._settle_step(result.wrong) for _ in range(SETTLE_STEPS)):
                self.outcome, self.step_count = result.wrong, frames
        if not self.done and self.step_count >= self.horizon:
            self.outcome, self.step_count = "timeout", self.horizon
        return self.done

    def _settle_step(self, wrong: str = "") -> bool:
        """One step without motion; returns whether success, or the same wrong outcome, lasts."""
        self.step_count += 1
        result = self.sim.hold()
        self.on_step()
        return result.wrong == wrong if wrong else result.success

    def abort(self) -> None:
        if not self.done:
            self.outcome = "aborted"

    def result(self) -> EpisodeResult:
        return EpisodeResult(
            task=self.sim.task.name,
            seed=self.seed,
            index=self.index,
            instruction=self.first_instruction,
            frames=self.step_count,
            horizon=self.horizon,
            outcome=self.outcome,
            ever_success=self.ever_success,
        )
