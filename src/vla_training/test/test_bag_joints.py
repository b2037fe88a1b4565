"""Tests of joint states in bags: by name, several publishers, any order."""

from __future__ import annotations

import numpy as np
import pytest
from bags import convert_words
from ros_bags import CAMERA, FLOAT, IMAGE, JOINTS, STRING, Ros, usual, write_bag

from vla_inference.errors import DataError
from vla_training.datasets import open_dataset
from vla_training.datasets.bag.reader import BagSet

ROS = Ros()
WANTED = [0, 0, 0.02, 0, 0, 0.03]  # of `arm` between two images


@pytest.fixture
def arm(tmp_path) -> str:
    """A URDF: a tip that is lifted, and turned about an axis half a metre away."""
    joint = (
        '<joint name="{0}" type="{1}"><parent link="{2}"/><child link="{3}"/><axis xyz="0 0 1"/>'
        '<limit lower="-9" upper="9" effort="1" velocity="1"/><origin xyz="{4} 0 0"/></joint>'
    )
    inertia = '<inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/>'
    links = "".join(
        f'<link name="{n}"><inertial><mass value="1"/>{inertia}</inertial></link>'
        for n in ("arm", "tip")
    )
    path = tmp_path / "arm.urdf"
    path.write_text(
        '<robot name="a"><mujoco><compiler fusestatic="false"/></mujoco><link name="base"/>'
        + links
        + joint.format("lift", "prismatic", "base", "arm", 0)
        + joint.format("turn", "revolute", "arm", "tip", 0.5)
        + "</robot>"
    )
    return str(path)


def images(count: int = 8):
    found = [("/task", STRING, 49, ROS.string("pick up the cup"))]
    for i in range(count):
        t = 50 + 0.1 * i
        found.append((CAMERA, IMAGE, t, ROS.grey(t, 20 * i)))
    return found


def say(t, names, positions, topic="/joint_states"):
    return topic, JOINTS, t, ROS.joints(t, names, positions)


def driven(begin=49.9, count=40):
    """(time, lift, turn, finger) of an arm whose gripper closes at 50.4 s."""
    for i in range(count):
        t = begin + 0.03 * i
        yield t, 0.2 * (t - 50), 0.3 * (t - 50), 0.04 if t < 50.4 else 0.0


def options(arm, **more):
    return {
        "robot_model": arm,
        "robot_tip": "tip",
        "gripper_joint": "finger",
        "gripper_range": (0.0, 0.04),
        **more,
    }


def assert_driven(actions):
    assert len(actions) == 8
    np.testing.assert_allclose(actions[:, :6], np.tile(WANTED, (8, 1)), atol=1e-9)
    assert actions[:, 6].tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize("layout", ["whole", "partial", "shuffled", "halves", "two topics"])
def test_arm_and_gripper_on_one_topic_or_on_two(layout, arm, tmp_path):
    messages = images()
    for t, lift, turn, finger in driven():
        if layout == "whole":
            messages.append(say(t, ["lift", "turn", "finger"], [lift, turn, finger]))
            continue
        if layout == "shuffled":
            messages.append(say(t, ["finger", "turn", "lift"], [finger, turn, lift]))
            continue
        if layout == "halves":  # two boards for one arm
            later = t + 0.013
            messages += [
                say(t, ["lift"], [lift]),
                say(later, ["turn", "other"], [0.3 * (later - 50), 5]),
            ]
        else:
            messages.append(say(t, ["lift", "turn"], [lift, turn]))
        where = "/gripper/joint_states" if layout == "two topics" else "/joint_states"
        messages.append(say(t + 0.01, ["finger"], [finger], where))
    path = write_bag(tmp_path / "bag", ROS, messages)
    more = {"action_topic": "/joint_states", "gripper_topic": "/gripper/joint_states"}
    read = BagSet(path, **options(arm, **(more if layout == "two topics" else {})))
    assert_driven(read.actions(0))
    assert read[0].instructions == ["pick up the cup"] * 8
    assert not any("joint" in note for note in read.notes)


def test_a_bag_of_partial_joint_states_is_converted(arm, tmp_path):
    from vla_inference.cli.main import main

    messages = images()
    for t, lift, turn, finger in driven():
        messages += [say(t, ["lift", "turn"], [lift, turn]), say(t + 0.01, ["finger"], [finger])]
    path = write_bag(tmp_path / "bag", ROS, messages)
    reading = {
        "robot_model": arm,
        "robot_tip": "tip",
        "gripper_joint": "finger",
        "gripper_range": "[0.0, 0.04]",
    }
    assert main(convert_words(path, tmp_path / "out.hdf5", **reading)) == 0
    actions = open_dataset(tmp_path / "out.hdf5").actions(0)
    np.testing.assert_allclose(actions[:, :6], np.tile(WANTED, (8, 1)), atol=1e-7)
    assert actions[:, 6].tolist() == [1] * 4 + [0] * 4


def test_joints_the_arm_needs_and_nobody_names_are_told(arm, tmp_path):
    messages = images() + [say(t, ["lift"], [lift]) for t, lift, *_ in driven()]
    read = BagSet(write_bag(tmp_path / "bag", ROS, messages), robot_model=arm, robot_tip="tip")
    assert any("no message names turn of the arm: taken for 0" in n for n in read.notes)
    np.testing.assert_allclose(read.actions(0)[:, 2], 0.02, atol=1e-9)


def test_joints_that_are_nowhere_are_named(arm, tmp_path):
    messages = images() + [say(t, ["lift", "turn"], [lift, turn]) for t, lift, turn, _ in driven()]
    path = write_bag(tmp_path / "bag", ROS, messages)
    with pytest.raises(DataError, match=r"no joint 'finger'; joints: lift, turn"):
        BagSet(path, **options(arm))
    messages = images() + [say(t, ["wheel"], [1.0]) for t, *_ in driven()]
    path = write_bag(tmp_path / "wheels", ROS, messages)
    with pytest.raises(DataError, match=r"no joint .* \(wheel\) is in .* it has lift"):
        BagSet(path, robot_model=arm, robot_tip="tip")


def test_messages_without_positions_say_nothing_and_bad_ones_are_counted(arm, tmp_path):
    messages = images()
    for t, lift, turn, _ in driven():
        messages.append(say(t, ["lift", "turn"], [lift, turn]))
        messages.append(say(t + 0.001, ["lift", "turn"], []))  # velocities alone
        messages.append(say(t + 0.002, ["lift", "turn"], [9.0]))
        messages.append(say(t + 0.003, ["lift", "lift"], [9.0, 8.0]))
    read = BagSet(write_bag(tmp_path / "bag", ROS, messages), robot_model=arm, robot_tip="tip")
    np.testing.assert_allclose(read.actions(0)[:, :6], np.tile(WANTED, (8, 1)), atol=1e-9)
    notes = " ".join(read.notes)
    assert (
        "40 messages of /joint_states left out: the joint states name 2 joints and give 1" in notes
    )
    assert "40 messages of /joint_states left out: the joint states name lift twice" in notes


# -- the state --------------------------------------------------------------------------------


def state_bag(path, messages):
    return write_bag(path, ROS, usual(ROS) + messages)


def test_the_state_is_by_name_in_one_order_however_messages_arrive(tmp_path):
    """Two arms and a gripper on one topic; in the second bag the gripper's driver is first."""
    for number, ahead in enumerate((0.0, -0.02)):
        messages = []
        for i in range(60):
            t = 99.9 + 0.01 * i
            messages.append(say(t, ["l1", "l2"], [i, i + 0.5]))
            messages.append(say(t + 0.001, ["r2", "r1"], [-i, -i - 0.5]))
            messages.append(say(t + 0.002 + ahead, ["finger"], [0.04]))
        state_bag(tmp_path / "set" / f"bag{number}", messages)
    read = BagSet(tmp_path / "set", state_topic="/joint_states")
    for number in range(2):
        states = read.episode(number).states
        assert states.shape == (6, 5)
        np.testing.assert_array_equal(states[:, 0] + 0.5, states[:, 1])  # l1 l2 r2 r1 finger
        np.testing.assert_array_equal(states[:, 2] - 0.5, states[:, 3])
        np.testing.assert_array_equal(states[:, 4], 0.04)
    assert any("the state is l1, l2, r2, r1, finger" in n for n in read.notes)
    right = BagSet(tmp_path / "set", state_topic="/joint_states", state_joints="r1,r2, finger")
    states = right.episode(1).states
    np.testing.assert_array_equal(states[:, 0], states[:, 1] - 0.5)
    np.testing.assert_array_equal(states[:, 2], 0.04)
    assert not any("the state is" in n for n in right.notes)
    with pytest.raises(DataError, match="no joint r9; joints: l1, l2, r2, r1, finger"):
        BagSet(tmp_path / "set", state_topic="/joint_states", state_joints="r9")


def test_bags_whose_states_are_of_other_joints_do_not_mix(tmp_path):
    for name in ("a", "b"):
        state_bag(tmp_path / "set" / name, [say(99.9 + 0.02 * i, [name], [i]) for i in range(60)])
    read = BagSet(tmp_path / "set", state_topic="/joint_states")
    assert read.episode(0).states.shape == (6, 1)
    with pytest.raises(DataError, match="of the joints b, that of the bags before a; name them"):
        read.episode(1)


def test_a_joint_whose_driver_died_leaves_no_state(tmp_path):
    messages = [say(99.9 + 0.02 * i, ["finger"], [0.04]) for i in range(60)]
    messages += [say(99.9, ["arm"], [1.0])]
    path = state_bag(tmp_path / "bag", messages)
    read = BagSet(path, state_topic="/joint_states", state_joints="arm,finger")
    assert len(read[0]) == 5  # of 6: at 100.5 s the arm was last heard of 0.6 s before
    notes = " ".join(read.notes)
    assert "1 of 6 images left out: no state" in notes
    assert "joint arm was last heard of more than 0.5 s before" in notes


# -- options that change nothing --------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"robot_model": "nofile"}, "--robot-model changes nothing"),
        ({"robot_tip": "tip"}, "--robot-tip changes nothing"),
        ({"gripper_range": (1.0, 0.0)}, "--gripper-range changes nothing"),
        ({"gripper_joint": "f"}, "--gripper-joint changes nothing"),
        ({"state_joints": "f"}, "--state-joints changes nothing"),
    ],
)
def test_an_option_that_twists_do_not_take_is_refused(given, words, tmp_path):
    path = write_bag(tmp_path / "bag", ROS, usual(ROS))
    with pytest.raises(DataError, match=words):
        BagSet(path, **given)


def test_several_joints_of_a_gripper_are_asked_for(tmp_path):
    messages = [say(99.9 + 0.02 * i, ["f1", "f2"], [0.0, 0.04], "/hand") for i in range(60)]
    path = write_bag(tmp_path / "bag", ROS, usual(ROS) + messages)
    with pytest.raises(DataError, match=r"/hand has 2 joints \(f1, f2\); name .* --gripper-joint"):
        BagSet(path, gripper_topic="/hand")
    read = BagSet(path, gripper_topic="/hand", gripper_joint="f2", gripper_range=(0.0, 0.04))
    assert read.actions(0)[:, 6].tolist() == [1.0] * 6
    assert not any("--gripper-range" in n for n in read.notes)
    metres = BagSet(path, gripper_topic="/hand", gripper_joint="f2")
    assert any(
        "the gripper says 0.04 to 0.04, where 0 is closed and 1 open" in n for n in metres.notes
    )
    number = ROS.types[FLOAT](0.5)
    path = write_bag(tmp_path / "number", ROS, [*usual(ROS), ("/hand", FLOAT, 99.0, number)])
    with pytest.raises(DataError, match="--gripper-joint changes nothing"):
        BagSet(path, gripper_topic="/hand", gripper_joint="f2")
    assert BagSet(path, gripper_topic="/hand").actions(0)[:, 6].tolist() == [0.5] * 6
