"""Tests of the fast control step against robosuite's: every number of an episode, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from vla_inference.types import ActionChunk
from vla_sim_bridge.envs.fast_osc import VARIABLE, ControlStep, control_step, fits
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.evaluation.rollout import run_episode
from vla_sim_bridge.experts import expert_for
from vla_sim_bridge.generation.attempt import make_attempt
from vla_sim_bridge.generation.generate import GenerateConfig
from vla_sim_bridge.generation.shards import to_bytes


def both(monkeypatch, sim, play):
    """What `play` returns by robosuite's loop, and by ours."""
    monkeypatch.setenv(VARIABLE, "1")
    theirs = play()
    assert sim._control == sim._env.step
    monkeypatch.delenv(VARIABLE)
    ours = play()
    assert isinstance(sim._control.__self__, ControlStep)
    return theirs, ours


# attempts, horizon: Stack_D2 plays until it succeeds or fails, the others until time is up
@pytest.mark.parametrize(
    "task, attempts, horizon",
    [
        ("Stack_D2", (2, 4), 90),
        ("StackThree_D0", (0,), 60),
        ("Lift_D0", (0, 1), 60),
        ("PickPlace_D0", (0,), 60),
        ("Door_D0", (0,), 60),
    ],
)
def test_a_generated_episode_is_the_same_to_the_byte(monkeypatch, task, attempts, horizon):
    config = GenerateConfig(
        task=task,
        seed=11,
        noise=0.4,
        recovery=1.0,
        horizon=horizon,
        images=False,
        compression="none",
    )
    sim = Simulation(task)
    outcomes = set()
    for index in attempts:  # each after others of another loop, which must leave nothing behind

        def play(index=index):
            attempt = make_attempt(sim, config, index)
            outcomes.add(attempt.outcome)
            return to_bytes(attempt.episode, None), sim.data.qacc.tobytes()

        theirs, ours = both(monkeypatch, sim, play)
        assert theirs == ours
    if task == "Stack_D2":
        assert "success" in outcomes and len(outcomes) == 2, outcomes


def test_a_rollout_is_the_same_with_all_that_the_model_sees(monkeypatch):
    sim = Simulation("Stack_D4", width=32, height=32)

    def play():
        seen, noise = [], np.random.default_rng(5)

        def act(observation):
            seen.append(observation.images["agentview"].tobytes() + observation.state.tobytes())
            action = expert_for(sim.task)(sim)
            action[:6] += noise.normal(0, 0.01, 6)
            return ActionChunk(np.tile(action, (4, 1)).astype(np.float32), sim.spec)

        result = run_episode(sim, act, seed=3, index=1, horizon=48, execute_steps=4)
        return result, seen, sim.get_mujoco_state().tobytes()

    theirs, ours = both(monkeypatch, sim, play)
    assert theirs == ours and len(ours[1]) > 5


@pytest.fixture(scope="module")
def lift():
    sim = Simulation("Lift_D0")
    sim.reset(episode_rng("evaluate", 0, 0))
    return sim


def test_torques_at_their_limits_are_the_same(lift, monkeypatch):
    low, high = lift.model.actuator_ctrlrange[:7].T

    def play():
        lift.reset(episode_rng("evaluate", 0, 1))
        shown = []
        for sign in (1, -1):
            lift.data.qvel[:7] = sign * np.array([9, -9, 9, -9, 9, -9, 9])  # rad/s, a hard blow
            lift.hold()
            shown.append((lift.data.ctrl[:7].copy(), lift.get_mujoco_state()))
        return shown

    theirs, ours = both(monkeypatch, lift, play)
    assert any((torques == low).any() for torques, _ in theirs)
    assert any((torques == high).any() for torques, _ in theirs)
    np.testing.assert_equal(ours, theirs)


@pytest.mark.parametrize(
    "path, value",
    [
        ("lite_physics", False),
        ("viewer", object()),
        ("_observables", {"some": None}),
        ("robots.0.name", "Sawyer"),
        ("robots.0._enabled_parts", {"right": False, "right_gripper": True}),
        ("robots.0.part_controllers.right.impedance_mode", "variable"),
        ("robots.0.part_controllers.right.input_ref_frame", "world"),
        ("robots.0.part_controllers.right.uncoupling", False),
        ("robots.0.part_controllers.right.interpolator_pos", object()),
        ("robots.0.part_controllers.right.qvel_index", [0, 1, 2, 3, 4, 6, 5]),
    ],
)
def test_any_other_configuration_is_left_to_robosuite(lift, monkeypatch, path, value):
    env = thing = lift._env
    assert fits(env)
    *way, name = path.split(".")
    for part in way:
        index = int(part) if part.isdigit() else part
        thing = thing[index] if isinstance(thing, (list, dict)) else getattr(thing, part)
    monkeypatch.setattr(thing, name, value)
    assert control_step(env) == env.step


def test_another_robosuite_and_overridden_steps_are_left_alone(lift, monkeypatch):
    import robosuite

    env = lift._env
    with monkeypatch.context() as patch:
        patch.setattr(robosuite, "__version__", "1.6.0")
        assert control_step(env) == env.step
    with monkeypatch.context() as patch:
        patch.setattr(type(env), "_pre_action", lambda self, action, policy_step=False: None)
        assert control_step(env) == env.step
    assert control_step(env) != env.step
