"""Tests of the teleoperation node with a command node in a real ROS graph: devices, hand-over."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from graphs import NodeGraph, domain
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool
from typist import Typist

from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.ros.teleop import inputs
from vla_inference.ros.teleop.node import TeleopNode
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import CommandSource, CommandStatus

# A busy machine must not stop the robot: the watchdogs have tests of their own.
CALM = {"max_period": 5.0, "stall_timeout": 30.0, "max_image_age": 30.0, "human_timeout": 2.0}
REST = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
GRIPPER, SWITCH, GIVE, TAKE = 0, 4, 6, 7


class Graph(NodeGraph):
    """The node, a command node of this robot, and who publishes for their devices.

    kind: of a process in the place of the node; None: `vla teleop` runs elsewhere.
    """

    def __init__(self, robot=None, node=TeleopNode, **teleop):
        super().__init__(node, teleop)
        where = {"context": self.context, "namespace": self.node.get_namespace()}
        overrides = {**CALM, **(robot or {})}
        self.command = CommandNode(
            parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()], **where
        )
        self.executor.add_node(self.command)
        self.chunks: list[ActionChunkMsg] = []
        self.twists: list[tuple[float, ...]] = []
        self.positions: list[list[float]] = []
        self.sources: list[str] = []
        self.status = CommandStatus()
        hear = self.client.create_subscription
        hear(ActionChunkMsg, "human_action", self.chunks.append, qos.CHUNK)
        hear(TwistStamped, "delta_twist", self._twist, 100)
        hear(Float64MultiArray, "arm/joint_positions", self._positions, 100)
        hear(CommandSource, "command/source", lambda m: self.sources.append(m.source), qos.HISTORY)
        hear(CommandStatus, "command/status", self._keep, qos.LATCHED)
        self.actions = self.client.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
        assert self.command.start(), self.command.failure
        self.until(lambda: self.sources == ["model"], "who commands")

    def _keep(self, status):
        self.status = status

    def _twist(self, msg):
        self.twists.append(tuple(getattr(msg.twist.linear, axis) for axis in "xyz"))

    def _positions(self, msg):
        self.positions.append(list(msg.data))

    def said(self):
        return self.node.failure, self.node.diagnose(), self.status

    def close(self):
        self.executor.remove_node(self.command)
        self.command.trigger_shutdown()
        self.command.destroy_node()
        super().close()

    def steer(self, publisher, msg):
        """Publishes a device's message again and again, as drivers do, until it is closed."""
        timer = self.client.create_timer(0.03, lambda: publisher.publish(msg))
        return lambda: self.client.destroy_timer(timer)

    def enable(self, on=True):
        request = SetBool.Request(data=on)
        self.until(lambda: self.call(SetBool, "command/enable", request).success, "leave to move")

    def model(self, gripper=0.0):
        """A chunk of the model's that stands still."""
        rows = np.tile([0, 0, 0, 0, 0, 0, gripper], (100, 1))
        chunk = ActionChunk(rows, eef_delta_spec("rotvec", "base", 0.05))
        now = self.client.get_clock().now().to_msg()
        self.actions.publish(chunk_to_msg(chunk, now, frame_id="base_link"))

    def halted(self):
        """Waits for the chunk of no motion, and that none follows; returns it."""
        self.until(lambda: self.chunks and not np.any(steps(self.chunks[-1])[:, :6]), "a halt")
        count = len(self.chunks)
        self.idle(0.3)
        assert len(self.chunks) == count
        return self.chunks[-1]


def steps(msg):
    return np.array(msg.actions).reshape(-1, sum(len(p.dims) for p in msg.parts))


class Pad:
    """A gamepad that says every 30 ms how it is held."""

    def __init__(self, graph):
        self._publisher = graph.client.create_publisher(Joy, "joy", 10)
        self.axes, self.buttons = list(REST), [0] * 11
        graph.until(self._publisher.get_subscription_count, "the node's subscription")
        self._timer = graph.client.create_timer(0.03, self._say)
        self._client = graph.client

    def _say(self):
        self._publisher.publish(Joy(axes=self.axes, buttons=self.buttons))

    def hold(self, forward=0.0):
        self.axes = [0.0, forward, *REST[2:]]
        self.buttons = [int(i == SWITCH) for i in range(11)]

    def let_go(self):
        self.axes, self.buttons = list(REST), [0] * 11

    def press(self, button):
        self.buttons = list(self.buttons)
        self.buttons[button] = 1

    def silence(self):
        self._client.destroy_timer(self._timer)


@pytest.fixture(scope="module")
def graph():
    found = Graph(device="gamepad", linear_speed=0.08)
    assert found.start_node(), found.node.failure
    found.until(lambda: found.node._human.hands, "the robot's parts")
    yield found
    found.close()


@pytest.fixture
def pad(graph):
    """A gamepad at rest, and the model in charge; disabled at the end."""
    found = Pad(graph)
    graph.idle(0.2)
    graph.chunks.clear()
    graph.twists.clear()
    yield found
    found.silence()
    graph.call(SetBool, "command/enable", SetBool.Request(data=False))
    graph.call(SetBool, "command/take_over", SetBool.Request(data=False))


def test_a_person_takes_over_moves_the_robot_and_gives_it_back(graph, pad):
    before = len(graph.sources)
    graph.model(gripper=1.0)
    graph.until(lambda: graph.status.chunks, "a chunk")
    graph.enable()
    pad.hold(1.0)
    pad.press(TAKE)
    graph.until(lambda: graph.sources[before:] == ["human"], "the person to command")
    graph.until(lambda: graph.twists and max(x for x, *_ in graph.twists) > 0.07, "motion")
    assert max(x for x, *_ in graph.twists) <= 0.08 + 1e-6
    chunk = graph.chunks[-1]
    assert chunk.model == "gamepad" and chunk.parts[0].frame_id == "base"
    assert steps(chunk)[0, 6] == 1.0  # as the model had it
    pad.press(GRIPPER)
    graph.until(lambda: steps(graph.chunks[-1])[0, 6] == 0.0, "the gripper")
    pad.let_go()
    graph.halted()
    graph.until(lambda: not any(graph.twists[-1]), "a standstill")
    pad.press(GIVE)
    graph.until(lambda: graph.sources[before:] == ["human", "model"], "the model to command")
    assert graph.status.state == "enabled"


def test_a_speed_beyond_the_command_nodes_is_its_own(graph, pad):
    limits = graph.node._human.hands
    assert limits.speeds == (0.08, 0.5)
    pad.hold(1.0)
    graph.until(lambda: graph.chunks, "a chunk")
    row = steps(graph.chunks[-1])[0]
    assert row[0] == pytest.approx(0.08 * graph.chunks[-1].dt) and not np.any(row[1:6])
    stamps = [c.header.stamp.sec + 1e-9 * c.header.stamp.nanosec for c in graph.chunks]
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize("fault", ["nan", "short", "silence", "other"])
def test_a_device_that_fails_halts_the_robot_once_and_is_named(graph, pad, fault):
    pad.hold(1.0)
    graph.until(lambda: len(graph.chunks) > 3, "chunks")
    words = ""
    if fault == "nan":
        pad.axes, words = [0.0, math.nan, *REST[2:]], "axis 1 is nan"
    elif fault == "short":
        pad.axes, words = [0.0, 1.0], "there is no axis 4, it has 2"
    elif fault == "other":
        pad.buttons, words = [0, 0], "there is no button 4"
    else:
        pad.silence()
    graph.halted()
    if words:
        assert words in graph.node.diagnose()[1]
    pad.hold(1.0)  # it is not let go: that counts as held no more
    count = len(graph.chunks)
    graph.idle(0.3)
    assert len(graph.chunks) == count


def test_the_switch_alone_holds_the_robot_still(graph, pad):
    pad.hold(0.0)
    graph.until(lambda: len(graph.chunks) > 3, "chunks")
    assert not np.any([steps(c)[:, :6] for c in graph.chunks])


# -- other devices ----------------------------------------------------------------------------


@pytest.fixture
def make_graph():
    made = []

    def make(**more):
        made.append(Graph(**more))
        assert made[-1].start_node(), made[-1].node.failure
        made[-1].until(lambda: made[-1].node._human.hands, "the robot's parts")
        return made[-1]

    yield make
    for graph in made:
        graph.close()


def test_twists_are_taken_in_their_frame(make_graph):
    graph = make_graph(device="twist")
    twists = graph.client.create_publisher(TwistStamped, "human_twist", 10)
    msg = TwistStamped()
    msg.header.frame_id, msg.twist.linear.y = "map", 0.05
    stop = graph.steer(twists, msg)
    graph.until(lambda: "in frame 'map'" in graph.node.diagnose()[1], "a refusal")
    assert not graph.chunks
    msg.header.frame_id = "tool0"
    graph.until(lambda: graph.chunks, "a chunk")
    row, dt = steps(graph.chunks[-1])[0], graph.chunks[-1].dt
    assert row[:3] / dt == pytest.approx([0, 0.05, 0], abs=1e-6)
    assert graph.chunks[-1].parts[0].frame_id == "tool"
    stop()
    graph.halted()


def test_a_device_that_is_absent_is_named(make_graph):
    graph = make_graph(device="spacemouse")
    graph.until(lambda: "spacenav/joy" in graph.node.diagnose()[1], "a problem")
    mouse = graph.client.create_publisher(Joy, "spacenav/joy", 10)
    stop = graph.steer(mouse, Joy(axes=[0.0] * 6, buttons=[0, 0]))
    graph.until(lambda: graph.node.diagnose()[1] == "active", "no problem")
    stop()
    assert not graph.chunks


def test_a_command_node_that_comes_up_again_is_asked_for_its_robot_again(make_graph):
    graph = make_graph(device="twist")
    hands = graph.node._human.hands
    graph.executor.remove_node(graph.command)
    graph.command.trigger_shutdown()
    graph.command.destroy_node()
    where = {"context": graph.context, "namespace": graph.node.get_namespace()}
    slow = [Parameter("max_linear_velocity", value=0.02)]
    graph.command = CommandNode(parameter_overrides=slow, **where)
    graph.executor.add_node(graph.command)
    assert graph.command.start()
    graph.until(lambda: graph.node._human.hands not in (None, hands), "another robot")
    assert graph.node._human.hands.speeds[0] == 0.02


LEADER = """
joints: {a: la, b: {joint: lb, scale: -1}}
pedal: {deadman: {button: 0}}
"""
JOINTS = {
    "parts": ["arm"],
    "arm.output": "joint_positions",
    "arm.joints": ["a", "b"],
    "arm.lower_limits": [-2.0],
    "arm.upper_limits": [2.0],
}


class Keys:
    """What stands in for a terminal: the space bar, held or not, and what else is typed."""

    held, typed = False, ""

    def read(self):
        text, Keys.typed = " " * Keys.held + Keys.typed, ""
        return text

    def close(self):
        pass


@pytest.mark.parametrize("switch", ["joy", "key"])
def test_a_follower_is_refused_a_far_leader_and_follows_a_near_one(
    make_graph, tmp_path, monkeypatch, switch
):
    monkeypatch.setattr(inputs, "Terminal", Keys)
    (tmp_path / "leader.yaml").write_text(LEADER)
    mapping = str(tmp_path / "leader.yaml")
    graph = make_graph(robot=JOINTS, device="leader", mapping=mapping, switch=switch)
    if switch == "key":  # also while the leader is silent
        Keys.typed = "t"
        graph.until(lambda: graph.sources[-1] == "human", "the person to command")
    make = graph.client.create_publisher
    leader, pedal = make(JointState, "leader/joint_states", 10), make(Joy, "joy", 10)
    follower = make(JointState, "arm/joint_states", 10)
    led, foot = JointState(name=["la", "lb"], position=[0.6, 0.0]), Joy(buttons=[0])
    here = JointState(name=["a", "b"], position=[0.0, 0.0])

    def tell():
        here.header.stamp = graph.client.get_clock().now().to_msg()
        if graph.positions:
            here.position = graph.positions[-1]
        for publisher, msg in ((leader, led), (pedal, foot), (follower, here)):
            publisher.publish(msg)

    graph.client.create_timer(0.03, tell)
    graph.until(lambda: len(graph.node._human.here) == 2, "where the follower is")
    graph.idle(0.3)
    foot.buttons, Keys.held = [1], True
    graph.until(lambda: "by +0.60 at a" in graph.node.diagnose()[1], "a refusal")
    assert not graph.chunks
    led.position = [0.05, 0.02]
    graph.until(lambda: graph.chunks, "a chunk")
    request = SetBool.Request(data=True)
    assert graph.call(SetBool, "command/take_over", request).success
    graph.enable()
    led.position = [0.5, 0.3]
    close = [0.5, -0.3]
    graph.until(
        lambda: graph.positions and np.allclose(graph.positions[-1], close, atol=0.01), "the arm"
    )
    foot.buttons, Keys.held = [0], False
    graph.idle(0.3)
    count = len(graph.chunks)
    led.position = [1.0, 1.0]
    graph.idle(0.3)
    assert len(graph.chunks) == count
    assert np.allclose(graph.positions[-1], close, atol=0.05)  # it stays where it was measured


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gamepad", "mapping": "spacemouse"}, "give its mapping a deadman button"),
        ({"device": "leader"}, "needs a mapping"),
        ({"device": "gamepad", "mapping": "nothing"}, "no mapping nothing"),
        ({"device": "keyboard"}, "there is no terminal"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_at_the_start(settings, words, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    graph = NodeGraph(TeleopNode, settings)
    try:
        assert not graph.start_node()
        assert words in graph.node.failure
    finally:
        graph.close()


# -- the keyboard -----------------------------------------------------------------------------


def test_a_held_key_moves_the_robot_for_as_long_as_it_repeats():
    graph = Graph(device="twist")  # which is not started
    typist = Typist(domain(), "--namespace", graph.node.get_namespace(), "--silence", "0.5")
    try:
        typing = graph.client.create_timer(0.05, lambda: typist.type("w"))
        graph.until(lambda: graph.chunks, "a chunk of the keyboard")
        assert graph.chunks[-1].model == "keyboard"
        typist.type("t")
        graph.until(lambda: graph.sources[-1] == "human", "the person to command")
        graph.enable()
        graph.until(lambda: graph.twists and graph.twists[-1][0] > 0.09, "motion")
        assert max(x for x, *_ in graph.twists) <= 0.1 + 1e-6
        graph.client.destroy_timer(typing)
        graph.halted()
        graph.until(lambda: not any(graph.twists[-1]), "a standstill")
        typist.type("gb")
        graph.until(lambda: graph.sources[-1] == "model", "the model to command")
        graph.until(lambda: steps(graph.chunks[-1])[0, 6] == 1.0, "the gripper")
        said = typist.end()
        assert typist.process.returncode == 0 and typist.restored, said
        assert re.search("w \\+x; .*t take over; b give back", said)
        assert said.index("you command") < said.rindex("the model commands")
    finally:
        typist.close()
        graph.close()


def test_the_terminal_is_restored_when_the_process_is_told_to_end():
    typist = Typist(domain())
    try:
        end = time.monotonic() + 60
        while typist.restored and time.monotonic() < end:
            time.sleep(0.05)
        typist.process.send_signal(signal.SIGTERM)
        typist.process.communicate(timeout=30)
        assert typist.restored
    finally:
        typist.close()
