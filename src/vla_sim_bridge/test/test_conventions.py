"""Tests of the conversion from action chunks to simulation actions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from vla_inference.episodes.robosuite import (
    POSITION_SCALE,
    ROTATION_SCALE,
    from_robosuite,
    to_robosuite,
)
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_sim_bridge.envs import poses
from vla_sim_bridge.envs.chunk_to_actions import sim_actions

unit = st.floats(-1, 1, allow_subnormal=False)
vector = arrays(float, 3, elements=st.floats(-2, 2, allow_subnormal=False))


@st.composite
def pose(draw):
    result = np.eye(4)
    result[:3, 3] = draw(vector)
    result[:3, :3] = Rotation.from_rotvec(draw(vector)).as_matrix()
    return result


# -- robosuite's units


@given(arrays(float, 6, elements=unit), st.sampled_from([-1.0, 1.0]))
def test_robosuite_round_trip(arm, gripper):
    action = np.append(arm, gripper)
    assert to_robosuite(from_robosuite(action)) == pytest.approx(action, abs=1e-12)


@given(arrays(float, 6, elements=unit), st.sampled_from([0.0, 1.0]))
def test_si_round_trip(arm, gripper):
    scale = np.array([POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3)
    action = np.append(arm * scale, gripper)
    assert from_robosuite(to_robosuite(action)) == pytest.approx(action, abs=1e-12)


def test_scale_polarity_and_clipping():
    assert to_robosuite([0.05, -0.025, 0, 0.5, 0, -0.25, 1]) == pytest.approx(
        [1, -0.5, 0, 1, 0, -0.5, -1]  # 1 is open to us, -1 is open to robosuite
    )
    assert to_robosuite([9, -9, 0, 9, 0, 0, 0]) == pytest.approx([1, -1, 0, 1, 0, 0, 1])
    assert to_robosuite(np.zeros((3, 7))).shape == (3, 7)


# -- poses


@given(pose(), pose())
def test_a_delta_leads_to_its_target(start, target):
    found = poses.apply_delta(start, poses.delta_between(start, target))
    assert found == pytest.approx(target, abs=1e-7)


@given(pose())
def test_inverse(a):
    assert a @ poses.invert(a) == pytest.approx(np.eye(4), abs=1e-9)


@given(pose(), pose(), st.integers(1, 5))
def test_interpolation_stays_between(start, goal, steps):
    way = poses.interpolate(start, goal, steps)
    angle = poses.rotation_angle(start, goal)
    for i, p in enumerate(way, 1):
        share = i / (steps + 1)
        assert p[:3, 3] == pytest.approx(start[:3, 3] + share * (goal - start)[:3, 3], abs=1e-9)
        assert poses.rotation_angle(start, p) == pytest.approx(share * angle, abs=1e-5)


def test_turn_z():
    assert poses.turn_z(np.pi / 2)[:3, :3] @ [1, 0, 0] == pytest.approx([0, 1, 0])


# -- a model's chunks


def chunk(actions, rotation="rotvec", frame="base"):
    return ActionChunk(np.atleast_2d(actions), eef_delta_spec(rotation, frame))


def test_rotation_vectors_pass():
    actions = np.arange(14).reshape(2, 7) / 100
    assert sim_actions(chunk(actions)) == pytest.approx(actions)


@given(arrays(float, 3, elements=st.floats(-1, 1, width=32)))
def test_fixed_axis_angles_become_the_same_rotation(rpy):
    found = sim_actions(chunk([0, 0, 0, *rpy, 1], "rpy"))[0, 3:6]
    x, y, z = (Rotation.from_rotvec(v * a) for v, a in zip(np.eye(3), rpy, strict=True))
    expected = (z * y * x).as_matrix()
    assert Rotation.from_rotvec(found).as_matrix() == pytest.approx(expected, abs=1e-6)


def test_refusals():
    with pytest.raises(VlaError, match=r"'tool'.*'base' only"):
        sim_actions(chunk(np.zeros(7), frame="tool"))
    with pytest.raises(VlaError, match="not finite"):
        sim_actions(chunk([0, 0, np.nan, 0, 0, 0, 1]))
    with pytest.raises(VlaError, match="no steps"):
        sim_actions(chunk(np.zeros((0, 7))))
