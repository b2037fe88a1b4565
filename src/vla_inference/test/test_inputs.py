"""Tests of input synchronisation and of the robot state vector."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_inference.errors import ObservationError, VlaError
from vla_inference.inputs.frozen_camera import FrozenWatch
from vla_inference.inputs.history import ImageHistory
from vla_inference.inputs.joint_memory import MAX_APART, SET_BACK, JointMemory, positions_at
from vla_inference.inputs.robot_state import QuaternionSign, StateLayout, axis_angle
from vla_inference.inputs.synchronise import DEPTH, Synchroniser
from vla_inference.policies.confined import find_model

MILLISECONDS = st.integers(0, 3000)
CALM = settings(deadline=None, max_examples=60)  # how long an example takes says nothing here


@CALM
@given(
    st.lists(st.tuples(st.sampled_from("abc"), MILLISECONDS), max_size=60),
    st.sampled_from([0, 10, 50]),
)
def test_whatever_comes_sets_are_of_one_moment_and_in_order(arrivals, tolerance):
    arrivals = sorted(arrivals, key=lambda a: a[1] // 500)  # out of order within half a second
    s = Synchroniser("abc", tolerance / 1000)
    leads, last = [], {}
    for name, stamp in arrivals:
        found = s.put(name, stamp / 1000, (name, stamp))
        if name == "a" and stamp < last.get("a", 0) - tolerance:
            leads.clear()  # the clock went back
        last[name] = stamp
        if found is None:
            continue
        assert [n for n, _ in found] == list("abc")
        lead = found[0][1]
        assert all(abs(t - lead) <= tolerance for _, t in found)
        leads.append(lead)
        assert leads[-1] >= max(leads) - tolerance


@CALM
@given(st.integers(0, DEPTH - 2), st.integers(0, DEPTH - 2), st.integers(1, 40), st.integers(0, 9))
def test_a_constant_lag_delays_sets_and_loses_none(lag_b, lag_c, count, jitter):
    """Three inputs of one rate; messages of b and c come this many periods late."""
    s = Synchroniser("abc", 0.010)
    events = [(i, "a", i) for i in range(count)]
    events += [(i + lag_b, "b", i) for i in range(count)]
    events += [(i + lag_c, "c", i) for i in range(count)]
    answered = []
    for _, name, i in sorted(events):
        stamp = 0.1 * i + (0.001 * jitter if name == "b" else 0.0)
        found = s.put(name, stamp, i)
        if found is not None:
            assert set(found) == {found[0]}
            answered.append(found[0])
    assert answered == list(range(count))


def test_of_several_that_fit_the_nearest_is_taken():
    s = Synchroniser(["image", "state"], 0.05)
    for stamp in (0.96, 0.99, 1.02):
        s.put("state", stamp, stamp)
    assert s.put("image", 1.0, "image") == ("image", 0.99)
    assert s.put("image", 1.0, "again") == ("again", 0.99)


def test_what_holds_it_up_is_named():
    s = Synchroniser(["image", "wrist", "state"], 0.05)
    assert s.missing(0.0) == "nothing has come on image, wrist, state yet"
    s.put("image", 10.0, 0, now=1.0)
    s.put("wrist", 9.7, 0, now=1.0)
    assert s.missing(1.0) == "nothing has come on state yet"
    assert s.put("state", 10.0, 0, now=1.0) is None
    assert s.missing(1.5) == ("wrist is 0.300 s behind image, more than the tolerance (0.05 s)")
    assert s.put("wrist", 10.04, 0, now=2.0) == (0, 0, 0)
    assert s.missing(2.5, patience=2.0) == ""
    assert s.missing(3.5, patience=2.0) == "nothing on image for 2.5 s, nothing on state for 2.5 s"


def test_a_clock_that_goes_back_begins_anew():
    s = Synchroniser(["image", "wrist"], 0.05)
    s.put("image", 100.0, "old")
    s.put("wrist", 5.0, "new")
    assert s.put("image", 5.0, "new") == ("new", "new")
    assert s.put("wrist", 100.0, "old") is None


def test_a_single_input_is_passed_on_at_once():
    s = Synchroniser(["image"], 0.0)
    assert [s.put("image", t, t) for t in (3.0, 3.0, 1.0)] == [(3.0,), (3.0,), (1.0,)]


@CALM
@given(st.lists(MILLISECONDS, min_size=1, max_size=40), st.integers(0, 4), st.integers(1, 300))
def test_the_past_is_the_nearest_there_is_but_for_a_quarter_of_the_interval(
    stamps, count, interval
):
    history, kept = ImageHistory(count, interval / 1000), []
    for stamp in stamps:
        if kept and stamp < kept[-1]:
            kept = []
        kept.append(stamp)
        found = history.put(stamp / 1000, stamp)
        wanted = [stamp - i * interval for i in range(1, count + 1)]
        assert len(found) == count
        for got, want in zip(found, wanted, strict=True):
            assert abs(got - want) <= min(abs(k - want) for k in kept) + interval / 4 + 1e-6
    assert len(history._items) <= max(2, 4 * count + 3)  # however fast a camera is


@CALM
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_the_state_is_in_the_order_of_its_parts(vector):
    rotation = Rotation.from_rotvec(vector)
    pose = (0.1, 0.2, 0.3), tuple(rotation.as_quat())
    layout = StateLayout(("joints", "position", "rotvec", "rpy", "quaternion"), ("f2", "f1"))
    state = layout.read(pose, {"f1": 1.0, "other": 9.0, "f2": 2.0})
    assert len(layout) == len(state) == 15 and state.dtype == np.float32
    np.testing.assert_allclose(state[:5], [2, 1, 0.1, 0.2, 0.3], rtol=1e-6)
    for turned in (
        Rotation.from_rotvec(state[5:8]),
        Rotation.from_euler("xyz", state[8:11]),
        Rotation.from_quat(state[11:]),
    ):
        assert (turned * rotation.inv()).magnitude() < 1e-5


def quat2axisangle(quaternion):
    """robosuite's rule, in its own words: by the arc cosine, whatever the sign."""
    w = np.clip(quaternion[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if sine < 1e-8 else np.asarray(quaternion[:3]) * 2 * np.arccos(w) / sine


@CALM
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_axis_angles_are_robosuite_s(values):
    length = np.linalg.norm(values)
    assume(length > 1e-3)
    quaternion = np.array(values) / length
    if 1 - abs(quaternion[3]) > 1e-6:  # the arc cosine tells nothing there
        wanted = quat2axisangle(quaternion)
        np.testing.assert_allclose(axis_angle(quaternion), wanted, atol=1e-5)


def test_axis_angle_is_continuous_where_a_hand_points_down_whatever_sign_is_published():
    """As OpenVLA-OFT's LIBERO models were trained: 3.147 rad reads 3.147, not -3.137."""
    layout, rng = StateLayout(("axis_angle",)), np.random.default_rng(0)
    for begin in (3.0, 3.147, 3.3):
        sign, last = QuaternionSign(), None
        for turn in np.linspace(begin, 6.2 - begin, 100):
            q = Rotation.from_rotvec([turn, 0, 0]).as_quat() * rng.choice([-1, 1])
            (x, y, z) = layout.read(((0, 0, 0), q), sign=sign)
            assert x == pytest.approx(turn, abs=1e-5) and abs(y) + abs(z) < 1e-5
            assert last is None or abs(x - last) < 0.05
            last = x
    level = layout.read(((0, 0, 0), -Rotation.from_rotvec([0, -0.3, 0]).as_quat()))
    np.testing.assert_allclose(level, [0, -0.3, 0], atol=1e-6)


def test_rotations_whose_numbers_jump_nearby_are_remarked_upon():
    down, level = (Rotation.from_rotvec([a, 0, 0]).as_quat() for a in (3.1, 0.2))
    pitched = Rotation.from_euler("xyz", [0, 1.55, 0]).as_quat()
    for part, quaternion, words in (
        ("rotvec", down, "rotation vector is near pi"),
        ("rpy", down, "roll, pitch or yaw"),
        ("rpy", pitched, "roll, pitch or yaw"),
        ("quaternion", down, "w is near 0"),
        ("axis_angle", down, ""),
        ("position", down, ""),
        *((part, level, "") for part in ("rotvec", "rpy", "quaternion", "axis_angle")),
    ):
        found = StateLayout((part,)).seam(quaternion)
        assert words in found and bool(words) == bool(found), part


def test_where_only_the_position_is_read_a_pose_need_have_no_rotation():
    layout, pose = StateLayout(("position",)), ((0.1, 0.2, 0.3), (0.0, 0.0, 0.0, 0.0))
    assert layout.read(pose) == pytest.approx(pose[0])
    assert layout.seam(pose[1]) == ""


@pytest.mark.parametrize(
    ("parts", "joints", "words"),
    [
        (("height",), (), "unknown part 'height'"),
        (("joints",), (), "has part 'joints', 0 joints"),
        (("position",), ("f1",), "has no part 'joints', 1 joints"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(parts, joints, words):
    with pytest.raises(VlaError, match=words):
        StateLayout(parts, joints)


def test_a_state_that_cannot_be_read_is_refused():
    both = StateLayout(("position", "rotvec", "joints"), ("f1",))
    unit = (0.0, 0.0, 0.0, 1.0)
    for pose, joints, words in (
        (((0, 0, 0), unit), {"f2": 1.0}, "lack f1"),
        (((0, 0, 0), (0.0, 0.0, 0.0, 0.0)), {"f1": 1.0}, "not a unit quaternion"),
        (((0, 0, float("nan")), unit), {"f1": 1.0}, "not finite"),
    ):
        with pytest.raises(ObservationError, match=words):
            both.read(pose, joints)


JOINTS = ("a1", "a2", "f")
NAMES = st.sets(st.sampled_from((*JOINTS, "other")))


@CALM
@given(
    st.lists(
        st.tuples(
            st.sets(st.sampled_from((*JOINTS, "other"))), st.integers(0, 100), st.booleans()
        ),
        max_size=30,
    )
)
def test_whatever_messages_name_each_joint_is_as_its_newest_message_says(messages):
    memory, newest = JointMemory(JOINTS), {}
    for number, (names, stamp, velocities) in enumerate(messages):
        names = sorted(names)
        positions = [] if velocities else [number + 0.1 * i for i in range(len(names))]
        known = memory.put(names, positions, stamp / 100)
        said = set(names) & set(JOINTS) if positions else set()
        assert bool(known) == bool(said)
        for name, position in zip(names, positions, strict=False):
            if name in JOINTS and stamp >= newest.get(name, (0, -1))[1]:
                newest[name] = position, stamp
        if known:
            assert {n: (p, round(100 * s)) for n, (p, s) in known.items()} == newest


def test_a_clock_that_was_set_back_makes_joints_unknown():
    memory = JointMemory()
    memory.put(["a", "b"], [1, 2], 100.0)
    assert memory.put(["a"], [3], 100.0 - SET_BACK).keys() == {"a", "b"}
    assert memory.put(["a"], [3], 99.0 - SET_BACK).keys() == {"a"}


def test_joints_that_were_not_heard_of_for_long_are_refused_by_name():
    memory = JointMemory()
    memory.put(["arm", "unused"], [1, 2], 10.0)
    known = memory.put(["finger"], [0.04], 10.0 + MAX_APART)
    assert positions_at(known, ["finger", "arm"], 10.0 + MAX_APART) == {"finger": 0.04, "arm": 1}
    with pytest.raises(ObservationError, match=r"joint arm was last heard of 0\.60 s before"):
        positions_at(known, ["finger", "arm"], 10.6)
    assert positions_at(known, ["finger"], 10.6) == {"finger": 0.04}


@pytest.mark.parametrize(
    ("names", "positions", "words"),
    [
        (["a", "b"], [1], "name 2 joints and give 1 positions"),
        (["a"], [1, 2], "name 1 joints and give 2 positions"),
        (["panda_joint1", "panda_joint1"], [1, 2], "name panda_joint1 twice"),
    ],
)
def test_joint_states_that_do_not_say_whose_they_are_are_refused(names, positions, words):
    with pytest.raises(ObservationError, match=words):
        JointMemory().put(names, positions, 1.0)


def test_a_camera_is_frozen_once_its_bytes_stay_the_same_for_too_long():
    watch = FrozenWatch()
    for stamp in (0.0, 0.2, 0.5):
        watch.check("image", b"same", stamp, 0.5)
        watch.check("wrist", bytes([int(10 * stamp)]), stamp, 0.5)
    with pytest.raises(ObservationError, match=r"image has .* same image for 0\.60 s"):
        watch.check("image", b"same", 0.6, 0.5)
    watch.check("image", b"other", 0.7, 0.5)
    watch.check("image", b"same", 0.8, 0.5)


def test_models_are_found_inside_the_root_alone(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "good", root / "leaky", root / "org" / "name", outside):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (root / "leaky" / "model.safetensors").symlink_to(outside / "config.json")
    (root / "link").symlink_to(outside)
    cached = root / "models--openvla--small"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc\n")
    assert find_model(root, "good") == find_model(root, str(root / "good")) == root / "good"
    assert find_model(root, "good/../org/name") == root / "org" / "name"
    assert find_model(root, "openvla/small") == cached / "snapshots" / "abc"
    for name in ("../outside", str(outside), "link", "good/../../outside", "/", ".", "leaky"):
        with pytest.raises(VlaError, match="leads out of model_root"):
            find_model(root, name)
    for name, words in (
        ("none", "there is no model none"),
        ("", "no model is named"),
        ("good/config.json", "there is no model"),
        ("a\0b", "no model is named"),
        ("org/other", "there is no model org/other"),
    ):
        with pytest.raises(VlaError, match=words):
            find_model(root, name)
    (cached / "refs" / "main").write_text("../../../outside")
    with pytest.raises(VlaError, match="leads out"):
        find_model(root, "openvla/small")
    for bad in ("", "/", os.fspath(root / "good" / "config.json")):
        with pytest.raises(VlaError, match=r"model_root|cannot be changed"):
            find_model(bad, "good")
