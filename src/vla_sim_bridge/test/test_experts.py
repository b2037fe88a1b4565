"""Tests of each task's scripted expert in robosuite: it succeeds and success lasts."""

from types import SimpleNamespace

import numpy as np
import pytest

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.poses import turn_z
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.experts import EXPERTS, expert_for, nuts, pick_place
from vla_sim_bridge.experts.motion import DOWN, FINGER_ROOM, free_grip, home_yaw
from vla_sim_bridge.tasks import TASKS, get_task


def play(name, index=0):
    sim = Simulation(name)
    run = EpisodeRun(sim, 3, index, sim.task.horizon, purpose="generate")
    expert, seen = expert_for(sim.task), {}
    while not run.done:
        run.step(expert(sim))
        for signal, there in sim.signals().items():
            if there:
                seen.setdefault(signal, run.step_count)
    return run.result(), list(seen)


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        ("Lift_D1", ["grasp"]),
        ("StackThree_D1", ["grasp_1", "stack_1", "grasp_2"]),
        ("Square_D1", ["grasp"]),
        pytest.param(
            "NutAssembly_D0", ["grasp_square", "square_on", "grasp_round"], marks=pytest.mark.slow
        ),
    ],
)
def test_an_episode_succeeds_and_gives_its_signals_in_order(name, signals):
    result, seen = play(name)
    assert result.outcome == "success" and seen == signals


def test_every_task_names_an_expert_and_one_without_says_what_else_to_do():
    assert {task.expert for task in TASKS.values()} <= {*EXPERTS}
    from dataclasses import replace

    with pytest.raises(VlaError, match="no scripted expert; generate with --method mimicgen"):
        expert_for(replace(get_task("Lift"), expert=""))


def test_open_fingers_turn_away_from_what_stands_beside():
    hand = np.eye(4)
    hand[:3, :3] = DOWN
    block = np.eye(4)
    for angle in (0.0, np.pi / 2):
        beside = np.array([[0.05 * np.cos(angle), 0.05 * np.sin(angle)]])
        fingers = 0.05 * free_grip(hand, block, beside)[:2, 0]
        assert min(np.linalg.norm(s * fingers - beside[0]) for s in (-1, 1)) > FINGER_ROOM


def test_a_peg_moves_with_the_seed_and_is_written_with_the_scene():
    sim = Simulation("Square_D2")
    places = []
    for seed in (0, 1, 0):
        sim.reset(np.random.default_rng(seed))
        places.append(sim.position("peg1").copy())
        record = sim.scene_record()
        assert record["fixtures"]["peg1"][:3] == places[-1].tolist()
    assert np.array_equal(places[0], places[2]) and not np.array_equal(places[0], places[1])
    sim.set_scene({"fixtures": {"peg1": [0.2, 0.1, 0.85, 1, 0, 0, 0]}})
    assert sim.model.body("peg1").pos.tolist() == [0.2, 0.1, 0.85]


# -- the hand among the bins' walls ---------------------------------------------------------------


def bins(**poses):
    """Milk, bread, cereal and can: position, yaw, and whether it lies."""
    places = dict.fromkeys(pick_place.ORDER, ((0.0, 0.4, 0.84), 0.0, False)) | poses
    made = {}
    for name, (at, yaw, lies) in places.items():
        made[name] = turn_z(yaw)
        if lies:
            made[name][:3, :3] = made[name][:3, :3] @ [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
        made[name][:3, 3] = at
    return SimpleNamespace(pose=made.__getitem__, position=lambda name: made[name][:3, 3])


def grasp(sim, item):
    home = np.eye(4)
    home[:3, :3] = DOWN
    return pick_place._grasp(sim, home, item)


def test_the_hand_turns_where_a_wall_would_be_in_its_way_and_tilts_where_it_cannot():
    along_wall = grasp(bins(Bread=((0.1, -0.06, 0.842), 0.0, False)), "Bread")
    assert abs(along_wall[0, 0]) > 0.99 and along_wall[2, 0] == pytest.approx(0)
    corner = grasp(bins(Bread=((0.22, -0.08, 0.842), np.pi / 4, False)), "Bread")
    raised = corner[:3, 0] * np.sign(corner[2, 0])  # the end of the hand that is higher
    assert raised[2] == pytest.approx(np.sin(pick_place.TILT))
    assert raised[1] > 0.5  # that over the wall
    middle = grasp(bins(Bread=((0.1, -0.25, 0.842), 0.2, False)), "Bread")
    assert middle[2, 2] == pytest.approx(-1)


def test_the_hand_does_not_come_down_on_a_can_beside_the_bread():
    for angle in np.linspace(0, 2 * np.pi, 9):
        side = np.array([np.cos(angle), np.sin(angle)])
        can = (*(np.array([0.1, -0.25]) + 0.08 * side), 0.86)
        found = grasp(
            bins(Bread=((0.1, -0.25, 0.842), angle, False), Can=(can, 0, False)), "Bread"
        )
        assert abs(found[:2, 0] @ side) < 0.1


def test_what_has_fallen_is_gripped_across_its_axis():
    sim = bins(Milk=((0.1, -0.25, 0.838), 0.7, True))
    axis = sim.pose("Milk")[:3, 2]
    found = grasp(sim, "Milk")
    assert abs(found[:3, 0] @ axis) < 1e-6 and found[2, 3] == pytest.approx(0.838)


def test_a_long_turn_of_the_hand_goes_the_way_that_the_wrist_can():
    """From 3.07 to -0.06 rad through 0: the other way is shorter and ends at the wrist's limit."""
    eef, wanted = turn_z(3.07), turn_z(-0.06)[:3, :3] @ DOWN
    eef[:3, :3] = eef[:3, :3] @ DOWN
    turns = []
    for _ in range(4):
        eef[:3, :3] = nuts._turned(eef, wanted)
        turns.append(home_yaw(eef))
    assert turns == pytest.approx([1.57, 0.07, -0.06, -0.06])
