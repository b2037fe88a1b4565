"""Tests of the command node in a real ROS graph: its output, and what stops it.

"Nothing was published" is shown by a sentinel: the first thing heard afterwards is what was asked
for last.
"""

from __future__ import annotations

import math
import operator
import re

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from graphs import NodeGraph, domain
from rcl_interfaces.msg import Log
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from rclpy.time import Time
from std_msgs.msg import Empty, Float64MultiArray
from std_srvs.srv import SetBool

from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.lifecycle import SUCCESS
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import (
    ActionChunk,
    ActionPart,
    ActionSpec,
    DimSpec,
    eef_delta_spec,
    eef_part,
    joint_spec,
)
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import CommandStatus

FREE = {
    f"max_{k}_{w}": 0.0
    for k in ("linear", "angular")
    for w in ("velocity", "acceleration", "jerk")
}


class Graph(NodeGraph):
    """A command node, and the model and controller around it."""

    def __init__(self, **parameters):
        # In a busy test run a period may be late; that has tests of its own in the core.
        defaults = {**FREE, "align": "arrival", "max_period": 5.0, "stall_timeout": 10.0}
        super().__init__(CommandNode, {**defaults, **parameters})
        self.twists: list[tuple[float, TwistStamped]] = []
        self.poses: list[PoseStamped] = []
        self.grippers: list[float] = []
        self.status, self.diagnostics = CommandStatus(), []
        make = self.client.create_subscription
        make(TwistStamped, "delta_twist", self._twist, 100)
        make(PoseStamped, "target_pose", self.poses.append, 100)
        make(Float64MultiArray, "gripper", lambda m: self.grippers.extend(m.data), 100)
        make(CommandStatus, "command/status", self._keep, qos.LATCHED)
        make(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        self.actions = self.client.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
        self.pose = self.client.create_publisher(PoseStamped, "current_pose", 10)
        self.heart = self.client.create_publisher(Empty, "heartbeat", 10)
        self.enabler = self.client.create_client(SetBool, "command/enable")
        assert self.start_node(), self.node.failure
        self.until(lambda: self.actions.get_subscription_count(), "the node's subscription")
        self.until(lambda: self.client.count_publishers("action"), "discovery")
        self.until(lambda: self.status.state == "disabled", "a status")
        assert self.enabler.wait_for_service(self.patience)

    def _twist(self, msg: TwistStamped) -> None:
        self.twists.append((self.now(), msg))

    def _keep(self, status: CommandStatus) -> None:
        self.status = status

    def said(self) -> CommandStatus:
        return self.status

    def now(self) -> float:
        return 1e-9 * self.client.get_clock().now().nanoseconds

    def ready(self, *rows, **more) -> None:
        """Send a chunk that stands still, or these rows, and enable once it was heard."""
        heard = self.status.chunks
        self.send(*(rows or [ahead(0.0)] * 20), age=0.01, **more)
        self.until(lambda: self.status.chunks > heard, "a chunk")
        assert self.enable() == ""

    def measure(
        self, x: float = 0.0, age: float = 0.0, frame: str = "base_link", stamped: bool = True
    ) -> None:
        msg = PoseStamped()
        msg.header.frame_id = frame
        if stamped:
            msg.header.stamp = Time(seconds=self.now() - age).to_msg()
        msg.pose.position.x, msg.pose.orientation.w = x, 1.0
        self.pose.publish(msg)

    def enable(self, on: bool = True) -> str:
        future = self.enabler.call_async(SetBool.Request(data=on))
        self.until(future.done, "an answer to enable")
        assert future.result().success == (not future.result().message)
        return future.result().message

    def send(self, *rows, age: float = 0.0, change=None, dt: float = 0.05, **spec) -> None:
        chunk = ActionChunk(list(rows), eef_delta_spec(dt=dt, **spec))
        stamp = Time(seconds=self.now() - age).to_msg()
        msg = chunk_to_msg(chunk, stamp)
        if change:
            change(msg)
        self.actions.publish(msg)

    def send_chunk(self, chunk: ActionChunk) -> None:
        self.actions.publish(chunk_to_msg(chunk, Time(seconds=self.now()).to_msg()))

    def stopped(self, kind: str) -> str:
        self.until(lambda: self.status.state == "stopped", f"a stop by {kind}")
        assert self.status.stop_kind == kind
        return self.status.stop_reason


def moves(heard: tuple[float, TwistStamped]) -> bool:
    return heard[1].twist != TwistStamped().twist


def assert_stamped_when_published(heard: list[tuple[float, TwistStamped]], begun: float) -> None:
    """Each later than the one before, none before the motion was sent or after it arrived."""
    stamps = [1e-9 * Time.from_msg(msg.header.stamp).nanoseconds for _, msg in heard]
    assert stamps[0] >= begun and (np.diff(stamps) > 0).all()
    assert all(s <= arrived for s, (arrived, _) in zip(stamps, heard, strict=True))


def ahead(x: float, gripper: float = 1.0) -> list[float]:
    return [x, 0, 0, 0, 0, 0, gripper]


@pytest.fixture
def graph(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    graphs = []

    def make(**parameters) -> Graph:
        graphs.append(Graph(**parameters))
        return graphs[-1]

    yield make
    for g in graphs:
        g.close()


def test_nothing_before_enabling_then_twists_two_zeros_and_silence(graph):
    g = graph(base_frame="base_link")
    g.send(*[ahead(0.03)] * 4)
    g.until(lambda: g.status.chunks == 1, "the first chunk")
    g.idle(0.3)
    assert g.status.commands == 0 and "dry run" in g.status.message
    assert g.enable() == "" and g.status.state in ("disabled", "enabled")
    begun = g.now()
    g.send(*[[0.01, -0.02, 0.005, 0.1, 0, -0.05, 1.0]] * 6)
    halted = lambda: len(g.twists) > 5 and not any(map(moves, g.twists[-2:]))  # noqa: E731
    g.until(halted, "six twists and two zeros")
    g.idle(0.3)
    # Had the dry run published anything, the first would be another one. A period that came late
    # on a busy machine may cost a step.
    assert 6 <= len(g.twists) <= 9 and g.grippers == [1.0]
    assert [moves(t) for t in g.twists] == [True] * (len(g.twists) - 2) + [False] * 2
    assert {msg.header.frame_id for _, msg in g.twists} == {"base_link"}
    assert_stamped_when_published(g.twists, begun)
    for _, msg in g.twists[:3]:
        linear, angular = msg.twist.linear, msg.twist.angular
        assert (linear.x, linear.y, linear.z) == pytest.approx((0.2, -0.4, 0.1), rel=1e-4)
        assert (angular.x, angular.y, angular.z) == pytest.approx((2.0, 0, -1.0), rel=1e-4)
    g.until(lambda: g.status.commands == len(g.twists), "the count of commands")
    assert g.enable(False) == ""


def test_limits_scale_and_the_tool_frame(graph):
    g = graph(scale=0.5, max_linear_velocity=0.1, tool_frame="hand")
    g.ready()
    g.send(*[ahead(0.03, gripper=0.0)] * 3, frame="tool")
    g.until(lambda: len(g.twists) >= 5, "twists")
    assert g.twists[0][1].header.frame_id == "hand"
    assert g.twists[0][1].twist.linear.x == pytest.approx(0.1, rel=1e-4)
    g.until(lambda: g.status.clip_kinds == ["linear_velocity"], "the clips")
    assert g.status.clip_counts[0] >= 1 and g.status.scale == pytest.approx(0.5)
    assert g.grippers == [0.0]


def test_faults_of_the_model_stop_it_until_it_is_enabled_again(graph):
    g = graph(stall_timeout=2.0)

    def spoil(msg):
        msg.actions[7 + 1] = math.nan

    for begin, kind, word in (
        (lambda: g.send(*[ahead(0.01)] * 3, change=spoil), "bad_chunk", "not finite"),
        (lambda: g.send(*[ahead(0.01)] * 3, age=1.5), "image_age", "old"),
        (lambda: None, "inference_stall", "chunk"),
    ):
        before = g.status.refused
        g.ready()
        g.until(lambda: g.status.state == "enabled", "enabled")
        g.twists.clear()
        begin()
        assert word in g.stopped(kind)
        assert g.status.refused == before + (kind != "inference_stall")
        g.until(lambda: len(g.twists) >= 2, "two zeros")
        g.send(*[ahead(0.01)] * 3)
        g.idle(0.25)
        assert [moves(t) for t in g.twists] == [False, False]
    errors = lambda: [  # noqa: E731
        s for d in g.diagnostics for s in d.status if s.level == DiagnosticStatus.ERROR
    ]
    g.until(errors, "an error in the diagnostics")
    assert "stopped" in errors()[0].message
    assert dict(zip(g.status.stop_kinds, g.status.stop_counts, strict=True)) == {
        "bad_chunk": 1,
        "image_age": 1,
        "inference_stall": 1,
    }


def test_a_chunk_whose_stamp_is_no_time_stops_it_and_the_next_is_executed(graph):
    g = graph()

    def spoil(msg):
        msg.header.stamp.sec = -1

    g.send(*[ahead(0.01)] * 3, change=spoil)  # disabled: refused, no more
    g.until(lambda: g.status.refused == 1, "a refusal")
    assert "the stamp of the chunk is not a valid time" in g.status.last_refusal
    g.ready()
    g.send(*[ahead(0.01)] * 3, change=spoil)
    assert "the stamp of the chunk is not a valid time" in g.stopped("bad_chunk")
    g.ready()
    g.send(*[ahead(0.01)] * 3)
    g.until(lambda: any(map(moves, g.twists)), "motion")


@pytest.mark.parametrize("where", ["chunk", "period"])
def test_a_fault_of_the_nodes_own_halts_the_robot_and_the_node_lives_on(graph, where):
    g = graph()
    g.ready()
    g.send(*[ahead(0.001)] * 200)
    g.until(lambda: len(g.twists) > 3, "motion")
    good, sound = g.node.commander, g.node.commander.accept

    def fail(*_):
        raise RuntimeError("out of order")

    if where == "chunk":
        good.accept = fail
        g.send(*[ahead(0.001)] * 20)
    else:
        good.tick = fail  # from now on in every period
    reason = g.stopped("node_fault")
    assert "unexpected RuntimeError in" in reason and "out of order" in reason
    g.until(lambda: not moves(g.twists[-1]), "a halt")
    told = [moves(t) for t in g.twists]
    g.idle(0.3)
    assert not any(map(moves, g.twists[len(told) :]))
    if where == "chunk":
        good.accept = sound
    else:
        del good.tick
    g.ready()
    g.twists.clear()
    g.send(*[ahead(0.001)] * 20)
    g.until(lambda: any(map(moves, g.twists)), "motion")


@pytest.mark.parametrize("topic", ["delta_twist", "action"])
def test_a_second_publisher_stops_it_in_the_midst_of_a_motion(graph, topic):
    g = graph()
    g.ready()
    g.send(*[ahead(0.001)] * 200)
    g.until(lambda: len(g.twists) > 3, "motion")
    kind = TwistStamped if topic == "delta_twist" else ActionChunkMsg
    other = g.client.create_publisher(kind, topic, 10)
    assert f"1 more publish on {g.node.resolve_topic_name(topic)}" in g.stopped("second_publisher")
    g.until(lambda: not any(map(moves, g.twists[-2:])), "two zeros")
    g.idle(0.2)
    assert [moves(t) for t in g.twists[-3:]] == [True, False, False]
    assert "more publish" in g.enable()
    g.client.destroy_publisher(other)
    g.until(lambda: g.enable() == "", "leave to go on")


def test_target_poses_start_at_the_robot_and_are_held(graph):
    g = graph(publish_pose=True, publish_twist=False, pose_timeout=1.5, base_frame="world")
    assert "measured pose" in g.enable()
    g.send(*[ahead(0.0)] * 20, age=0.01)

    def measure() -> None:  # where it was told to be
        g.measure(g.poses[-1].pose.position.x if g.poses else 0.4, frame="world")

    def ready() -> bool:
        measure()
        return g.enable() == ""

    g.until(ready, "a measured pose")
    g.send(*[ahead(0.01)] * 3)

    def held() -> bool:
        measure()
        g.idle(0.05)
        return len(g.poses) >= 4 and g.poses[-1].pose == g.poses[-3].pose

    g.until(held, "targets, and the last one held")
    at = [p.pose.position.x for p in g.poses]
    # From where the robot is, by no more than was asked for: a late period may cost some.
    assert 0.4 < at[0] <= 0.41 + 1e-5 and at == sorted(at)
    assert 0.41 < at[-1] <= 0.43 + 1e-5
    assert {p.header.frame_id for p in g.poses} == {"world"} and not g.twists
    assert "measured pose" in g.stopped("pose_lost")  # nobody measures any more
    g.idle(0.2)
    # The last measurement is old by now: going back there would be a motion.
    assert g.poses[-1].pose.position.x == pytest.approx(at[-1])


REFUSED_PARTS = {
    "joints": (joint_spec({"arm": "abcdef"}, ("gripper",)), r"arm \(joint_position\) cannot be"),
    "two arms": (
        ActionSpec((eef_part("left_arm"), eef_part("right_arm"))),
        r"right_arm \(eef_delta\) cannot be executed; only one arm's",
    ),
    "a base": (
        ActionSpec((eef_part(), ActionPart("base", "base_twist", (DimSpec("v", "m/s"),), "base"))),
        r"base \(base_twist\) cannot be executed",
    ),
    "a pose": (ActionSpec((eef_part(kind="eef_pose"),)), r"arm \(eef_pose\) cannot be executed"),
}


def test_what_it_cannot_execute_yet_is_refused_by_name(graph):
    g = graph()
    for count, (spec, words) in enumerate(REFUSED_PARTS.values(), 1):
        g.send_chunk(ActionChunk(np.zeros((2, len(spec))), spec))
        g.until(lambda n=count: g.status.refused == n, "the refusal")
        assert re.search(words, g.status.last_refusal), g.status.last_refusal
    assert not g.twists and not g.grippers


def test_an_arm_without_a_gripper_moves_and_no_gripper_is_told(graph):
    g = graph()
    spec = ActionSpec((eef_part(),))
    g.ready()
    g.until(lambda: g.status.state == "enabled", "enabled")
    g.send_chunk(ActionChunk(np.tile([0.01, 0, 0, 0, 0, 0], (10, 1)), spec))
    g.until(lambda: any(moves(t) for t in g.twists), "motion")
    assert not g.grippers


def test_it_is_not_enabled_before_a_chunk_has_come(graph):
    g = graph()
    reason = g.enable()
    assert "no usable chunk has come" in reason and g.actions.topic_name in reason
    g.send(*[ahead(0.01)] * 3, change=lambda m: operator.setitem(m.actions, 6, math.nan))
    g.until(lambda: g.status.refused, "the refusal")
    assert "the last was refused" in g.enable() and "not finite" in g.enable()
    g.ready()
    g.until(lambda: g.status.state == "enabled", "enabled")


@pytest.mark.parametrize("output", ["twist", "pose"])
@pytest.mark.parametrize("stamps", ["old", "fresh"])
def test_a_pose_source_that_repeats_its_last_pose_stops_the_robot(graph, output, stamps):
    """Its messages arrive in time; their stamps are old, or fresh and the pose alone is old."""
    g = graph(
        workspace=[-0.5, -0.5, -0.5, 0.5, 0.5, 0.5],
        publish_pose=output == "pose",
        publish_twist=output == "twist",
        max_linear_velocity=0.25,
    )
    died = math.inf

    def go_on(x: float) -> None:
        g.measure(age=max(0.0, g.now() - died) if stamps == "old" else 0.0)
        g.send(*[ahead(x)] * 20, age=0.01)
        g.idle(0.03)

    def on() -> bool:
        go_on(0.0)
        return g.enable() == ""

    g.until(on, "leave to move")
    died = g.now()

    def stopped() -> bool:
        go_on(0.01)
        return g.status.state == "stopped"

    g.until(stopped, "a stop")
    assert g.status.stop_kind in (
        {"old": ("pose_lost", "pose_frozen")}.get(stamps, ("pose_frozen",))
    )
    assert g.now() - died < 3.0 and all(p.pose.position.x <= 0.1 for p in g.poses)


def test_poses_without_stamp_or_far_away_are_told_and_not_followed(graph):
    g = graph(publish_pose=True, publish_twist=False, max_linear_velocity=0.25)
    g.send(*[ahead(0.0)] * 20, age=0.01)
    g.measure(stamped=False)
    g.until(lambda: "no stamp" in g.status.message, "the remark")

    def on() -> bool:
        g.measure()
        return g.enable() == ""

    g.until(on, "leave to move")
    for x in (0.0, 0.9, 0.0, 0.9, 0.0):
        g.measure(x)
        g.send(*[ahead(0.0)] * 20)
        g.idle(0.1)
    g.until(lambda: g.poses, "targets")
    assert max(p.pose.position.x for p in g.poses) < 0.01
    g.measure(0.9)
    g.until(lambda: "jumped by 0.900 m" in g.status.message, "the remark")


@pytest.mark.parametrize("topic", ["current_pose", "heartbeat"])
def test_a_second_source_of_pose_or_heartbeat_is_noticed_where_it_counts(graph, topic):
    kind = PoseStamped if topic == "current_pose" else Empty
    for needed in (False, True):
        more = {"publish_pose": True} if topic == "current_pose" else {"heartbeat_timeout": 0.3}
        g = graph(**(more if needed else {}))
        g.client.create_publisher(kind, topic, 10)
        g.until(lambda g=g: g.client.count_publishers(topic) == 2, "discovery")
        g.send(*[ahead(0.0)] * 20, age=0.01)
        g.idle(0.3)
        assert ("1 more publish on" in g.enable()) == needed


def test_it_tells_once_what_limits_are_in_force(graph):
    heard: list[str] = []
    g = graph(workspace=[0.2, -0.4, 0.0, 0.7, 0.4, 0.5], max_linear_velocity=0.1)
    g.client.create_subscription(Log, "/rosout", lambda m: heard.append(m.msg), 100)
    g.node.trigger_deactivate()
    g.until(lambda: g.client.count_publishers("/rosout") > 0, "discovery")
    g.idle(0.3)
    g.node.trigger_activate()
    g.until(lambda: any("limits in force" in m for m in heard), "the limits")
    (told,) = [m for m in heard if "limits in force" in m]
    for words in (
        "base base_link",
        "delta_twist on /graph",
        "0.1 m/s, no limit (m/s^2)",
        "x 0.2 to 0.7 m, y -0.4 to 0.4 m",
        "stall 10 s",
        "heartbeat off",
        "disabled; call /graph",
        "command/enable",
    ):
        assert words in told, told


def test_a_heartbeat_is_needed_where_asked_for(graph):
    g = graph(heartbeat_timeout=0.3)
    assert "heartbeat" in g.enable()
    g.send(*[ahead(0.0)] * 20, age=0.01)

    def ready() -> bool:
        g.heart.publish(Empty())
        return g.enable() == ""

    g.until(ready, "a heartbeat")
    assert "heartbeat" in g.stopped("heartbeat")


def test_deactivating_halts_and_senseless_parameters_leave_it_unconfigured(graph):
    g = graph()
    g.ready()
    g.send(*[ahead(0.001)] * 200)
    g.until(lambda: len(g.twists) > 3, "motion")
    g.node.trigger_deactivate()
    g.until(lambda: g.status.state == "inactive" and not moves(g.twists[-1]), "a halt")
    g.idle(0.2)
    assert [moves(t) for t in g.twists[-2:]] == [True, False]
    assert "not active" in g.enable()
    assert not g.node.set_parameters([Parameter("scale", value=0.5)])[0].successful
    g.node.trigger_cleanup()
    assert g.node.set_parameters([Parameter("workspace", value=[1.0, 2.0])])[0].successful
    g.node.trigger_configure()
    g.until(lambda: "workspace" in g.status.message, "the reason")


def test_an_output_that_fails_at_the_end_does_not_keep_the_others_going(graph, monkeypatch):
    g, stopped = graph(), []
    g.ready()
    g.send(*[ahead(0.001)] * 200)
    g.until(lambda: len(g.twists) > 3, "motion")

    def fail(*_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(g.node._outputs[""], "send", fail)
    monkeypatch.setattr(g.node._outputs[""], "stop", lambda: stopped.append(True))
    g.node.trigger_deactivate()
    assert stopped and "out of order" in g.node.failure


def test_a_topics_qos_is_overridden_and_no_other_topics(monkeypatch):
    """rclpy writes an override into the profile it is given, which topics share."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain())
    here = "qos_overrides./here"
    overrides = {
        f"{here}/current_pose.subscription.reliability": "reliable",
        f"{here}/delta_twist.publisher.depth": 7,
    }
    node = CommandNode(
        context=context,
        namespace="/here",
        parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()],
    )
    try:
        assert node.trigger_configure() == SUCCESS, node.failure
        heard = {s.topic_name: s.qos_profile.reliability for s in node.subscriptions}
        assert heard["/here/current_pose"] == ReliabilityPolicy.RELIABLE
        assert heard["/here/heartbeat"] == ReliabilityPolicy.BEST_EFFORT
        for _ in range(2):  # also when it is configured again
            depths = {p.topic_name: p.qos_profile.depth for p in node.publishers}
            assert (depths["/here/delta_twist"], depths["/here/gripper"]) == (7, 1)
            assert node.trigger_cleanup() == node.trigger_configure() == SUCCESS
    finally:
        node.trigger_shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
