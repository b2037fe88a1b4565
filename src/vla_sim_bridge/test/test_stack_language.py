"""Tests of Stack_L in robosuite: the sentence alone decides which order counts."""

import pytest

from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.experts import expert_for
from vla_sim_bridge.experts.stack import stack_expert


@pytest.fixture(scope="module")
def sim():
    return Simulation("Stack_L")


def play(sim, index, expert):
    run = EpisodeRun(sim, 3, index, 200)
    while not run.done:
        run.step(expert(sim))
    return run.result()


def test_the_expert_obeys_the_sentence_whichever_body_it_means(sim):
    moved = set()
    for index in range(4):
        assert play(sim, index, expert_for(sim.task)).success
        moved.add(sim.scene.roles["moved"])
        assert sim.position("moved")[2] > sim.position("base")[2] + 0.03
    assert moved == {"cubeA", "cubeB"}


def test_the_other_order_is_wrong_order(sim):
    def disobey(sim):
        return stack_expert(sim, moved="base", base="moved", stacked=0.04)

    assert play(sim, 0, disobey).outcome == "wrong_order"


def test_language_changes_the_sentence_and_nothing_else(sim):
    seen = []
    for sim.language in ("held-out", "train"):
        EpisodeRun(sim, 3, 1, 10)
        seen.append((sim.instruction, sim.scene, sim.get_mujoco_state().tolist()))
    (held_out, *world), (train, *same_world) = seen
    assert held_out != train and world == same_world
