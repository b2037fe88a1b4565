"""Tests of LIBERO's scripted expert and of generation with it; `make compat` has the real one."""

import json
from types import SimpleNamespace

import h5py
import mujoco
import numpy as np
import pytest

from vla_inference.episodes.robosuite import from_robosuite
from vla_inference.errors import VlaError
from vla_inference.system.workers import WorkerDiedError
from vla_inference.types import eef_delta_spec
from vla_sim_bridge.envs.base import Demonstration
from vla_sim_bridge.envs.other_python.process import ProcessLostError
from vla_sim_bridge.generation import generate as generation
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.libero.expert import grips
from vla_sim_bridge.libero.expert.motion import MOST, Motion
from vla_sim_bridge.libero.expert.pick_place import goals
from vla_sim_bridge.libero.expert.scene import Scene
from vla_sim_bridge.tasks import get_task

# A square bowl, 8 cm wide and 6 cm high, on a table; {more} stands around it.
MODEL = """
<mujoco><worldbody>
  <geom name="table" type="box" size="1 1 0.05" pos="0 0 -0.05"/>
  <body name="robot0_base" pos="-0.6 0 0">
    <geom type="box" size="0.02 0.02 0.5" pos="0.6 0 0.9"/>
    <site name="grip" pos="0.6 0 0.4"/>
  </body>
  <body name="bowl" pos="0 0 0"><freejoint/>
    <geom type="box" size="0.002 0.05 0.03" pos="0.049 0 0.03"/>
    <geom type="box" size="0.002 0.05 0.03" pos="-0.049 0 0.03"/>
    <geom type="box" size="0.05 0.002 0.03" pos="0 0.049 0.03"/>
    <geom type="box" size="0.05 0.002 0.03" pos="0 -0.049 0.03"/>
    <geom type="box" size="0.05 0.05 0.002" pos="0 0 0.002"/>
  </body>
  {more}
</worldbody></mujoco>"""
BESIDE = '<geom type="box" size="0.02 0.1 0.1" pos="{} 0 0.1"/>'


def scene(*walls):
    """A scene with walls at these x, as robosuite 1.4 would hand it over."""
    model = mujoco.MjModel.from_xml_string(MODEL.format(more="".join(map(BESIDE.format, walls))))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    sim = SimpleNamespace(
        model=SimpleNamespace(
            _model=model,
            body_name2id=lambda name: model.body(name).id,
            site_name2id=lambda name: model.site(name).id,
        ),
        data=SimpleNamespace(
            _data=data, get_body_xpos=lambda name: data.xpos[model.body(name).id]
        ),
    )
    robot = SimpleNamespace(eef_site_id=0, _ref_gripper_joint_pos_indexes=[0])
    bowl = SimpleNamespace(category_name="akita_black_bowl")
    env = SimpleNamespace(
        sim=sim,
        robots=[robot],
        obj_body_id={"bowl_1": model.body("bowl").id},
        get_object=lambda name: bowl,
    )
    return Scene(env)


def test_heights_leave_the_robot_and_what_is_held_out():
    made = scene()
    assert made.height(0, 0, 2) == pytest.approx(0.004)  # the arm is above the bowl
    assert made.height(0.049, 0, 2) == pytest.approx(0.06)
    assert made.height(0.049, 0, 2, made.own_bodies("bowl_1")) == pytest.approx(0)
    assert made.height(5, 5, 2) == -np.inf
    start, end = np.array([-0.3, 0, 0.2]), np.array([0.3, 0.02, 0.2])  # across both walls
    assert made.highest_between(start, end, 0.06) == pytest.approx(0.06, abs=1e-6)
    assert made.points("bowl_1")[:, 2].max() == pytest.approx(0.06)
    assert made.tilt("bowl_1") == 0


@pytest.mark.parametrize(("wall", "side"), [(0.1, -1), (-0.1, 1)])
def test_a_bowl_is_gripped_where_no_wall_stands(wall, side):
    """The hand is 21 cm wide: beside a wall it takes the rim so that it fits."""
    made = scene(wall)
    grip = grips.choose(made, "bowl_1", np.array([0.1, 0.1, 0]))
    assert grips.room(made, grip) >= grips.ROOM
    at_the_wall = grips.Grip(np.array([-side * 0.049, 0, 0.042]), np.pi / 2)
    assert grips.room(made, at_the_wall) < 0
    assert np.linalg.norm(grip.position[:2]) == pytest.approx(0.049)
    assert grip.position[2] < 0.06 and abs(grip.yaw) <= grips.MOST_YAW


def test_the_side_of_a_rim_is_chosen_by_where_the_hand_ends():
    """The base is at x = -0.6: at full stretch the hand takes the near side of the rim."""
    grip = grips.choose(scene(), "bowl_1", np.array([0.15, 0, 0]))
    assert grip.position[0] < 0


def test_motion_comes_near_within_the_range_of_human_demonstrations():
    hand, given = np.eye(4), []
    hand[:3, :3], hand[:3, 3] = grips.turned(0.4), (0.2, 0, 0.3)

    def step(action):
        given.append(action)
        hand[:3, 3] += 0.3 * 0.05 * action[:3]  # the controller lags
        return len(given) == 80

    motion = Motion(SimpleNamespace(hand=lambda: hand.copy()), step)
    motion.go(np.array([0, 0.1, 0.1]), 0.4, -1, near=0.008)
    assert np.linalg.norm(hand[:3, 3] - (0, 0.1, 0.1)) < 0.008 and len(given) < 60
    assert np.abs(given)[:, :6].max() == MOST and not motion.over
    motion.rest(100)
    assert len(given) == 80 and motion.over


@pytest.mark.parametrize(
    ("goal", "problem"),
    [
        (["on", "bowl_1", "plate_1"], ""),
        (["turnon", "stove_1"], "cannot do turnon stove_1"),
        (["on", "moka_pot_1", "stove_1"], "has no grip for moka_pot"),
        (["in", "bowl_1", "cabinet_1_top_region"], "cannot open cabinet_1_top_region"),
        (["in", "bowl_1", "cabinet_1_low_region"], ""),  # it is open
        (["on", "bottle_1", "wine_rack_1_top_region"], "cannot lay bottle_1 into wine_rack_1"),
    ],
)
def test_goals_that_the_expert_cannot_reach_are_named(goal, problem):
    objects = {
        "akita_black_bowl": ["bowl_1"],
        "moka_pot": ["moka_pot_1"],
        "wine_bottle": ["bottle_1"],
    }
    problem_file = {
        "objects": objects,
        "fixtures": {"wooden_cabinet": ["cabinet_1"]},
        "initial_state": [["open", "cabinet_1_low_region"], ["on", "bowl_1", "table_region"]],
        "goal_state": [goal],
    }
    wanted, why = goals(problem_file)
    assert problem in why and wanted == ([] if problem else [tuple(goal)])


# -- generation -----------------------------------------------------------------------------------


class Played:
    """A world that plays demonstrations itself; every third one fails."""

    spec, drawn = eef_delta_spec("rotvec", "base", 0.05), 0

    def __init__(self, task, cameras, width, height):
        self.task, self.cameras, self.size, self.state = task, cameras, (height, width), None

    def demonstrate(self, seed, index, limit, settle, noise):
        assert (limit, settle, noise) == (280, 10, 0.2)
        self.instruction = f"pick up thing {index % 10}"
        rng = np.random.default_rng([seed, index])
        length = 5 + index
        columns = {
            "actions": from_robosuite(rng.uniform(-1, 1, (length, 7))).astype(np.float32),
            "states": rng.normal(size=(length, 4)),
            "success": np.arange(length) >= 2,
            "robot0_state": rng.normal(size=(length, 8)).astype(np.float32),
            "robot0_eef_pos": rng.normal(size=(length, 3)).astype(np.float32),
            "robot0_eef_rotation": np.tile(np.eye(3), (length, 1, 1)),
            "objects/bowl_1": np.tile(np.eye(4), (length, 1, 1)),
        }
        outcome = "slipped" if index % 3 == 0 else "success"
        return Demonstration(outcome, 3, {"task": index, "fixtures": {}}, columns)

    def set_mujoco_state(self, state):
        self.state = state

    def seen_by(self, camera):
        type(self).drawn += 1
        return np.full((*self.size, 3), int(abs(self.state[0]) * 50) % 256, np.uint8)


class HereAtOnce:
    """A worker in this process, which dies once after two attempts, or loses its world."""

    calls, death = 0, WorkerDiedError()

    def __init__(self, make):
        self.count, self._play, self._given = 1, make(), []

    def start(self, number):
        self._given.append(number)

    def finished(self):
        HereAtOnce.calls += 1
        number = self._given.pop(0)
        if HereAtOnce.calls == 3:
            raise self.death
        return [(number, self._play(number))]

    def close(self):
        self._given.clear()


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(generation, "make_expert_world", Played)
    monkeypatch.setattr(generation, "check_installed", lambda task: None)
    monkeypatch.setattr(HereAtOnce, "calls", 0)
    monkeypatch.setattr(Played, "drawn", 0)


def make(folder, **change):
    values = {"task": "libero_object", "episodes": 3, "cameras": ("agentview", "wrist")}
    values |= {"camera_width": 16, "camera_height": 16, "seed": 4, **change}
    return generation.generate(GenerateConfig(**values), folder, start_workers=HereAtOnce)


@pytest.mark.parametrize("death", [WorkerDiedError(), ProcessLostError("LIBERO ended", "again")])
def test_demonstrations_are_those_that_the_world_played(played, tmp_path, monkeypatch, death):
    """Attempts 0 and 3 fail, and a worker or its world dies: 1, 2 and 4 are kept."""
    monkeypatch.setattr(HereAtOnce, "death", death)
    path = make(tmp_path / "out")
    world = Played(get_task("libero_object"), (), 16, 16)
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == 6 + 7 + 9
        for name, index in (("demo_0", 1), ("demo_1", 2), ("demo_2", 4)):
            demo, meant = file["data"][name], world.demonstrate(4, index, 280, 10, 0.2)
            np.testing.assert_array_equal(demo["states"], meant.columns["states"])
            np.testing.assert_array_equal(demo["obs/robot0_state"], meant.columns["robot0_state"])
            np.testing.assert_allclose(
                from_robosuite(demo["actions"][:])[:, :6], meant.columns["actions"][:, :6]
            )
            shown = np.abs(meant.columns["states"][:, 0] * 50).astype(int) % 256
            np.testing.assert_array_equal(demo["obs/wrist_image"][:, 0, 0, 0], shown)
            assert demo["instructions"][0].decode() == f"pick up thing {index}"
            assert json.loads(demo.attrs["scene"]) == {"task": index, "fixtures": {}}
            assert demo.attrs["method"] == "scripted" and demo.attrs["settled"]
            assert demo["datagen_info/object_poses/bowl_1"].shape == (5 + index, 4, 4)
    assert Played.drawn == 2 * (6 + 7 + 9)  # of successes alone
    told = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert told["failures"] == {"slipped": 2} and told["attempts"] == 5


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("--method", {"method": "mimicgen"}),
        ("--randomize", {"randomize": ("light",)}),
        ("--recovery", {"recovery": 0.5}),
        ("--keep-failures", {"keep_failures": True}),
    ],
)
def test_options_that_libero_does_not_have_are_refused(played, tmp_path, option, change):
    with pytest.raises(VlaError, match=f"cannot be generated with {option}; leave it out"):
        make(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_a_package_without_an_expert_is_refused(tmp_path):
    with pytest.raises(VlaError, match=r"mimicgen/.* has no expert here"):
        generation.make_expert_world(get_task("mimicgen/Coffee_D1"), ())
