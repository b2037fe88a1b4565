"""Tests of the MimicGen method: segmentation, transfer, execution."""

from __future__ import annotations

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_inference.episodes.robosuite import to_robosuite
from vla_inference.errors import DataError, VlaError
from vla_sim_bridge.envs.poses import rotation_angle
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.generation.attempt import make_attempt
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.mimicgen.method import (
    FINGER_REACH,
    SELECTIONS,
    MimicGenConfig,
    _carry,
    _randomised,
    _select,
    mimicgen_policy,
)
from vla_sim_bridge.mimicgen.source_demos import (
    DEMONSTRATIONS,
    SourceDemo,
    load_sources,
    read_sources,
)
from vla_sim_bridge.tasks import Subtask, get_task

SUBTASKS = (Subtask("a", "grasp", (2, 4)), Subtask("b"))


def demo(signal) -> SourceDemo:
    n = len(signal)
    poses = np.tile(np.eye(4), (n, 1, 1))
    return SourceDemo(
        poses, poses, np.ones(n), {"a": poses, "b": poses}, {"grasp": np.array(signal, bool)}
    )


def pose(x, y, z, yaw, pitch=0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    matrix[:3, :3] = Rotation.from_euler("zy", [yaw, pitch]).as_matrix()
    return matrix


def test_segment_ends_one_past_the_rising_signal():
    assert demo([0, 0, 0, 1, 1, 0, 1, 0]).boundaries(SUBTASKS) == [4, 8]


def test_signal_that_never_comes_is_named():
    with pytest.raises(DataError, match="grasp"):
        demo([0] * 8).boundaries(SUBTASKS)


@given(st.integers(1, 30), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_segments_cover_everything_and_are_never_empty(first, more, seed):
    ends = [first, first + more]
    (a, b), (c, d) = _randomised(demo([0] * ends[1]), ends, SUBTASKS, np.random.default_rng(seed))
    assert a == 0 and a < b == c < d == ends[-1]
    assert b == ends[-1] - 1 or 2 <= b - first <= 4


@given(st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_a_boundary_leaves_half_the_way_to_the_next_gripper_change(until_open, seed):
    source = demo([0] * 60)
    source.gripper[10:] = 0
    source.gripper[30 + until_open :] = 1
    subtasks = (Subtask("a", "grasp", (10, 20)), Subtask("b"))
    (_, b), _ = _randomised(source, [30, 60], subtasks, np.random.default_rng(seed))
    assert b <= 30 + until_open // 2


coordinate = st.floats(-0.3, 0.3)
angle = st.floats(-np.pi, np.pi)


def still(then, target, eef=None, closes=False) -> SourceDemo:
    """Two steps in one place; the object is "a"."""
    gripper = np.array([1.0, 0.0 if closes else 1.0])
    eef = target if eef is None else eef
    return SourceDemo(np.stack([eef] * 2), np.stack([target] * 2), gripper, {"a": [then] * 2}, {})


def carried(source, now, eef, symmetry=1, others=()):
    objects = {"a": now, **{f"other{i}": o for i, o in enumerate(others)}}
    return _carry(
        Subtask("a", symmetry=symmetry), objects, eef, source, 0, 2, MimicGenConfig(), np.zeros(3)
    )


@given(coordinate, coordinate, angle, coordinate, coordinate, angle, angle)
def test_motion_keeps_its_place_in_the_objects_frame(x, y, yaw, u, v, turn, pitch):
    then, now = pose(x, y, 0.8, yaw), pose(u, v, 0.8, turn)
    target = pose(x + 0.02, y, 0.9, yaw + 0.3, pitch)
    carry = carried(still(then, target), now, np.eye(4))
    np.testing.assert_allclose(
        np.linalg.inv(now) @ carry @ target, np.linalg.inv(then) @ target, atol=1e-9
    )


@given(angle, angle)
def test_of_four_equal_sides_the_nearest_is_taken(yaw, turn):
    then, now = pose(0, 0, 0.8, yaw), pose(0.1, 0, 0.8, turn)
    target = pose(0, 0, 0.9, yaw)
    moved = carried(still(then, target), now, target, symmetry=4) @ target
    assert rotation_angle(moved, target) <= np.pi / 4 + 1e-6


@given(angle)
def test_no_finger_comes_down_on_a_neighbour(yaw):
    """The neighbour stands where a finger would, seen from the side nearest to the gripper."""
    block = pose(0, 0, 0.8, yaw)
    grip = pose(0, 0, 0.83, yaw)
    neighbour = block @ pose(FINGER_REACH, 0, 0, 0)
    carry = carried(still(block, grip, closes=True), block, grip, 4, [neighbour])
    finger_axis = (carry @ grip)[:3, 0]
    assert abs(finger_axis @ grip[:3, 0]) < 1e-6  # a quarter turned


def test_of_equal_sides_one_within_the_arms_reach_is_taken():
    """The source came from 0.3 m beside its block; beyond the block, the arm is too short."""
    block, eef = pose(0.6, 0, 0.8, 0), pose(0.9, 0, 0.9, 0)
    moved = carried(still(block, eef), block, eef, 4) @ eef
    assert np.linalg.norm(moved[:2, 3]) < 0.7


@pytest.mark.parametrize("selection", SELECTIONS)
def test_selection_takes_one_of_the_nearest(selection):
    """Five sources, their block (and the arm over it) further away each: 0 to 2 are nearest."""
    eef = pose(0, 0, 0.9, 0)
    robot = selection == "nearest_neighbor_robot_distance"
    sources = [
        # by object the blocks differ, by robot the ways from block to arm
        still(pose(0 if robot else 0.1 * i, 0, 0.8, 0), eef, pose(0.1 * i, 0, 0.9, 0))
        for i in range(5)
    ]
    sim = SimpleNamespace(
        object_poses=lambda: {"a": pose(0, 0, 0.8, 0)},
        eef_pose=lambda: eef,
        base_position=lambda: np.zeros(3),
    )
    rng, config = np.random.default_rng(0), MimicGenConfig(selection=selection)
    arguments = sim, sources, [[(0, 2)]] * 5, 0, Subtask("a"), rng, config
    chosen = {id(_select(*arguments)[0]) for _ in range(60)}
    allowed = sources if selection == "random" else sources[:3]
    assert chosen == {id(s) for s in allowed}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_source_that_leads_beyond_the_arms_reach_is_left_out(selection):
    block, eef = pose(0.6, 0, 0.8, 0), pose(0.8, 0, 0.9, 0)
    near, far = (still(block, eef, pose(x, 0, 0.9, 0)) for x in (0.65, 0.75))
    sim = SimpleNamespace(
        object_poses=lambda: {"a": block}, eef_pose=lambda: eef, base_position=lambda: np.zeros(3)
    )
    rng, config = np.random.default_rng(0), MimicGenConfig(selection=selection)
    arguments = sim, [far, near], [[(0, 2)]] * 2, 0, Subtask("a"), rng, config
    assert all(_select(*arguments)[0] is near for _ in range(20))


@pytest.fixture(scope="module")
def sim():
    return Simulation("Stack_D0")


def test_human_demonstration_is_cut_where_the_hand_closes(sim):
    (source,) = load_sources(sim, None)
    assert len(source) == 532
    first, last = source.boundaries(sim.task.subtasks)
    assert 160 < first < 190 and last == 532


def test_human_demonstration_makes_new_ones(sim):
    sources = load_sources(sim, None)
    config = GenerateConfig(task="Stack_D0", method="mimicgen", seed=3, images=False)
    made = [make_attempt(sim, config, i, sources) for i in (4, 5)]
    good = [m.episode for m in made if m.success]
    assert good, "none of two attempts stacked"
    for episode in good:
        assert np.abs(to_robosuite(episode.actions)).max() <= 1.0
        assert episode.steps[-1].reward == 1.0 and episode.metadata["settled"]


def test_a_quick_source_waits_for_an_arm_that_is_held_back():
    """The arm goes a fifth of the way asked for: without waiting the gripper closes far off."""
    n = 12
    way = np.stack([pose(0.02 * t, 0, 1, 0) for t in range(n)])
    gripper = np.r_[np.ones(n - 1), 0.0]
    source = SourceDemo(way, way, gripper, {"a": np.tile(np.eye(4), (n, 1, 1))}, {})

    def closes_at(tolerance: float) -> float:
        arm = pose(0, 0, 1, 0)
        task = SimpleNamespace(subtasks=(Subtask("a"),))
        sim = SimpleNamespace(
            task=task,
            object_poses=lambda: {"a": np.eye(4)},
            eef_pose=lambda: arm,
            base_position=lambda: np.zeros(3),
        )
        config = MimicGenConfig(noise=0, tolerance=tolerance, prune_idle=False)
        for action, _ in mimicgen_policy(sim, [source], np.random.default_rng(0), config):
            if action[6] == 0:
                break
            arm[:3, 3] += 0.2 * action[:3]
        return float(np.linalg.norm(arm[:3, 3] - way[-1, :3, 3]))

    assert closes_at(0.015) < 0.015 * 0.4 + 1e-9 < 0.04 < closes_at(0)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"actions": np.zeros((3, 7))}, "no 'states'"),
        ({"states": np.zeros((3, 45))}, "no 'actions'"),
        ({"actions": np.zeros((3, 6)), "states": np.zeros((3, 45))}, "7 numbers"),
        ({"actions": np.zeros((3, 7)), "states": np.zeros((2, 45))}, "one state per action"),
        ({"actions": np.full((3, 7), np.nan), "states": np.zeros((3, 45))}, "not finite"),
        ({"actions": np.zeros((3, 7)), "states": np.zeros((3, 12))}, "12 numbers"),
        ({"actions": np.zeros((3, 7)), "states": np.zeros((3, 45))}, "signal 'grasp'"),
    ],
)
def test_sources_that_cannot_be_used_are_named(sim, tmp_path, fields, words):
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            file[f"data/demo_1/{name}"] = value
    with pytest.raises(VlaError, match=words):
        for source in load_sources(sim, str(path)):
            source.boundaries(sim.task.subtasks)


def test_half_a_source_file_is_named(tmp_path):
    path = tmp_path / "half.hdf5"
    whole = (DEMONSTRATIONS / "stack_human.hdf5").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.hdf5 is not a readable robomimic file"):
        read_sources(get_task("Stack_D0"), str(path))
