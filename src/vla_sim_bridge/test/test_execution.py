"""Tests of how `run_episode` executes chunks: several steps at once, answers that take time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from fake_world import FakeWorld

from vla_inference.types import ActionChunk, Observation, eef_delta_spec
from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.evaluation.rollout import run_episode

SPEC = eef_delta_spec("rotvec", "base", 0.05)


class Counting(FakeWorld):
    """A world that never succeeds and keeps the first number of each action."""

    gripper = 1.0

    def hold(self) -> StepResult:
        self.steps += 1
        return StepResult(False, 0.0)

    def actions(self, chunk: ActionChunk) -> np.ndarray:
        return np.asarray(chunk.actions)


@dataclass
class Clockwork:
    """Answers each look with the numbers of the control steps that its chunk's steps are for."""

    world: Counting
    looks: list[int] = field(default_factory=list)

    def __call__(self, seen: Observation) -> ActionChunk:
        self.looks.append(self.world.steps)
        actions = np.zeros((8, 7), np.float32)
        actions[:, 0] = self.world.steps + np.arange(8) + 1
        return ActionChunk(actions, SPEC)


def played(execute_steps: int, delay: int, horizon: int = 20) -> tuple[list[int], list[int]]:
    """When the model looked, and the steps that were executed; 0: the robot stood still."""
    world = Counting(horizon)
    model = Clockwork(world)
    run_episode(world, model, 0, 0, horizon, execute_steps, delay)
    return model.looks, [round(a[0]) for a in world.executed]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_each_step_is_executed_at_its_time(steps):
    looks, executed = played(steps, 0)
    assert looks == list(range(0, 20, steps))
    assert executed == list(range(1, 21))


def test_late_answers_go_on_where_the_chunk_before_ends():
    looks, executed = played(4, 2)
    assert looks == [0, 4, 8, 12, 16]
    # It stands still until the first answer; then every step is the one for its moment.
    assert executed == [0, 0, *range(3, 21)]


def test_a_model_is_asked_again_only_once_it_has_answered():
    assert played(1, 4) == played(4, 4)
    assert played(1, 4)[0] == [0, 4, 8, 12, 16]
    assert played(1, 4)[1] == [0, 0, 0, 0, *range(5, 21)]


def test_the_robot_stands_still_where_no_step_is_left():
    assert played(8, 4)[1] == [0] * 4 + [5, 6, 7, 8] + [0] * 4 + [13, 14, 15, 16] + [0] * 4


def test_the_hand_hides_the_block_of_stack_h():
    from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
    from vla_sim_bridge.experts import expert_for

    sim = Simulation("Stack_H", width=112, height=112)
    expert = expert_for(sim.task)

    def red() -> int:
        """Pixels of the small block."""
        r, g, b = np.moveaxis(sim.render("agentview").astype(int), 2, 0)
        return int(((r - g > 60) & (r - b > 60)).sum())

    for index in range(2):
        sim.reset(episode_rng("evaluate", 3, index))
        beginning, held = red(), []
        for _ in range(sim.task.horizon):
            if sim.holds("cubeA"):
                held.append(red())
            if sim.step(expert(sim)).success:
                break
        else:
            raise AssertionError("the expert failed")
        assert beginning > 15
        assert len(held) > 10 and max(held[:10]) < 0.1 * beginning
