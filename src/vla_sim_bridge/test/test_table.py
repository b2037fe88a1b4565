"""Tests of Table_L: the sentence alone says which thing is meant and what is to be done."""

import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.evaluation.episode import WRONG, EpisodeRun
from vla_sim_bridge.experts.stack import stack_expert
from vla_sim_bridge.experts.table import table_expert
from vla_sim_bridge.tasks import TASKS, get_task
from vla_sim_bridge.tasks.table import references
from vla_sim_bridge.tasks.table.things import ACTS, APART, HALF, draw

TASK = get_task("Table_L")
RELATION = re.compile(r"left of|right of|behind|in front of|between")


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]


def all_names(scene, places, name):
    """Everything that a thing may be called in a scene."""
    things = references.Things(tuple(places), places)
    said = set()
    for seed in range(8):  # nouns are drawn
        rng = np.random.default_rng(seed)
        said |= {
            *references.by_colour(rng, things, scene.colours, name),
            *references.by_size(rng, things, name),
            *references.by_both(rng, things, scene.colours, name),
            *references.by_relation(rng, things, scene.colours, name),
        }
    return {re.sub("cube|cylinder", lambda m: {"cube": "block"}.get(m[0], "can"), s) for s in said}


def test_words_mean_one_thing_alone():
    for scene, places in scenes(60):
        called = {name: all_names(scene, places, name) for name in places}
        for name in places:
            for other in places:
                assert name == other or not called[name] & called[other]


def test_every_act_number_and_kind_of_words_is_drawn():
    drawn = scenes(300)
    for act in ACTS:
        assert 0.15 < np.mean([s.words["act"] == act for s, _ in drawn]) < 0.35
    assert {len(places) for _, places in drawn} == {3, 4, 5}
    assert np.mean([bool(RELATION.search(s.words["moved"])) for s, _ in drawn]) > 0.1
    for scene, places in drawn:
        assert scene.roles["moved"] != scene.roles["base"]
        assert set(scene.roles.values()) <= set(places)
        spots = np.array(list(places.values()))
        gaps = np.linalg.norm(spots[:, None] - spots, axis=2) + np.eye(len(spots))
        assert gaps.min() > APART
        if scene.words["act"] == "stack":
            assert scene.roles["base"] != "can"


def test_left_is_left_in_the_image_and_behind_is_farther_away():
    position, (w, x, y, z) = TASK.camera_poses["agentview"]
    axes = Rotation.from_quat([x, y, z, w]).as_matrix()
    assert axes[1, 0] > 0.99  # the image's right is +y
    assert position[0] > 0.5 and -axes[0, 2] < -0.5  # it looks along -x
    things = references.Things(("can", "big_1"), {"can": (0.0, -0.1), "big_1": (0.0, 0.1)})
    said = set(
        references.by_relation(
            np.random.default_rng(0), things, {"can": "red", "big_1": "blue"}, "can"
        )
    )
    assert {re.sub("cylinder", "can", re.sub("cube", "block", s)) for s in said} == {
        "the can left of the blue block",
        "the can to the left of the blue block",
    }


@pytest.fixture(scope="module")
def sim():
    return Simulation("Table_L", cameras=())


def start(sim, act):
    """The first episode in which this is asked."""
    for index in range(40):
        run = EpisodeRun(sim, 11, index, sim.task.horizon, purpose="generate")
        if sim.scene.words["act"] == act:
            return run
    raise AssertionError(act)


def play(sim, run, expert):
    while not run.done:
        run.step(expert(sim))
    return run.result().outcome


@pytest.mark.parametrize("act", ACTS)
def test_the_expert_does_what_is_asked_and_it_lasts(sim, act):
    assert play(sim, start(sim, act), table_expert) == "success"


def test_another_thing_and_another_act_are_counted_apart(sim):
    run = start(sim, "beside")
    halves = HALF[sim.scene.roles["moved"]] + HALF[sim.scene.roles["base"]]
    assert play(sim, run, lambda s: stack_expert(s, "base", "moved", halves)) == "wrong_object"
    run = start(sim, "edge")
    base = sim.scene.roles["base"]
    halves = HALF[sim.scene.roles["moved"]] + HALF[base]
    assert play(sim, run, lambda s: stack_expert(s, "moved", "base", halves)) == "wrong_task"


def test_a_record_brings_the_scene_back(sim):
    sim.reset(episode_rng("generate", 0, 3))
    scene, state, record = sim.scene, sim.get_mujoco_state(), sim.scene_record()
    unused = [n for n in HALF if sim.position(n)[2] < 0.5]
    assert len(unused) <= 2
    sim.reset(episode_rng("generate", 0, 4))
    sim.set_scene(record)
    sim.set_mujoco_state(state)
    assert sim.scene == scene
    sim.reset(episode_rng("generate", 0, 3))
    np.testing.assert_array_equal(sim.get_mujoco_state(), state)


def test_all_ends_that_tasks_know_are_counted_apart():
    known = {name for task in TASKS.values() for name in task.wrong}
    assert known <= set(WRONG)
