"""Joint commands: limits always kept, targets reached, nothing before the joints are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from six_axes import HOME, LENGTHS, LIMITS, urdf

from vla_inference.control.arm import Arm
from vla_inference.control.ik import IkSettings, JointCommander, solve
from vla_inference.errors import VlaError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("arm") / "six.urdf"
    path.write_text(urdf())
    return path


@pytest.fixture(scope="module")
def arm(path):
    return Arm(path, "tool0", "base_link")


def commander(arm, at=HOME, **more) -> JointCommander:
    c = JointCommander(arm, IkSettings(**more))
    assert c.measured([*arm.names, "finger"], [*at, 0.0], 0.0)
    return c


def test_a_urdf_is_read_without_its_meshes_and_in_its_bases_axes(arm, path):
    assert arm.names == tuple(f"j{i}" for i in range(6))
    np.testing.assert_allclose(arm.upper, LIMITS)
    np.testing.assert_allclose(arm.velocity, [2.0] * 5 + [0.5])
    # Stretched out it stands upright over its base, whatever that is mounted on.
    pose = arm.pose(np.zeros(6))
    np.testing.assert_allclose(pose[:3, 3], [0, 0, sum(LENGTHS)], atol=1e-6)
    np.testing.assert_allclose(pose[:3, :3], np.eye(3), atol=1e-6)
    assert Arm(path, "tool0").pose(np.zeros(6))[0, 3] == pytest.approx(0.4)


@given(st.lists(st.floats(-1.5, 1.5), min_size=6, max_size=6), st.integers(0, 5))
def test_the_jacobian_is_the_poses_derivative(arm, at, joint):
    at, by = np.array(at), 1e-6 * np.eye(6)[joint]
    a, b = arm.pose(at - by), arm.pose(at + by)
    turn = Rotation.from_matrix(b[:3, :3] @ a[:3, :3].T).as_rotvec()
    wanted = np.concatenate([b[:3, 3] - a[:3, 3], turn]) / 2e-6
    np.testing.assert_allclose(arm.jacobian(at)[:, joint], wanted, atol=1e-5)


@settings(max_examples=200)
@given(
    st.lists(st.floats(-1.1, 1.1), min_size=6, max_size=6),
    st.lists(st.floats(-10, 10), min_size=6, max_size=6),
    st.floats(0.001, 1.0),
)
def test_no_joint_leaves_its_limits_or_exceeds_its_velocity(arm, at, way, size):
    """Some start outside their limits: these may only come back."""
    at = np.array(at) * LIMITS
    velocity, period = np.minimum(arm.velocity, 1.0), 0.02
    then, _ = solve(arm, at, size * np.array(way), velocity, period, IkSettings())
    assert np.isfinite(then).all()
    assert (np.abs(then - at) <= velocity * period).all()
    assert (then <= np.maximum(at, arm.upper)).all()
    assert (then >= np.minimum(at, arm.lower)).all()


def test_too_fast_a_wish_is_slowed_down_in_its_own_direction(arm):
    c = commander(arm)
    begin = arm.pose(HOME)[:3, 3]
    c.twist(np.array([0, 3.0, 0, 0, 0, 0]), False, 0.0)
    then = c.tick(0.02)
    way = arm.pose(then)[:3, 3] - begin
    assert way[1] / np.linalg.norm(way) > 0.99 and c.clips["joint_velocity"] == 1
    fastest = np.max(np.abs(then - HOME) / c.velocity)
    assert fastest == pytest.approx(c.period, rel=1e-6)


@settings(max_examples=20)
@given(st.lists(st.floats(-0.3, 0.3), min_size=6, max_size=6))
def test_a_target_within_reach_is_reached(arm, offset):
    c, goal = commander(arm), arm.pose(HOME + offset)
    c.target(goal[:3, 3], Rotation.from_matrix(goal[:3, :3]).as_quat())
    for i in range(120):
        c.measured(list(arm.names), c.tick(0.02 * i).tolist(), 0.02 * i)
    reached = arm.pose(c.positions)
    assert np.linalg.norm(reached[:3, 3] - goal[:3, 3]) < 1e-3
    turn = Rotation.from_matrix(reached[:3, :3] @ goal[:3, :3].T).magnitude()
    assert turn < 5e-3


def test_twists_in_both_axes_move_the_tool_as_they_say(arm):
    for in_tool in (False, True):
        c, begin = commander(arm), arm.pose(HOME)
        twist = np.array([0.03, -0.02, 0.04, 0.1, 0.0, -0.1])
        for i in range(10):
            c.twist(twist, in_tool, 0.02 * i)
            c.measured(list(arm.names), HOME.tolist(), 0.02 * i)
            c.tick(0.02 * i)
        end = arm.pose(c.positions)
        way = end[:3, 3] - begin[:3, 3]
        if in_tool:
            way = begin[:3, :3].T @ way
        np.testing.assert_allclose(way, 0.2 * twist[:3], atol=4e-4)


def test_nothing_before_the_joints_are_known_nor_after_they_are_lost(arm):
    c = JointCommander(arm)
    c.twist(np.array([0.1, 0, 0, 0, 0, 0]), False, 0.0)
    assert c.tick(0.0) is None
    assert not c.measured(["j0", "finger"], [0.0, 0.0], 0.0)
    assert "j1" in c.refusal and c.tick(0.01) is None
    assert c.measured(list(arm.names), HOME.tolist(), 0.02)
    assert c.tick(0.02) is not None
    assert c.tick(0.11) is None  # the twist is old
    c.target(np.zeros(3), np.array([0, 0, 0, 1.0]))
    assert c.tick(0.12) is not None
    assert c.tick(0.3) is None  # the joints are
    c.measured(list(arm.names), HOME.tolist(), 0.4)
    assert c.tick(0.4) is None  # a target of before is void


def test_an_arm_that_was_held_up_is_not_caught_up_with(arm):
    c = commander(arm, drift=0.05)
    for i in range(40):
        c.measured(list(arm.names), HOME.tolist(), 0.02 * i)
        c.twist(np.array([0, 0.3, 0, 0, 0, 0]), False, 0.02 * i)
        c.tick(0.02 * i)
        assert np.abs(c.positions - HOME).max() <= 0.05 + c.period * c.velocity.max()
    assert c.clips["joint_drift"] > 1


@pytest.mark.parametrize(
    ("text", "frame", "complaint"),
    [("<robot", "x", "cannot read"), (None, "hand", "no body or link 'hand'"),
     (None, "base_link", "no chain")],
)  # fmt: skip
def test_bad_descriptions_are_refused(tmp_path, path, text, frame, complaint):
    if text:
        path = tmp_path / "bad.urdf"
        path.write_text(text)
    with pytest.raises(VlaError, match=complaint):
        Arm(path, frame)
    with pytest.raises(VlaError, match="no robot description"):
        Arm(tmp_path / "nowhere.urdf", "tool0")
