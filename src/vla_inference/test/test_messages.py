"""Action chunks survive the way through ROS; what must not be executed is refused."""

from __future__ import annotations

import array
import math

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rclpy.serialization import deserialize_message, serialize_message

from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import KNOWN, aloha_spec, unknown_spec
from vla_inference.ros.messages import chunk_to_msg, msg_to_chunk, step_count
from vla_inference.types import (
    ActionChunk,
    ActionPart,
    ActionSpec,
    DimSpec,
    eef_delta_spec,
    eef_part,
    gripper_part,
    joint_part,
    joint_spec,
)
from vla_msgs.msg import ActionChunk as ActionChunkMsg

values = st.floats(-2, 2, width=32)
chunks = st.integers(1, 16).flatmap(lambda n: arrays(np.float32, (n, 7), elements=values))
TWIST = (DimSpec("vx", "m/s"), DimSpec("wz", "rad/s"))
OTHERS = (
    aloha_spec(0.02),
    joint_spec({"arm": "abcdef"}, ("gripper",), "joint_velocity"),
    joint_spec({"arm": "abcdef"}, kind="joint_delta"),
    ActionSpec((joint_part("lift", ["z"], unit="m"), gripper_part())),
    ActionSpec((ActionPart("base", "base_twist", TWIST, "base"), eef_part(kind="eef_pose")), 0.1),
    ActionSpec((eef_part("left_arm"), eef_part("right_arm", rotation="rpy", frame="tool"))),
)


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


@pytest.mark.parametrize("spec", OTHERS, ids=lambda s: "+".join(p.kind for p in s.parts))
def test_other_parts_there_and_back_over_the_wire(spec):
    actions = np.random.default_rng(0).uniform(0, 1, (3, len(spec))).astype(np.float32)
    msg = chunk_to_msg(ActionChunk(actions, spec), Time())
    back = msg_to_chunk(deserialize_message(serialize_message(msg), ActionChunkMsg))
    np.testing.assert_array_equal(back.actions, actions)
    assert back.spec == spec and step_count(msg) == 3
    assert msg.header.frame_id == spec.frame


def test_what_the_message_says():
    msg = chunk_to_msg(
        a_chunk(), Time(sec=3, nanosec=4), frame_id="arm_base", instruction="go", model="tiny"
    )
    assert (msg.header.stamp, msg.header.frame_id) == (Time(sec=3, nanosec=4), "arm_base")
    assert (msg.instruction, msg.model) == ("go", "tiny")
    assert list(msg.stage_names) == ["vision", "total"] and list(msg.stage_ms) == [1.5, 4.0]
    arm, gripper = msg.parts
    assert (arm.name, arm.kind, arm.frame_id) == ("arm", "eef_delta", "arm_base")
    assert (arm.rotation_convention, msg.dt) == ("rotvec", 0.05)
    assert list(arm.dims) == ["x", "y", "z", "rx", "ry", "rz"]
    assert list(arm.units) == ["m"] * 3 + ["rad"] * 3
    assert (gripper.kind, list(gripper.units)) == ("gripper", ["1"])
    assert (gripper.frame_id, gripper.rotation_convention) == ("", "")
    np.testing.assert_allclose(msg.actions, np.tile(np.linspace(0.1, 0.7, 7), 3), rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dimension", range(7))
def test_numbers_that_are_not_finite_are_refused_both_ways(value, dimension):
    chunk = a_chunk()
    msg = chunk_to_msg(chunk, Time())
    chunk.actions[1, dimension] = value
    with pytest.raises(VlaError, match="not finite"):
        chunk_to_msg(chunk, Time())
    msg.actions[7 + dimension] = value
    with pytest.raises(VlaError, match="step 1 contains a number that is not finite"):
        msg_to_chunk(msg)


def spoil(**changes):
    """Changes of the arm's part."""

    def change(msg):
        for name, value in changes.items():
            setattr(msg.parts[0], name, value)

    return change


def with_gripper(value):
    def change(msg):
        msg.actions[6] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil(rotation_convention="euler"), "'euler'; use 'rotvec' or 'rpy'"),
        (spoil(rotation_convention=""), "unknown rotation convention ''"),
        (lambda m: setattr(m, "dt", 0.0), "dt is 0"),
        (lambda m: setattr(m, "dt", -0.1), "dt is -0.1"),
        (lambda m: setattr(m, "dt", math.nan), "dt is nan"),
        (lambda m: setattr(m, "dt", math.inf), "dt is inf"),
        (spoil(frame_id=""), "frame_id is empty"),
        (with_gripper(-1.0), "1 is open and 0 is closed"),
        (with_gripper(80.0), "gripper values from 0.7 to 80; 1 is open and 0 is closed"),
        (spoil(kind="eef"), "part 'arm': unknown kind 'eef'; use 'eef_delta' or"),
        (spoil(kind="unknown"), "of which no SI units can be made"),
        (spoil(kind="joint_position"), "has rotation 'rotvec'"),
        (spoil(name="gripper"), "has the parts gripper, gripper; name each part once"),
        (spoil(name=""), "it has no name"),
        (spoil(units=["mm"] * 6), "dimension 'x' is in unit 'mm'; eef_delta is in 'm'"),
        (spoil(units=["0.05 m"] * 3 + ["rad"] * 3), "in units 0.05 m.*; send them in SI"),
        (spoil(units=["a m"] + ["m"] * 2 + ["rad"] * 3), "'x' is in unit 'a m'; eef_delta is"),
        (spoil(units=["1"] * 6), "in unit 1, of which no m and rad"),
        (spoil(units=["m"]), "has 6 dimensions and 1 units"),
        (spoil(dims=["x", "y", "z", "roll", "pitch", "yaw"]), "an end effector's are x, y, z, rx"),
        (spoil(dims=[], units=[]), "its dimensions are"),
        (lambda m: setattr(m, "parts", []), "has the parts none"),
        (lambda m: m.actions.pop(), "has 20 numbers, a step has 7"),
    ],
)
def test_chunks_that_must_not_be_executed_are_refused(change, words):
    msg = chunk_to_msg(a_chunk(), Time())
    change(msg)
    with pytest.raises(VlaError, match=words):
        msg_to_chunk(msg)


def test_a_chunk_without_steps_is_refused_both_ways():
    msg = chunk_to_msg(a_chunk(), Time())
    msg.actions = array.array("d")
    for empty in (msg, ActionChunkMsg()):
        assert step_count(empty) == 0
        with pytest.raises(VlaError, match="no steps"):
            msg_to_chunk(empty)
    with pytest.raises(VlaError, match="no steps"):
        chunk_to_msg(ActionChunk(np.zeros((0, 7)), eef_delta_spec()), Time())


@pytest.mark.parametrize(
    ("spec", "steps", "words"),
    [
        (eef_delta_spec(), 10_001, "has 10001 steps; give at most 10000"),
        (ActionSpec(tuple(map(gripper_part, map(str, range(65))))), 1, "65 parts; .* most 64"),
        (joint_spec({"arm": [f"j{i}" for i in range(1025)]}), 1, "has 1025 numbers a step"),
    ],
)
def test_a_chunk_that_would_hold_up_its_receiver_is_refused(spec, steps, words):
    msg = chunk_to_msg(ActionChunk(np.zeros((1, len(spec))), spec), Time())
    msg.actions = array.array("d", [0.0] * len(spec) * steps)
    with pytest.raises(VlaError, match=words):
        msg_to_chunk(msg)


def test_libero_is_sent_in_metres_and_radians():
    chunk = ActionChunk(np.array([[1, 0, -1, 0.5, 0, 0, 1]]), KNOWN["libero"])
    msg = chunk_to_msg(chunk, Time())
    assert list(msg.actions) == pytest.approx([0.05, 0, -0.05, 0.25, 0, 0, 1])
    assert list(msg.parts[0].units) == ["m"] * 3 + ["rad"] * 3
    assert (msg.parts[0].rotation_convention, msg.dt) == ("rotvec", 0.05)
    with pytest.raises(VlaError, match="are in unit unknown, of which no m and rad"):
        chunk_to_msg(ActionChunk(np.zeros((1, 7)), KNOWN["taco_play"]), Time())


def test_actions_of_which_nothing_is_known_are_refused():
    spec = unknown_spec(["joint0", "joint1"], 0.05)
    with pytest.raises(VlaError, match=r"are in unit unknown, .* \(part 'actions', unknown\)"):
        chunk_to_msg(ActionChunk(np.zeros((1, 2)), spec), Time())
