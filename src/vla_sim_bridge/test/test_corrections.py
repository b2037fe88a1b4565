"""Tests of the stand-in for a person: it takes over where the model errs, and gives back."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_bench import Bench, chunk

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.main import run_subcommand
from vla_inference.control import HUMAN
from vla_inference.episodes.robosuite import from_robosuite
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, Observation, eef_delta_spec
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.experts import expert_for
from vla_sim_bridge.generation.attempt import Attempt
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.corrections.attempt import PURPOSE, check, make_attempt
from vla_sim_bridge.generation.corrections.progress import Progress, WrongGrasp
from vla_sim_bridge.tasks import Task

MARK = 0.01  # rad; the models of these tests turn by it where they act, an expert never exactly
CONFIG = GenerateConfig(
    task="Stack_D0", method="corrected", model="unused", execute_steps=8, stall=0.5, horizon=200
)


class Idle:
    """A model that hardly moves. asked: how far the episode was at each question."""

    def __init__(self, sim: Simulation):
        self.sim, self.asked = sim, []

    def __call__(self, seen: Observation) -> ActionChunk:
        self.asked.append(float(self.sim.data.time))
        action = [0, 0, 0, 0, 0, MARK * (-1) ** len(self.asked), self.sim.gripper]
        return ActionChunk(np.tile(action, (8, 1)), eef_delta_spec())


@pytest.fixture(scope="module")
def stack() -> Simulation:
    return Simulation("Stack_D0", ("agentview",), 32, 32)


@pytest.fixture(scope="module")
def corrected(stack) -> tuple[Attempt, Idle]:
    model = Idle(stack)
    return make_attempt(stack, CONFIG, 0, model), model


def test_it_takes_over_at_a_stall_and_gives_back_at_the_next_subtask(corrected):
    made, _ = corrected
    acted = made.episode.columns["intervention"].astype(bool)
    assert made.success and made.episode.metadata["reasons"] == "stall,stall"
    changes = np.flatnonzero(np.diff(acted)) + 1
    first, back, again = changes
    # 0.5 s without progress are 10 steps; the first look was progress
    assert first == 11 and again == back + 11 and acted[-1]
    held = made.episode.columns["datagen_info/subtask_term_signals/grasp"]
    assert not held[:first].any() and held[back - 1] and held[back:again].all()


def test_what_is_recorded_is_what_was_executed_and_by_whom(corrected, stack):
    made, _ = corrected
    actions, acted = made.episode.actions, made.episode.columns["intervention"] == 1
    assert len(made.episode) == len(acted)
    assert (np.abs(np.abs(actions[~acted, 5]) - MARK) < 1e-6).all()
    assert (np.abs(np.abs(actions[acted, 5]) - MARK) > 1e-6).all()
    stack.reset(episode_rng(PURPOSE, CONFIG.seed, 0))
    states = made.episode.columns["states"]
    for state, action in zip(states, actions, strict=True):
        assert np.allclose(stack.get_mujoco_state(), state, atol=2e-3)
        result = stack.step(action)
    assert result.success


def test_a_hand_over_drops_the_chunk_and_the_model_looks_anew(corrected):
    made, model = corrected
    times = made.episode.columns["states"][:, 0]
    acted = made.episode.columns["intervention"].astype(bool)
    first, back, _ = np.flatnonzero(np.diff(acted)) + 1
    asked = np.round((np.array(model.asked) - times[0]) / 0.05).astype(int)
    # Chunks of 8: the second one is cut short, the third begins with the image of the hand-back.
    assert asked[:2].tolist() == [0, 8] and first < 16
    assert asked[2:4].tolist() == [back, back + 8]


def test_the_command_node_would_have_executed_the_same(corrected):
    """Its commander, told of the same hand-overs and chunks, period by period."""
    made, model = corrected
    times = made.episode.columns["states"][:, 0]
    asked = np.round((np.array(model.asked) - times[0]) / 0.05).astype(int).tolist()
    acted = made.episode.columns["intervention"].astype(bool)
    bench = Bench(align="arrival", blend=0.0)
    commander = bench.commander
    for step, (action, by_hand) in enumerate(zip(made.episode.actions, acted, strict=True)):
        bench.now, bench.steady = bench.now + 0.05, bench.steady + 0.05
        if by_hand != commander.takeover.by_hand:
            commander.take_over(bool(by_hand), bench.now, bench.steady)
        stamp = bench.now + 1e-4  # the image of just after a hand-over
        if by_hand:
            assert commander.accept(chunk(action), stamp, stamp, bench.steady, HUMAN)
        elif step in asked:
            whole = chunk(*[action] * 8)  # of an idle model, all steps are alike
            assert commander.accept(whole, stamp, stamp, bench.steady)
        command = bench.tick(0.0)
        moved = 0.05 * np.array([*command.linear, *command.angular])
        assert np.allclose(moved, action[:6], atol=1e-5)


def test_it_gives_back_after_its_most_steps(stack):
    made = make_attempt(stack, replace(CONFIG, takeover_steps=3, horizon=40), 0, Idle(stack))
    acted = made.episode.columns["intervention"]
    assert made.outcome == "timeout" and len(made.episode) == 40
    assert acted.tolist() == ([0] * 11 + [1] * 3) * 2 + [0] * 11 + [1]


def test_a_model_that_succeeds_is_left_alone(stack):
    expert = expert_for(stack.task)

    def act(seen: Observation) -> ActionChunk:
        return ActionChunk(expert(stack)[None], eef_delta_spec())

    made = make_attempt(stack, replace(CONFIG, stall=2.0), 1, act)
    assert made.success and made.episode.metadata["takeovers"] == 0
    assert not made.episode.columns["intervention"].any()


class FakeSim:
    """What `Progress` and `WrongGrasp` ask of a simulation."""

    def __init__(self, task: Task):
        self.task, self.held, self.hand = task, "", np.zeros(3)
        self.at = {"cubeA": np.zeros(3), "cubeB": np.array([0.3, 0, 0])}

    def eef_pose(self) -> np.ndarray:
        pose = np.eye(4)
        pose[:3, 3] = self.hand
        return pose

    def position(self, name: str) -> np.ndarray:
        return self.at[self.body(name)]

    def body(self, name: str) -> str:
        return {"moved": "cubeA", "base": "cubeB"}.get(name, name)

    def holds(self, name: str) -> bool:
        return self.body(name) == self.held

    def free_objects(self) -> list[str]:
        return list(self.at)


@pytest.fixture
def fake() -> FakeSim:
    from vla_sim_bridge.tasks import get_task

    return FakeSim(get_task("Stack_L"))


def test_progress_is_the_next_subtask_or_nearer_to_its_object(fake):
    progress = Progress()
    fake.hand[:] = [0.2, 0, 0]
    for x, steps in ((0.2, 0), (0.195, 1), (0.189, 0), (0.3, 1), (0.2, 2)):
        fake.hand[0] = x
        progress.look(fake)
        assert progress.steps == steps
    fake.held = "cubeA"
    progress.look(fake)
    assert (progress.stage, progress.steps) == (1, 0)
    fake.held = ""  # dropped: what is reached again is no progress
    for steps in (1, 2, 3):
        progress.look(fake)
        assert progress.steps == steps


def test_the_wrong_object_is_told_from_the_right_one(fake):
    wrong = WrongGrasp()
    fake.held = "cubeB"
    assert [wrong.look(fake) for _ in range(4)] == [False, False, True, True]
    fake.held = "cubeA"
    assert not any(wrong.look(fake) for _ in range(4))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": None}, "has no model; give --model"),
        ({"task": "libero_spatial/0"}, "cannot be corrected here"),
        ({"cameras": ("agentview", "frontview")}, "sees 1 images, --cameras has 2"),
        ({"images": False}, "the model sees no image"),
    ],
)
def test_what_cannot_be_corrected_is_refused(tmp_path, changes, told):
    model = str(write_random_checkpoint(tmp_path / "tiny", "tiny", "l1"))
    with pytest.raises(VlaError, match=told):
        check(replace(CONFIG, **{"model": model, **changes}))


def test_a_model_is_of_this_method_alone():
    with pytest.raises(VlaError, match="--model is of --method corrected"):
        GenerateConfig(model="x").check()


def test_the_command_makes_a_dataset_that_says_who_acted(tmp_path: Path):
    model = write_random_checkpoint(tmp_path / "tiny", "tiny", "l1")
    point = EntryPoint("generate", "vla_sim_bridge.cli.generate:generate", "vla.commands")
    words = ["--task", "Lift_D0", "--method", "corrected", "--model", str(model)]
    words += ["--episodes", "1", "--camera-width", "32", "--camera-height", "32"]
    words += ["--parallel", "1", "--stall", "0.3", "--output", str(tmp_path / "made"), "--json"]
    assert run_subcommand(point, words) == 0
    with h5py.File(tmp_path / "made" / "demo.hdf5") as file:
        demo = file["data/demo_0"]
        acted = demo["intervention"][:]
        assert acted.shape == (len(demo["actions"]),) and set(acted) == {0, 1}
        assert np.abs(from_robosuite(demo["actions"])[:, :3]).max() <= 0.05 + 1e-9
        assert demo.attrs["takeovers"] >= 1 and demo.attrs["method"] == "corrected"
    assert json.loads((tmp_path / "made" / "statistics.json").read_text())["episodes"] == 1
