"""Tests of end-effector chunks as joint chunks: the tool goes where it was told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from six_axes import HOME, urdf

from vla_inference.control.arm import Arm
from vla_inference.control.chunk_ik import ChunkIk
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec, eef_delta_spec, eef_part


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    path = tmp_path_factory.mktemp("arm") / "six.urdf"
    path.write_text(urdf())
    return Arm(path, "tool0", "base_link")


def eef_chunk(ways, frame="base_link", rotation="rotvec") -> ActionChunk:
    actions = np.column_stack([ways, np.linspace(0, 1, len(ways))])
    return ActionChunk(actions, eef_delta_spec(rotation, frame, 0.1), timing={"total": 3.0})


WAY = st.lists(st.floats(-0.01, 0.01), min_size=6, max_size=6)


@settings(max_examples=50)
@given(st.lists(WAY, min_size=1, max_size=4), st.sampled_from(["base_link", "tool0"]))
def test_the_last_position_is_where_the_deltas_lead(arm, ways, frame):
    chunk = ChunkIk(arm).convert(eef_chunk(ways, frame), HOME)
    wanted = arm.pose(HOME)
    for way in np.array(ways):
        axes = wanted[:3, :3] if frame == "tool0" else np.eye(3)
        wanted[:3, 3] += axes @ way[:3]
        wanted[:3, :3] = Rotation.from_rotvec(axes @ way[3:]).as_matrix() @ wanted[:3, :3]
    found = arm.pose(chunk.actions[-1, :6].astype(float))
    np.testing.assert_allclose(found[:3, 3], wanted[:3, 3], atol=1e-3)
    turn = Rotation.from_matrix(found[:3, :3] @ wanted[:3, :3].T).magnitude()
    assert turn < 0.005


def test_gripper_time_and_names_are_kept(arm):
    given_chunk = eef_chunk(np.full((3, 6), 0.01))
    chunk = ChunkIk(arm).convert(given_chunk, HOME)
    part, gripper = chunk.spec.parts
    assert (part.name, part.kind, gripper.kind) == ("arm", "joint_position", "gripper")
    assert [d.name for d in part.dims] == list(arm.names)
    np.testing.assert_allclose(chunk.actions[:, 6], given_chunk.actions[:, 6])
    assert chunk.spec.dt == 0.1 and chunk.timing == {"total": 3.0}


def test_deltas_and_positions_are_the_same_motion(arm):
    ways = np.full((4, 6), 0.005)
    positions = ChunkIk(arm).convert(eef_chunk(ways), HOME).actions[:, :6]
    deltas = ChunkIk(arm, kind="joint_delta").convert(eef_chunk(ways), HOME).actions[:, :6]
    np.testing.assert_allclose(HOME + np.cumsum(deltas, axis=0), positions, atol=1e-6)


def test_a_robot_that_covers_half_of_a_delta_is_led_on_from_there(arm):
    ways = np.tile([0.01, 0, 0, 0, 0, 0], (2, 1))
    follows = ChunkIk(arm, follow=0.5)
    first, second = follows.convert(eef_chunk(ways), HOME).actions[:, :6].astype(float)
    half = HOME + 0.5 * (first - HOME)
    led = arm.pose(second)[:3, 3] - arm.pose(half)[:3, 3]
    np.testing.assert_allclose(led, [0.01, 0, 0], atol=5e-4)


def test_joints_do_not_leave_their_limits(arm):
    at = np.where(np.isfinite(arm.upper), arm.upper, 0.0)
    ways = np.tile([0.1, 0.1, 0.1, 0.5, 0.5, 0.5], (5, 1))
    positions = ChunkIk(arm).convert(eef_chunk(ways), at).actions[:, :6]
    assert (positions <= arm.upper + 1e-6).all() and (positions >= arm.lower - 1e-6).all()


def test_a_chunk_in_another_frame_or_of_another_kind_is_refused(arm):
    with pytest.raises(VlaError, match="in frame 'camera'"):
        ChunkIk(arm).convert(eef_chunk(np.zeros((1, 6)), "camera"), HOME)
    pose = ActionSpec((eef_part("arm", "eef_pose", frame="base_link"),))
    with pytest.raises(VlaError, match=r"arm \(eef_pose\)"):
        ChunkIk(arm).convert(ActionChunk(np.zeros((1, 6)), pose), HOME)
