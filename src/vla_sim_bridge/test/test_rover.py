"""Tests of the rover: its expert, rules, scenes, lidar and demonstrations."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, base_twist_spec, eef_delta_spec
from vla_sim_bridge.cli.rollout import rollout
from vla_sim_bridge.envs.rover import layout
from vla_sim_bridge.envs.rover.map_view import BUMPER
from vla_sim_bridge.envs.rover.world import BEAMS, RANGE, RoverWorld
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.evaluation.rollout import run_episode, summarise
from vla_sim_bridge.experts.rover import rover_expert
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.generate import generate
from vla_sim_bridge.tasks import get_task
from vla_sim_bridge.tasks.rover import NEAR, ROVER_TASKS, shape_of
from vla_sim_bridge.tasks.rover.rules import LOST


@pytest.fixture(scope="module")
def world():
    made = RoverWorld("Rover_D0", (), 64, 64)
    yield made
    made.close()


def put(world: RoverWorld, **places) -> None:
    """Objects by name, the first the target. The rover is in the middle, looking along x."""
    colours = dict(zip(places, ("red", "blue", "green"), strict=False))
    world.set_scene(
        {"colours": colours, "roles": {"target": next(iter(places))}, "places": places}
    )
    world.place(0.0, 0.0, 0.0)


def drive(world: RoverWorld, linear: float, angular: float, steps: int):
    for _ in range(steps):
        result = world.step(np.array([linear, angular]))
    return result


@pytest.mark.parametrize("task", ROVER_TASKS, ids=lambda t: t.name)
def test_the_expert_does_what_the_sentence_says_and_stays(task):
    made = RoverWorld(task, (), 64, 64)
    for index in range(4):
        run = EpisodeRun(made, 3, index, task.horizon, "generate")
        while not run.done:
            run.step(rover_expert(made))
        assert run.outcome == "success"
        if task.name.startswith("Rover_"):
            gap, bearing = made.ahead("target")
            assert 0 < gap <= NEAR and abs(bearing) < 0.3
    made.close()


def test_an_episode_is_that_of_its_seed(world):
    def begin(seed):
        world.start_episode("evaluate", seed, 2)
        return world.instruction, world.scene_record(), world.get_mujoco_state().tolist()

    first, other, again = begin(1), begin(2), begin(1)
    assert first == again and first != other


def test_scenes_have_room_and_the_hardest_ones_share_shapes_and_colours():
    rng = np.random.default_rng(0)
    for task in ROVER_TASKS:
        for _ in range(20):
            scene = task.draw_scene(rng)
            start, places, walk = layout.draw(rng, task.course, list(scene.colours))
            assert len(walk) == 0 or np.abs(walk).max() < layout.HALF - 2 * layout.OFF_WALLS
            at = np.array(list(places.values()))
            apart = np.linalg.norm(at[:, None] - at, axis=-1) + 10 * np.eye(len(at))
            assert apart.min() >= layout.APART and np.abs(at).max() <= layout.HALF
            assert np.linalg.norm(at - start[:2], axis=1).min() >= 1.1
            looks = {(shape_of(n), c) for n, c in scene.colours.items()}
            assert len(looks) == len(scene.colours)  # no two alike
            shared = len({s for s, _ in looks}) < len(looks) > len({c for _, c in looks})
            assert shared == (task.name == "Rover_D2")


def test_a_gate_is_passed_between_its_sides_and_not_beside_them():
    made = RoverWorld("RoverGate_D0", (), 64, 64)

    def come(first, second, linear=0.5, back=0):
        roles, places = {"first": "ball_0", "second": "box_0"}, {"ball_0": first, "box_0": second}
        colours = {"ball_0": "red", "box_0": "blue"}
        made.set_scene({"colours": colours, "roles": roles, "places": places})
        made.place(0.0, 0.0, 0.0)
        drive(made, linear, 0.0, 40)
        if back:
            drive(made, -linear, 0.0, back)
        return drive(made, 0.0, 0.0, 10).success

    assert come((0.5, 0.6), (0.6, -0.6))
    assert come((0.5, -0.6), (0.6, 0.6))  # whichever stands on the left
    assert not come((0.5, 0.6), (0.6, 1.8))  # beside both
    assert not come((0.9, 0.6), (0.9, -0.6))  # not far enough
    assert not come((0.5, 0.6), (0.6, -0.6), 0.0)
    assert not come((0.5, 0.6), (0.6, -0.6), back=36)  # out again, on the side it began on
    made.close()


def test_an_object_is_gone_round_on_the_side_that_was_said():
    made = RoverWorld("RoverRound_D0", (), 64, 64)

    def come(side, way):
        """Along points, then at rest before the target."""
        roles = {side: "ball_0", "target": "box_0"}
        places = {"ball_0": (1.0, 0.0), "box_0": (2.2, 0.0)}
        colours = {"ball_0": "red", "box_0": "blue"}
        made.set_scene({"colours": colours, "roles": roles, "places": places})
        made.place(2.2 - 0.15 - BUMPER - 0.2, 0.0, 0.0)
        made.track[:] = way
        result = made.hold()
        return "success" if result.success else result.wrong

    left, right = [(0.0, 0.0), (1.0, 0.6)], [(0.0, 0.0), (1.0, -0.6)]
    assert come("left", left) == come("right", right) == "success"
    assert come("left", right) == come("right", left) == "wrong_side"
    assert come("left", [(1.8, 0.1)]) == ""  # it was put there
    made.close()


def test_a_person_is_followed_until_they_stop_and_may_not_be_lost():
    made = RoverWorld("RoverFollow_D0", (), 64, 64)
    made.start_episode("evaluate", 0, 0)
    begin, steps = made.position("person"), len(made.walk)
    for _ in range(steps + 1):
        result = made.hold()
        assert not result.success
    came = made.position("person") - begin
    assert came == pytest.approx(made.walk[-1] - made.walk[0], abs=1e-6) and not made.walking
    stays = made.position("person")
    assert (made.furthest > LOST) == (made.hold().wrong == "lost")
    assert made.position("person") == pytest.approx(stays)

    record, state = made.scene_record(), made.get_mujoco_state()
    made.start_episode("evaluate", 0, 1)
    made.set_scene(record)
    made.set_mujoco_state(state)
    assert made.position("target") == pytest.approx(stays)  # as images of it are made again

    x, y = stays
    made.place(x - 0.8, y, 0.0)  # an episode anew: the person is where the walk begins
    made.set_scene({**record, "walk": []})
    made.place(begin[0] - 0.2 - BUMPER - 0.6, begin[1], 0.0)
    assert drive(made, 0.0, 0.0, 2).success
    made.furthest = LOST + 0.1
    assert made.hold().wrong == "lost"
    made.place(begin[0] - 0.2 - BUMPER - 0.1, begin[1], 0.0)
    assert drive(made, 0.5, 0.0, 20).wrong == "collision"
    made.close()


def test_after_the_word_it_has_to_stop_and_before_that_it_has_not_succeeded():
    made = RoverWorld("RoverWord_D0", (), 64, 64)
    for obeys in (True, False):
        made.start_episode("evaluate", 0, 0)
        first = made.instruction
        assert not drive(made, 0.0, 0.0, 3).success
        while made.word_at < 0:
            drive(made, 0.3, 0.0, 1)
        assert made.instruction != first and len(made.instruction.split()) <= 3
        result = drive(made, 0.0 if obeys else 0.3, 0.0, 26)
        assert (result.success, result.wrong) == ((True, "") if obeys else (False, "drove_on"))
    made.start_episode("evaluate", 0, 0)
    while made.word_at < 0:
        drive(made, 0.0, 0.0, 1)
    assert not drive(made, 0.0, 0.0, 26).success  # who stands still has obeyed nothing
    made.close()


def test_success_is_to_stand_in_front_of_the_target_at_rest(world):
    put(world, ball_0=(0.55, 0.0), box_0=(-1.5, 0.0))
    assert drive(world, 0.0, 0.0, 2).success  # 0.19 m to its side
    put(world, ball_0=(0.8, 0.0), box_0=(-1.5, 0.0))
    assert not drive(world, 0.0, 0.0, 2).success  # too far
    put(world, ball_0=(0.4, 0.4), box_0=(-1.5, 0.0))
    assert not drive(world, 0.0, 0.0, 2).success  # beside it
    put(world, ball_0=(0.9, 0.0), box_0=(-1.5, 0.0))
    assert not drive(world, 0.4, 0.0, 18).success  # passing through


def test_another_object_and_a_collision_are_counted_apart(world):
    put(world, ball_0=(-1.5, 0.0), box_0=(0.5, 0.0))
    assert drive(world, 0.0, 0.0, 2).wrong == "wrong_object"
    put(world, ball_0=(0.6, 0.0), box_0=(-1.5, 0.0))
    assert drive(world, 0.5, 0.0, 30).wrong == "collision"
    assert drive(world, -0.3, 0.0, 30).wrong == "collision"  # it stays one
    put(world, ball_0=(1.0, 1.0), box_0=(-1.5, 0.0))
    world.place(2.5, 0.0, 0.0)
    assert drive(world, 0.5, 0.0, 30).wrong == "collision"  # a wall


def test_it_drives_as_it_is_told_within_its_drivers_limits(world):
    put(world, ball_0=(2.0, 2.0))
    drive(world, 9.0, 0.0, 40)
    assert world.velocity() == pytest.approx([0.5, 0.0], abs=0.02)
    assert world.pose()[0] == pytest.approx(1.0, abs=0.1)
    world.place(0, 0, 0)
    drive(world, 0.0, 1.0, 20)
    assert world.pose()[2] == pytest.approx(1.0, abs=0.1)
    with pytest.raises(VlaError, match="not 2 finite numbers"):
        world.step(np.array([np.nan, 0.0]))
    with pytest.raises(VlaError, match="this simulation's base takes a base_twist"):
        world.actions(ActionChunk(np.zeros((2, 7)), eef_delta_spec()))


def test_the_lidar_measures_objects_and_walls_but_not_the_rover(world):
    put(world, ball_0=(1.0, 0.0), pillar_0=(0.0, 2.0))
    ranges = world.lidar()
    assert ranges.shape == (BEAMS,) and ranges.max() <= RANGE
    ahead, left = ranges[BEAMS // 2], ranges[3 * BEAMS // 4]
    assert (ahead, left) == pytest.approx((1 - 0.155, 1.9), abs=0.02)
    assert ranges[0] == pytest.approx(layout.HALF - 0.05, abs=0.02)


def test_a_run_counts_how_it_ended(world):
    def still(observation):
        return ActionChunk(np.zeros((8, 2)), base_twist_spec())

    results = [run_episode(world, still, 5, i, 40, 4) for i in range(2)]
    counts = summarise(results)
    assert (counts["successes"], counts["collision"], counts["wrong_object"]) == (0, 0, 0)
    assert [r.outcome for r in results] == ["timeout"] * 2


def test_demonstrations_hold_what_makes_them_again(tmp_path):
    size = {"camera_width": 48, "camera_height": 48}
    config = GenerateConfig(task="Rover_D2", episodes=2, **size)
    path = generate(config, tmp_path / "data", parallel=1)
    with h5py.File(path) as file:
        said = json.loads(file["data"].attrs["action_convention"])
        assert [p["kind"] for p in said["spec"]["parts"]] == ["base_twist"]
        demo = file["data/demo_1"]
        actions, images = demo["actions"][:], demo["obs/agentview_image"][:]
        assert actions.shape[1] == 2 and len(images) == len(actions)
        assert not actions[-1].any()  # it stays where it stopped
        scene, states = json.loads(demo.attrs["scene"]), demo["states"][:]
    world = RoverWorld("Rover_D2", ("agentview",), 48, 48)
    world.set_scene(scene)
    for step in (0, len(states) // 2):
        world.set_mujoco_state(states[step])
        assert np.abs(world.render("agentview").astype(int) - images[step]).max() <= 2
    world.close()


@pytest.mark.parametrize(
    "given", [{"method": "mimicgen"}, {"randomize": ("light",)}, {"recovery": 0.5}]
)
def test_options_that_a_rover_does_not_have_are_refused(tmp_path, given):
    with pytest.raises(VlaError, match="Rover_D0 cannot be generated with --"):
        generate(GenerateConfig(task="Rover_D0", **given), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_other_cameras_and_other_tasks_are_refused():
    with pytest.raises(VlaError, match="no camera 'wrist'; cameras: overview, agentview"):
        RoverWorld("Rover_D0", ("wrist",))
    with pytest.raises(VlaError, match="Stack_D0 is not a rover's"):
        RoverWorld("Stack_D0")
    assert get_task("rover").name == "Rover_D0"


def test_a_model_for_an_arm_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(VlaError, match="moves by eef_delta, gripper, Rover_D0 is a rover's"):
        rollout(task="Rover_D0", episodes=1, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
