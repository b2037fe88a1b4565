"""Tests of the simulated controllers: they accept what MoveIt Servo, FZI and CRISP accept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_sim_bridge.ros.robot.controller_emulation import PoseController, TwistController

AHEAD = np.array([0.2, 0, 0, 0, 0, 1.0])
HERE = np.eye(4)


@pytest.mark.parametrize(
    ("frame", "age", "twist", "why"),
    [
        ("", 0.0, AHEAD, "empty frame"),
        ("camera", 0.0, AHEAD, "unknown frame"),
        ("base", 100.0, AHEAD, "zero stamp"),
        ("base", 0.101, AHEAD, "stale stamp"),
        ("base", 0.0, AHEAD * math.nan, "not finite"),
    ],
)
def test_servos_refusals(frame, age, twist, why):
    servo = TwistController()
    assert not servo.receive(frame, 100.0 - age, twist, now=100.0)
    assert servo.heard.rejected == {why: 1} and servo.heard.accepted == 0
    assert servo.delta(HERE, 100.0, 0.05) is None


def test_a_twist_is_held_until_it_is_a_tenth_of_a_second_old():
    servo = TwistController()
    assert servo.delta(HERE, 99.9, 0.05) is None and servo.heard.gaps == 0  # nothing told yet
    assert servo.receive("base", 100.0, AHEAD, now=100.02)
    for now in (100.02, 100.09):
        np.testing.assert_allclose(servo.delta(HERE, now, 0.05), AHEAD * 0.05)
    assert servo.delta(HERE, 100.101, 0.05) is None
    assert servo.heard.gaps == 1
    servo.receive("base", 100.2, np.zeros(6), now=100.2)
    assert not servo.delta(HERE, 100.2, 0.05).any() and servo.heard.zeros == 1
    servo.reset()
    assert servo.delta(HERE, 100.2, 0.05) is None


@given(st.tuples(*[st.floats(-3, 3)] * 3))
def test_a_twist_in_the_tools_axes_is_turned_into_the_bases(turn):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    servo = TwistController()
    servo.receive("tool", 1.0, AHEAD, now=1.0)
    wanted = [Rotation.from_rotvec(turn).apply(x) for x in AHEAD.reshape(2, 3) * 0.05]
    np.testing.assert_allclose(servo.delta(pose, 1.0, 0.05), np.ravel(wanted), atol=1e-12)


def test_a_target_is_pursued_for_ever_and_must_be_a_pose_in_the_base():
    fzi = PoseController()
    up = np.array([0.0, 0.0, 0.0, 1.0])
    for frame, position, turn, why in (
        ("world", np.zeros(3), up, "not the base frame"),
        ("base", np.array([0, math.nan, 0]), up, "not finite"),
        ("base", np.zeros(3), np.zeros(4), "not a rotation"),
    ):
        assert not fzi.receive(frame, position, turn, now=1.0)
        assert fzi.heard.rejected[why] == 1
    assert fzi.delta(HERE, 1.0, 0.05) is None
    assert fzi.receive("base", np.array([0.1, 0, 0]), up, now=1.0)
    for now in (1.0, 60.0):
        np.testing.assert_allclose(fzi.delta(HERE, now, 0.05), [0.1, 0, 0, 0, 0, 0])
    assert fzi.heard.gaps == 1


@given(st.tuples(*[st.floats(-1, 1)] * 3), st.tuples(*[st.floats(-1, 1)] * 3))
def test_the_way_to_a_target_leads_there(turn, start):
    pose, fzi = np.eye(4), PoseController()
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(start).as_matrix(), start
    target = Rotation.from_rotvec(turn)
    fzi.receive("base", np.array(turn), target.as_quat(), now=0.0)
    way = fzi.delta(pose, 0.0, 0.05)
    np.testing.assert_allclose(pose[:3, 3] + way[:3], turn, atol=1e-9)
    reached = Rotation.from_rotvec(way[3:]) * Rotation.from_matrix(pose[:3, :3])
    assert (reached * target.inv()).magnitude() < 1e-6
