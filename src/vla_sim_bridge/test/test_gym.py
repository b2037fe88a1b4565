"""Tests of the Gymnasium environments: Gymnasium's own checker, and the episodes of a rollout."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.protocol import make_world
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.tasks import TASKS

SIZE = {"width": 64, "height": 48}


def test_without_gymnasium_the_remedy_is_said(monkeypatch):
    monkeypatch.delitem(sys.modules, "vla_sim_bridge.gym", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(VlaError, match=r"pip install -r requirements/gymnasium.txt"):
        __import__("vla_sim_bridge.gym")


@pytest.fixture(scope="module")
def env():
    gymnasium = pytest.importorskip(
        "gymnasium", reason="pip install -r requirements/gymnasium.txt"
    )
    import vla_sim_bridge.gym  # noqa: F401 - registers

    made = gymnasium.make("vla/Stack_D2-v0", render_mode="rgb_array", horizon=15, **SIZE)
    yield made
    made.close()


@pytest.mark.filterwarnings("ignore:.*infinity:UserWarning")  # a state has no bounds
def test_gymnasium_has_nothing_to_complain_of(env):
    from gymnasium.utils.env_checker import check_env

    check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.render().shape == (48, 64, 3)


def test_every_task_is_registered(env):
    from gymnasium import registry

    assert {f"vla/{name}-v0" for name in TASKS} <= set(registry)


def test_episodes_are_those_of_a_rollout(env):
    world = make_world("Stack_D2", **SIZE)
    rng = np.random.default_rng(0)
    for index in (0, 1, 5):
        options = {"episode": 5} if index == 5 else None
        seen, info = env.reset(seed=7 if index == 0 else None, options=options)
        run = EpisodeRun(world, 7, index, 15)
        assert info["episode"] == index and seen["instruction"] == run.first_instruction
        ends = []
        while not any(ends):
            np.testing.assert_array_equal(seen["images"]["agentview"], world.render("agentview"))
            np.testing.assert_array_equal(seen["state"], world.state().astype(np.float32))
            action = rng.uniform(env.action_space.low, env.action_space.high)
            seen, reward, *ends, info = env.step(action)
            run.step(action)
        assert run.done and info["outcome"] == run.outcome == "timeout" and ends == [False, True]
        assert reward == 0.0
    world.close()


def test_a_step_after_the_end_is_refused(env):
    from gymnasium.error import ResetNeeded

    inner = env.unwrapped
    inner.reset(seed=1)
    while not any(inner.step(np.zeros(7))[2:4]):
        pass
    with pytest.raises(ResetNeeded, match="call reset"):
        inner.step(np.zeros(7))
