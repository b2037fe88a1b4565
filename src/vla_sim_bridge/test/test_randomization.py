"""Tests of domain randomisation: looks and dynamics vary reproducibly, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from vla_sim_bridge.envs.randomization import Randomize, Ranges
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.generation.attempt import make_attempt
from vla_sim_bridge.generation.generate import GenerateConfig

CAMERAS = ("agentview", "robot0_eye_in_hand")
SIZE = {"cameras": CAMERAS, "width": 32, "height": 32}
CONFIG = GenerateConfig(
    task="Stack_D1", seed=5, cameras=CAMERAS, camera_width=32, camera_height=32
)


@pytest.fixture(scope="module")
def plain():
    simulation = Simulation("Stack_D1", **SIZE)
    yield simulation
    simulation.close()


@pytest.fixture(scope="module")
def varied():
    every = Randomize(("colours", "camera", "light", "dynamics"), "frame")
    simulation = Simulation("Stack_D1", **SIZE, randomize=every)
    yield simulation
    simulation.close()


def look(sim) -> np.ndarray:
    return np.stack([sim.render(c) for c in sim.cameras])


def play(sim, index=0, steps=3):
    sim.reset(episode_rng("generate", 2, index))
    shown = [look(sim)]
    for _ in range(steps):
        sim.step(np.array([0.02, 0, 0, 0, 0, 0, 1.0]))
        shown.append(look(sim))
    return np.stack(shown), sim.get_mujoco_state(), sim.randomized


def test_an_episode_looks_the_same_whatever_came_before(varied):
    images, state, drawn = play(varied)
    play(varied, index=5, steps=7)
    again, state_again, drawn_again = play(varied)
    assert np.array_equal(images, again) and np.array_equal(state, state_again)
    assert drawn == drawn_again and set(drawn) == {"colours", "camera", "light", "dynamics"}


def test_every_frame_looks_different_and_draws_stay_within_their_ranges(varied):
    nominal = Simulation("Stack_D1", **SIZE).model
    varied.reset(episode_rng("generate", 2, 1))
    mass = varied.model.body_mass.copy()
    cameras = [varied.model.camera(c).id for c in varied.cameras]
    seen = []
    for _ in range(30):
        varied.hold()
        seen.append(varied.model.cam_pos[cameras].copy())
        assert np.abs(seen[-1] - nominal.cam_pos[cameras]).max() <= Ranges().camera_position
        fovy = varied.model.cam_fovy[cameras] - nominal.cam_fovy[cameras]
        assert np.abs(fovy).max() <= Ranges().camera_fovy
    assert len({s.tobytes() for s in seen}) == 30
    assert np.array_equal(mass, varied.model.body_mass)  # dynamics hold for the episode
    factor = varied.randomized["dynamics"]["mass"]
    cube = varied.model.body("cubeA_main").id
    assert mass[cube] == pytest.approx(nominal.body_mass[cube] * factor)
    assert mass[cube] != nominal.body_mass[cube]
    hand = varied.model.body("robot0_right_hand").id
    assert mass[hand] == nominal.body_mass[hand]


@pytest.mark.parametrize("part", ["colours", "camera", "light"])
def test_each_part_alone_changes_the_images_and_not_the_world(plain, varied, part, monkeypatch):
    images, state, _ = play(plain, steps=0)
    monkeypatch.setattr(varied._randomizer, "config", Randomize((part,)))
    other, other_state, drawn = play(varied, steps=0)
    assert set(drawn) == {part}
    assert np.array_equal(state, other_state)
    assert np.abs(images.astype(int) - other).mean() > 0.5


def test_a_mishap_is_recorded_as_what_the_expert_wants_and_is_put_right(plain):
    config = replace(CONFIG, recovery=1.0, images=False)
    kinds, n = set(), 2
    for index in range(n):
        calm = make_attempt(plain, replace(config, recovery=0.0, horizon=50), index)
        made = make_attempt(plain, config, index)
        attributes = made.episode.metadata
        assert attributes["recovery"] is True
        what = json.loads(attributes["perturbation"])
        kinds.add(what["kind"])
        assert made.success
        at = what["at"]
        states, plain_states = (a.episode.columns["states"] for a in (made, calm))
        assert np.array_equal(states[: at + 1], plain_states[: at + 1])
        # the action at that step is still the expert's; the world after it is another
        assert np.array_equal(made.episode.actions[at], calm.episode.actions[at])
        after = slice(at + 1, at + 3)
        assert not np.array_equal(
            made.episode.columns["states"][after], calm.episode.columns["states"][after]
        )
        assert "perturbation" not in calm.episode.metadata
    assert kinds == {"knock", "nudge"}
