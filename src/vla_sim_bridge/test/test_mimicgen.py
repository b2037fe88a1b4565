"""The MimicGen method: segmentation, carrying over, execution."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_inference.errors import DataError
from vla_sim_bridge.generate import GenerateConfig, attempt_episode
from vla_sim_bridge.mimicgen import SourceDemo, _carry, _randomised, load_sources
from vla_sim_bridge.poses import rotation_angle
from vla_sim_bridge.simulation import Simulation
from vla_sim_bridge.tasks import Subtask

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
    rng = np.random.default_rng(seed)
    (a, b), (c, d) = _randomised(ends, SUBTASKS, rng)
    assert a == 0 and a < b == c < d == ends[-1]
    assert b == ends[-1] - 1 or 2 <= b - first <= 4


coordinate = st.floats(-0.3, 0.3)
angle = st.floats(-np.pi, np.pi)


@given(coordinate, coordinate, angle, coordinate, coordinate, angle, angle)
def test_motion_keeps_its_place_in_the_objects_frame(x, y, yaw, u, v, turn, pitch):
    then, now = pose(x, y, 0.8, yaw), pose(u, v, 0.8, turn)
    target = pose(x + 0.02, y, 0.9, yaw + 0.3, pitch)
    carry = _carry(Subtask("a"), now, then, np.eye(4), target)
    np.testing.assert_allclose(
        np.linalg.inv(now) @ carry @ target, np.linalg.inv(then) @ target, atol=1e-9
    )


@given(angle, angle)
def test_of_four_equal_sides_the_nearest_is_taken(yaw, turn):
    then, now = pose(0, 0, 0.8, yaw), pose(0.1, 0, 0.8, turn)
    target = pose(0, 0, 0.9, yaw)
    carried = _carry(Subtask("a", symmetry=4), now, then, target, target) @ target
    assert rotation_angle(carried, target) <= np.pi / 4 + 1e-6


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
    config = GenerateConfig(task="Stack_D0", method="mimicgen", seed=3, pictures=False)
    made = [attempt_episode(sim, config, i, sources) for i in (4, 5)]
    good = [m for m in made if m is not None]
    assert good, "none of two attempts stacked"
    for episode in good:
        assert np.abs(episode["actions"]).max() <= 1.0
        assert episode["rewards"][-1] == 1.0


def test_demonstration_without_states_is_named(sim, tmp_path):
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_1/actions"] = np.zeros((3, 7))
    with pytest.raises(DataError, match="states"):
        load_sources(sim, str(path))


def test_demonstration_of_another_task_is_named(sim, tmp_path):
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        file["data/demo_1/actions"] = np.zeros((3, 7))
        file["data/demo_1/states"] = np.zeros((3, 12))
    with pytest.raises(Exception, match="12 numbers"):
        load_sources(sim, str(path))
