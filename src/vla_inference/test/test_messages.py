"""Tests of action chunks as ROS messages; chunks that must not be executed are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import KNOWN
from vla_inference.ros.messages import chunk_to_msg, msg_to_chunk, steps_to_chunk
from vla_inference.types import ActionChunk, ActionSpec, DimSpec, eef_delta_spec

values = st.floats(-2, 2, width=32)
chunks = st.integers(1, 16).flatmap(lambda n: arrays(np.float32, (n, 7), elements=values))


def a_chunk(**spec) -> ActionChunk:
    actions = np.tile(np.linspace(0.1, 0.7, 7, dtype=np.float32), (3, 1))
    return ActionChunk(actions, eef_delta_spec(**spec), timing={"vision": 1.5, "total": 4.0})


@given(chunks, st.sampled_from(["rotvec", "rpy"]), st.sampled_from(["base", "tool"]))
def test_there_and_back(actions, rotation, frame):
    actions[:, 6] = actions[:, 6].clip(0, 1)
    chunk = ActionChunk(actions, eef_delta_spec(rotation, frame, 0.2), timing={"total": 3.0})
    back = msg_to_chunk(chunk_to_msg(chunk, Time()))
    np.testing.assert_array_equal(back.actions, chunk.actions)
    assert back.spec == chunk.spec and back.timing == chunk.timing


def test_what_the_message_says():
    msg = chunk_to_msg(
        a_chunk(), Time(sec=3, nanosec=4), frame_id="arm_base", instruction="go", model="tiny"
    )
    assert (msg.header.stamp, msg.header.frame_id) == (Time(sec=3, nanosec=4), "arm_base")
    assert (msg.instruction, msg.model) == ("go", "tiny")
    assert list(msg.stage_names) == ["vision", "total"] and list(msg.stage_ms) == [1.5, 4.0]
    step = msg.steps[0]
    assert (step.frame_id, step.rotation_convention, step.dt) == ("arm_base", "rotvec", 0.05)
    numbers = [step.translation.x, step.translation.z, step.rotation.x, step.gripper]
    np.testing.assert_allclose(numbers, [0.1, 0.3, 0.4, 0.7], rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dimension", range(7))
def test_numbers_that_are_not_finite_are_refused_both_ways(value, dimension):
    chunk = a_chunk()
    msg = chunk_to_msg(chunk, Time())
    chunk.actions[1, dimension] = value
    with pytest.raises(VlaError, match="not finite"):
        chunk_to_msg(chunk, Time())
    step = msg.steps[1]
    part, axis = [
        *((step.translation, a) for a in "xyz"),
        *((step.rotation, a) for a in "xyz"),
        (step, "gripper"),
    ][dimension]
    setattr(part, axis, value)
    with pytest.raises(VlaError, match="step 1 contains a number that is not finite"):
        msg_to_chunk(msg)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rotation_convention": "euler"}, "'euler'; use 'rotvec' or 'rpy'"),
        ({"rotation_convention": ""}, "unknown rotation convention ''"),
        ({"dt": 0.0}, "dt is 0"),
        ({"dt": -0.1}, "dt is -0.1"),
        ({"dt": math.nan}, "dt is nan"),
        ({"dt": math.inf}, "dt is inf"),
        ({"frame_id": ""}, "frame_id is empty"),
        ({"gripper": -1.0}, "1 is open and 0 is closed"),
        ({"gripper": 80.0}, "1 is open and 0 is closed"),
    ],
)
def test_steps_that_must_not_be_executed_are_refused(changes, words):
    msg = chunk_to_msg(a_chunk(), Time())
    for step in msg.steps:
        for name, value in changes.items():
            setattr(step, name, value)
    with pytest.raises(VlaError, match=words):
        msg_to_chunk(msg)


@pytest.mark.parametrize(
    "changes", [{"rotation_convention": "rpy"}, {"dt": 0.1}, {"frame_id": "tool"}]
)
def test_steps_that_disagree_are_refused(changes):
    msg = chunk_to_msg(a_chunk(), Time())
    for name, value in changes.items():
        setattr(msg.steps[2], name, value)
    with pytest.raises(VlaError, match="step 2 has another"):
        msg_to_chunk(msg)


def test_a_chunk_without_steps_is_refused_both_ways():
    with pytest.raises(VlaError, match="no steps"):
        steps_to_chunk([])
    with pytest.raises(VlaError, match="no steps"):
        chunk_to_msg(ActionChunk(np.zeros((0, 7)), eef_delta_spec()), Time())


def test_libero_is_sent_in_metres_and_radians():
    chunk = ActionChunk(np.array([[1, 0, -1, 0.5, 0, 0, 1]]), KNOWN["libero"])
    step = chunk_to_msg(chunk, Time()).steps[0]
    assert (step.translation.x, step.translation.z) == pytest.approx((0.05, -0.05))
    assert step.rotation.x == pytest.approx(0.25) and step.gripper == 1
    assert (step.rotation_convention, step.dt) == ("rotvec", 0.05)
    with pytest.raises(VlaError, match="are in unit unknown, of which no m and rad"):
        chunk_to_msg(ActionChunk(np.zeros((1, 7)), KNOWN["taco_play"]), Time())


def test_actions_that_are_no_end_effector_delta_are_refused():
    spec = ActionSpec(tuple(DimSpec(f"joint{i}", "rad") for i in range(6)))
    with pytest.raises(VlaError, match="joint0"):
        chunk_to_msg(ActionChunk(np.zeros((1, 6)), spec), Time())
