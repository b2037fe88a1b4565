"""Tests of actions by parts: what a spec may say, split and join, JSON there and back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.action_specs import (
    KNOWN,
    aloha_spec,
    in_si,
    spec_from_json,
    spec_to_json,
    statistics_spec,
    unknown_spec,
)
from vla_inference.types import (
    KINDS,
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

words = st.text("abcdefgh_", min_size=1, max_size=6)
frames, rotations = st.sampled_from(["base", "tool", "world"]), st.sampled_from(["rotvec", "rpy"])


@st.composite
def parts(draw) -> ActionPart:
    kind, name = draw(st.sampled_from(sorted(KINDS))), draw(words)
    if kind.startswith("eef"):
        return eef_part(name, kind, draw(rotations), draw(frames))
    units = st.sampled_from([*KINDS[kind], "unknown", "1"])
    names = draw(st.lists(words, min_size=1, max_size=7, unique=True))
    dims = tuple(DimSpec(n, draw(units), draw(words)) for n in names)
    return ActionPart(name, kind, dims, draw(frames) if kind == "base_twist" else "")


specs = st.builds(
    ActionSpec,
    st.lists(parts(), min_size=1, max_size=5, unique_by=lambda p: p.name).map(tuple),
    st.floats(1e-3, 10),
)


@given(specs, st.integers(0, 4))
def test_split_and_join_undo_each_other(spec, count):
    actions = np.arange(count * len(spec), dtype=np.float32).reshape(count, len(spec))
    found = spec.split(actions)
    assert {n: v.shape[1] for n, v in found.items()} == {p.name: len(p) for p in spec.parts}
    np.testing.assert_array_equal(spec.join(found), actions)
    for part in spec.parts:
        assert spec.dims[spec.slice(part.name)] == part.dims == spec.part(part.name).dims
    if count:
        np.testing.assert_array_equal(spec.join(spec.split(actions[0])), actions[0])


@given(specs)
def test_json_there_and_back(spec):
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec))), "here") == spec


@given(specs)
def test_each_number_has_a_name_of_its_own(spec):
    assert len(set(spec.names)) == len(spec) == len(spec.dims)


def test_the_usual_arm():
    spec = eef_delta_spec("rpy", "tool", 0.1)
    assert spec.names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert [p.name for p in spec.parts] == ["arm", "gripper"]
    assert (spec.frame, spec.rotation, spec.eef) == ("tool", "rpy", spec.part("arm"))
    assert spec.slice("gripper") == slice(6, 7)
    with pytest.raises(VlaError, match="no part 'leg'; its parts: arm, gripper"):
        spec.slice("leg")
    assert str(spec.part("arm")) == "arm: eef delta, angles as rpy, in the tool frame"


def test_two_arms_have_no_single_frame_and_names_by_part():
    spec = ActionSpec((eef_part("left_arm"), eef_part("right_arm", frame="tool")))
    assert spec.eef is None and spec.frame == spec.rotation == ""
    assert spec.names[0] == "left_arm.x" and spec.names[-1] == "right_arm.rz"


def test_aloha_is_two_arms_of_six_joints_with_grippers():
    spec = aloha_spec(0.02)
    assert [(p.name, p.kind, len(p)) for p in spec.parts] == [
        ("left_arm", "joint_position", 6),
        ("left_gripper", "gripper", 1),
        ("right_arm", "joint_position", 6),
        ("right_gripper", "gripper", 1),
    ]
    assert spec.names[0] == "left_waist" and spec.names[13] == "right_gripper"


def test_a_gripper_without_its_arm_is_refused():
    with pytest.raises(VlaError, match="left_gripper belong to none of arm"):
        joint_spec({"arm": "abc"}, ("gripper", "left_gripper"))


XYZ = tuple(DimSpec(n, "m") for n in "xyz")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: joint_part("arm", "ab", "joint_position", "m/s"), "'a' is in unit 'm/s'; joint_"),
        (lambda: joint_part("arm", "ab", "joint_velocity", "rad"), "joint_velocity is in 'rad/s'"),
        (lambda: ActionPart("gripper", "gripper", (DimSpec("g", "m"),)), "gripper is in '1'"),
        (lambda: ActionPart("base", "base_twist", (DimSpec("v", "m"),), "base"), "in 'm/s' or"),
        (lambda: ActionPart("base", "base_twist", (DimSpec("v", "m/s"),)), "frame_id is empty"),
        (lambda: replace(gripper_part(), frame="base"), "it has frame 'base'"),
        (lambda: replace(gripper_part(), dims=()), "its dimensions are none"),
        (lambda: joint_part("arm", "aa"), "its dimensions are a, a; name each number once"),
        (lambda: ActionPart("arm", "eef_delta", XYZ, "base", "rotvec"), "its dimensions are x, y"),
        (lambda: eef_part(rotation="euler"), "unknown rotation convention 'euler'"),
        (lambda: replace(gripper_part(), kind="hand"), "unknown kind 'hand'"),
        (lambda: ActionSpec(()), "has the parts none"),
        (lambda: ActionSpec((gripper_part(), gripper_part())), "gripper, gripper; name each"),
        (lambda: eef_delta_spec().with_units(["rad"] * 6 + ["1"]), "'x' is in unit 'rad'"),
    ],
)
def test_a_part_that_contradicts_itself_is_refused(make, message):
    with pytest.raises(VlaError, match=message):
        make()


@pytest.mark.parametrize("number", ["x", "nan", "inf", "0", "-0.05", "1e999"])
def test_a_unit_is_a_positive_multiple_of_si(number):
    with pytest.raises(VlaError, match="is in unit"):
        eef_delta_spec().with_units([f"{number} m"] * 3 + ["rad"] * 3 + ["1"])


def test_multiples_of_si_become_si():
    part = joint_part("arm", "ab", unit="0.5 rad")
    spec = ActionSpec((part, gripper_part()))
    sent = in_si(ActionChunk(np.array([[1, -2, 1]]), spec))
    np.testing.assert_allclose(sent.actions, [[0.5, -1, 1]])
    assert [d.unit for d in sent.spec.dims] == ["rad", "rad", "1"]


# -- JSON -------------------------------------------------------------------------------------


OLDER = {
    "eef delta": (
        {"control": "delta", "rotation": "rpy", "frame": "tool", "dt": 0.2},
        eef_delta_spec("rpy", "tool", 0.2),
    ),
    "nothing said": ({}, eef_delta_spec()),
    "its dimensions": (
        {
            "rotation": "rotvec",
            "dims": [
                {"name": d.name, "unit": d.unit, "polarity": d.polarity}
                for d in KNOWN["libero"].dims
            ],
        },
        KNOWN["libero"],
    ),
    "ALOHA": (
        {
            "rotation": "joints",
            "frame": "joints",
            "dt": 0.02,
            "dims": [
                {"name": d.name, "unit": d.unit, "polarity": d.polarity}
                for d in aloha_spec(0.02).dims
            ],
        },
        aloha_spec(0.02),
    ),
    "a rover": (
        {"frame": "base", "dt": 0.1, "dims": [{"name": "v", "unit": "m/s"}]},
        ActionSpec(
            (ActionPart("actions", "unknown", (DimSpec("v", "m/s"),), "base", "rotvec"),), 0.1
        ),
    ),
}


@pytest.mark.parametrize("what", OLDER)
def test_the_older_form_is_still_read(what):
    given, wanted = OLDER[what]
    assert spec_from_json(given, "here") == wanted
    assert spec_from_json(spec_to_json(wanted), "here") == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speed": 1}, "here names unknown speed; known: control"),
        ({"parts": [], "frame": "base"}, "here names unknown frame; known: dt, parts"),
        ({"parts": []}, "here: an action has the parts none"),
        ({"parts": [{"name": "arm", "kind": "gripper"}]}, "here: it lacks 'dims'"),
        ({"parts": [{"name": "g", "kind": "gripper", "dims": ["x"]}]}, "give a list of {name"),
        ({"parts": [{"name": "g", "size": 3, "dims": []}]}, "size"),
        ({"parts": 3}, "here: 'int'"),
        ({"dt": 0}, "here: dt is 0"),
        ({"dt": "fast"}, "here: could not convert"),
        ({"control": "absolute"}, "here: control is 'absolute'"),
        ({"rotation": "euler"}, "here: action part 'arm': unknown rotation"),
    ],
)
def test_json_that_cannot_be_read_is_refused(given, message):
    with pytest.raises(VlaError, match=message):
        spec_from_json(given, "here")


def test_statistics_say_it_in_either_form():
    stated = {"spec": {"rotation": "rotvec", "frame": "tool", "dt": 0.05}}
    assert statistics_spec(stated) == eef_delta_spec("rotvec", "tool", 0.05)
    assert statistics_spec({"spec": {"dt": 0.1}}) == eef_delta_spec("rpy", "base", 0.1)
    two = aloha_spec(0.02)
    assert statistics_spec({"spec": spec_to_json(two)}, 14) == two
    assert statistics_spec({}, 14) == aloha_spec(0.04)
    assert (
        statistics_spec({"spec": {"rotation": "joints", "frame": "joints", "dt": 0.02}}, 14) == two
    )
    assert statistics_spec({}, 3) == unknown_spec(["dim_0", "dim_1", "dim_2"], 0.2)
    with pytest.raises(CheckpointError, match=r"the statistics' spec: .* unknown kind 'x'"):
        statistics_spec({"spec": {"parts": [{"name": "a", "kind": "x", "dims": []}]}})
