"""Tests of the command node by parts in a real ROS graph: each output, and one stop for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import Twist, TwistStamped
from graphs import domain
from part_robot import SIX, TYPES, Robot, arm_spec, six
from rclpy.parameter import Parameter
from rclpy.time import Time
from sensor_msgs.msg import JointState
from six_axes import HOME
from std_msgs.msg import Float64MultiArray

from vla_inference.errors import VlaError
from vla_inference.ros.command.node import CommandNode
from vla_inference.types import (
    ActionPart,
    ActionSpec,
    DimSpec,
    eef_part,
    gripper_part,
    joint_part,
)


@pytest.fixture
def robot(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    graphs = []

    def make(parts: dict, *topics: str, types: dict[str, type] = TYPES, **more) -> Robot:
        heard = {topic: types[topic.rpartition("/")[2]] for topic in topics}
        graphs.append(Robot(parts, heard, command_rate=50.0, **more))
        return graphs[-1]

    yield make
    for g in graphs:
        g.close()


def values(output: str, heard: list[Any]) -> np.ndarray:
    """The numbers of an output's messages [T, 6]."""
    if output == "joint_trajectory":
        return np.array([msg.points[0].positions for msg in heard])
    return np.array([msg.data for msg in heard])


@pytest.mark.parametrize("kind", ["joint_position", "joint_delta", "joint_velocity"])
@pytest.mark.parametrize("output", ["joint_trajectory", "joint_positions", "joint_velocities"])
def test_joints_go_where_the_model_wants_them(robot, output, kind):
    g = robot({"arm": six(output)}, f"arm/{output}")
    heard, spec = g.heard[f"arm/{output}"], arm_spec(kind)
    goal = HOME + np.array([0.2, -0.2, 0.1, 0, 0, 0.05])
    rows = {
        "joint_position": HOME + np.outer(np.arange(1, 6) / 5, goal - HOME),
        "joint_delta": np.tile((goal - HOME) / 5, (5, 1)),
        "joint_velocity": np.tile((goal - HOME) / 0.5, (5, 1)),
    }[kind]
    still = np.tile(HOME, (20, 1)) if kind == "joint_position" else np.zeros((20, 6))
    g.send(spec, rows)
    g.idle(0.2)
    assert not heard  # a dry run
    g.ready(spec, still)
    g.until(lambda: g.status.state == "enabled", "enabled")
    g.send(spec, rows)
    # A period that comes late on a busy machine costs a part of what is no position.
    least = 0.95 if kind == "joint_position" else 0.25
    way = goal - HOME
    g.until(lambda: (g.joints["arm"] - HOME) @ way > least * way @ way, "the goal")

    def told() -> list:
        return values(output, heard)

    def resting() -> bool:
        numbers = told()[-2:]
        moves = numbers if output == "joint_velocities" else np.diff(numbers, axis=0)
        return len(heard) > 2 and not moves.any()

    g.until(resting, "the end of the motion")
    g.idle(0.3)
    before = len(heard)
    g.idle(0.3)
    assert len(heard) == before  # and then silence
    if output == "joint_velocities":
        assert not told()[-1].any() and np.abs(told()).max() <= 1.0
    else:
        assert np.abs(told()[0] - HOME).max() < 0.02  # it begins where the arm is
        assert np.abs(np.diff(told(), axis=0)).max() <= 1.0 / 50 + 1e-9


def test_a_trajectory_has_one_point_and_no_stamp(robot):
    g = robot({"arm": six("joint_trajectory", time_from_start=0.15)}, "arm/joint_trajectory")
    g.ready(arm_spec(), np.tile(HOME, (20, 1)))
    g.send(arm_spec(), np.tile(HOME + 0.05, (20, 1)))
    g.until(lambda: g.heard["arm/joint_trajectory"], "a trajectory")
    msg = g.heard["arm/joint_trajectory"][0]
    assert msg.joint_names == SIX and len(msg.points) == 1
    assert msg.header.stamp.sec == msg.header.stamp.nanosec == 0
    assert msg.points[0].time_from_start.nanosec == 150_000_000
    assert not msg.points[0].velocities


def test_limits_of_the_description_and_of_the_parameters_hold(robot):
    g = robot({"arm": six("joint_positions", max_velocity=[3.0])}, "arm/joint_positions")
    heard, far = g.heard["arm/joint_positions"], HOME.copy()
    far[1], far[5] = 5.0, -1.0  # beyond the limit of 2 rad; at 0.5 rad/s at most
    g.ready(arm_spec(), np.tile(HOME, (20, 1)))
    g.send(arm_spec(dt=1.0), np.tile(far, (6, 1)))
    g.until(lambda: g.joints["arm"][1] > 1.9, "the limit")
    told = values("joint_positions", heard)
    assert told[:, 1].max() <= 2.0 and np.abs(np.diff(told[:, 5])).max() <= 0.5 / 50 + 1e-9
    assert np.abs(np.diff(told[:, 1])).max() <= 2.0 / 50 + 1e-9  # the URDF's, not 3
    g.until(lambda: "arm.joint_position" in g.status.clip_kinds, "the clips")


ALOHA = {
    **{
        f"{side}_arm": {
            "output": "joint_positions",
            "joints": [f"{side}_{i}" for i in range(6)],
            "lower_limits": [-3.0],
            "upper_limits": [3.0],
            "max_drift": [1.0],
        }
        for side in ("left", "right")
    },
    "left_gripper": {"output": "gripper", "gripper_open": 0.04},
    "right_gripper": {"output": "gripper"},
}
ALOHA_TOPICS = (
    "left_arm/joint_positions",
    "right_arm/joint_positions",
    "left_gripper/gripper",
    "right_gripper/gripper",
)


def aloha_spec() -> ActionSpec:
    arms = [joint_part(n, [f"a{i}" for i in range(6)]) for n in ("left_arm", "right_arm")]
    grippers = gripper_part("left_gripper"), gripper_part("right_gripper")
    return ActionSpec((arms[0], grippers[0], arms[1], grippers[1]), 0.1)


def aloha_rows(left: float, right: float, count: int = 40) -> np.ndarray:
    row = np.concatenate([HOME + left, [1.0], HOME + right, [0.0]])
    return np.tile(row, (count, 1))


@pytest.mark.parametrize("fault", ["joints", "publisher", "frozen", "second joints"])
def test_a_fault_of_one_arm_stops_both(robot, fault):
    frozen = 0.0 if fault == "joints" else 0.5  # s; else what is silent is taken for frozen
    g = robot(ALOHA, *ALOHA_TOPICS, pose_timeout=1.0, frozen_pose_timeout=frozen)
    left, right = (g.heard[t] for t in ALOHA_TOPICS[:2])
    g.ready(aloha_spec(), aloha_rows(0, 0))
    g.send(aloha_spec(), aloha_rows(0.5, -0.5))
    g.until(lambda: len(left) > 5 and len(right) > 5, "both arms in motion")
    assert g.heard["left_gripper/gripper"][-1].data[0] == pytest.approx(0.04)
    assert g.heard["right_gripper/gripper"][-1].data[0] == 0.0
    if fault == "joints":
        g.silent.add("right_arm")
        assert "right_arm: no joint states" in g.stopped("joints_lost")
    elif fault == "frozen":
        g.held.add("right_arm")
        assert "right_0 has been measured at exactly the same" in g.stopped("joints_frozen")
    else:
        topic = "right_arm/joint_positions" if fault == "publisher" else "right_arm/joint_states"
        kind = Float64MultiArray if fault == "publisher" else JointState
        g.client.create_publisher(kind, topic, 10)
        assert topic in g.stopped("second_publisher")
    g.idle(0.3)
    before = len(left), len(right)
    g.send(aloha_spec(), aloha_rows(0.2, 0.2))
    g.idle(0.3)
    assert (len(left), len(right)) == before
    for told in (left, right):  # the last commanded positions, twice
        assert told[-1].data == told[-2].data == told[-3].data


def test_a_fault_of_one_output_halts_the_others(robot, monkeypatch):
    g = robot(ALOHA, *ALOHA_TOPICS)
    right = g.heard["right_arm/joint_positions"]
    g.ready(aloha_spec(), aloha_rows(0, 0))
    g.send(aloha_spec(), aloha_rows(0.5, -0.5))
    g.until(lambda: len(right) > 5, "motion")

    def fail(*_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(g.node._outputs["left_arm"], "send", fail)
    assert "out of order" in g.stopped("node_fault")
    g.idle(0.3)
    assert right[-1].data == right[-2].data


@pytest.mark.parametrize("output", ["base_twist", "base_twist_stamped"])
def test_a_base_is_driven_within_its_limits_and_halts(robot, output):
    kind = Twist if output == "base_twist" else TwistStamped
    parts = {"base": {"output": output, "max_linear_velocity": 0.4, "frame": "chassis"}}
    g = robot(parts, "base/cmd_vel", types={"cmd_vel": kind})
    heard = g.heard["base/cmd_vel"]
    dims = DimSpec("x", "m/s"), DimSpec("rz", "rad/s")
    spec = ActionSpec((ActionPart("base", "base_twist", dims, "base"),), 0.1)
    g.ready(spec, np.zeros((20, 2)))
    g.send(spec, np.tile([2.0, 0.3], (40, 1)))

    def twists() -> list:
        return [getattr(m, "twist", m) for m in heard]

    g.until(lambda: heard and twists()[-1].linear.x > 0.39, "full speed")
    speeds = np.array([t.linear.x for t in twists()])
    assert speeds.max() <= 0.4 and np.diff(speeds).max() <= 1.0 / 50 + 1e-9
    g.until(lambda: twists()[-1].angular.z == pytest.approx(0.3), "the turn")
    if kind is TwistStamped:
        assert heard[-1].header.frame_id == "chassis" and Time.from_msg(heard[-1].header.stamp)
    g.enable(False)
    g.until(lambda: twists()[-1] == twists()[-2] == Twist(), "two zeros")
    before = len(heard)
    g.idle(0.3)
    assert len(heard) == before


def test_two_end_effectors_get_their_own_twists(robot):
    parts = {f"{side}_arm": {"output": "twist"} for side in ("left", "right")}
    topics = "left_arm/delta_twist", "right_arm/delta_twist"
    g = robot(parts, *topics)
    spec = ActionSpec((eef_part("left_arm"), eef_part("right_arm")), 0.1)
    g.ready(spec, np.zeros((20, 12)))
    g.send(spec, np.tile([0.01, 0, 0, 0, 0, 0, 0, -0.01, 0, 0, 0, 0], (40, 1)))
    left, right = (g.heard[t] for t in topics)
    g.until(lambda: left and left[-1].twist.linear.x == pytest.approx(0.1), "the left")
    g.until(lambda: right and right[-1].twist.linear.y == pytest.approx(-0.1), "the right")
    g.client.create_publisher(TwistStamped, topics[0], 10)
    g.stopped("second_publisher")
    zero = TwistStamped().twist
    g.until(lambda: left[-1].twist == right[-1].twist == zero, "halts of both")


def test_chunks_of_other_parts_are_refused_by_name(robot):
    g = robot({"arm": six("joint_trajectory")}, "arm/joint_trajectory")
    two = ActionSpec((joint_part("arm", SIX), gripper_part()), 0.1)
    for spec, words in (
        (two, "gripper (gripper) cannot be executed"),
        (ActionSpec((joint_part("other", SIX),)), "other (joint_position) cannot be executed"),
        (ActionSpec((eef_part(),)), "arm is eef_delta in the chunk"),
        (ActionSpec((joint_part("arm", SIX[:5]),)), "arm has 5 numbers in the chunk, 6 joints"),
    ):
        before = g.status.refused
        g.send(spec, np.zeros((2, len(spec))))
        g.until(lambda n=before: g.status.refused > n, "a refusal")
        assert words in g.status.last_refusal


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"output": "hydraulics"}, "'arm.output' is 'hydraulics'; use one of base_twist"),
        ({"joints": [""]}, "its joints are not named"),
        ({"joints": [*SIX[:5], "j9"]}, "robot_description has no moving joint j9; it has j0"),
        ({"robot_description": ""}, "nothing says how far its joints may go"),
        ({"robot_description": "<robot"}, "cannot read the robot description"),
        ({"max_velocity": [1.0, 2.0]}, "max_velocity has 2 numbers for 6 joints"),
        ({"max_velocity": [0.0]}, "velocity limit 0"),
        ({"lower_limits": [1.0], "upper_limits": [0.5]}, "position limits 1 to 0.5"),
        ({"max_velocty": [1.0]}, "did you mean arm.max_velocity"),
        ({"output": "follow_joint_trajectory", "max_drift": [0.0]}, "max_drift is 0"),
    ],
)
def test_parameters_that_contradict_are_refused_by_name(monkeypatch, changes, words):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain())
    values = {"parts": ["arm"]}
    values |= {f"arm.{k}": v for k, v in {**six("joint_trajectory"), **changes}.items()}
    overrides = [Parameter(k, value=v) for k, v in values.items()]
    try:
        node = CommandNode(context=context, namespace="/here", parameter_overrides=overrides)
        assert not node.start()
        assert words in node.failure
        node.destroy_node()
    except VlaError as error:  # what a part is must be known from the start
        assert words in str(error)
    finally:
        rclpy.shutdown(context=context)
