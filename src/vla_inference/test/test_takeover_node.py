"""A person takes over from a model in a real ROS graph: commands, statuses and `~/source`."""

from __future__ import annotations

import math

import pytest
from builtin_interfaces.msg import Time as TimeMsg
from geometry_msgs.msg import TwistStamped
from graphs import NodeGraph
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool

from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import CommandSource, CommandStatus

AHEAD, BACK = 0.004, -0.002  # m a step: the model's, the person's


class Graph(NodeGraph):
    """A command node between a model and a person, both of whom send all the time if they are
    `sending`, and a controller."""

    def __init__(self, **parameters):
        # A busy machine may hold up a person's input; what that leads to is tested in the core.
        more = {"max_period": 5.0, "stall_timeout": 5.0, "human_timeout": 2.0}
        more |= {"align": "arrival", "max_image_age": 5.0}
        super().__init__(CommandNode, {**more, **parameters})
        self.status, self.sources = CommandStatus(), []
        self.twists: list[tuple[float, float]] = []  # stamp, m/s
        self.sending = {"action": True, "human_action": True}
        make = self.client.create_subscription
        make(CommandStatus, "command/status", self._keep, qos.LATCHED)
        make(CommandSource, "command/source", self.sources.append, qos.HISTORY)
        make(TwistStamped, "delta_twist", self._twist, 100)
        names = ("command/enable", "command/take_over")
        self.clients = {name: self.client.create_client(SetBool, name) for name in names}
        self.out = {t: self.client.create_publisher(ActionChunkMsg, t, 10) for t in self.sending}
        assert self.start_node(), self.node.failure
        for topic, publisher in self.out.items():
            self.until(publisher.get_subscription_count, "the node's subscription")
            self.until(lambda t=topic: self.client.count_publishers(t), "discovery")
        for client in self.clients.values():
            assert client.wait_for_service(self.patience)
        self.client.create_timer(0.05, self._send)

    def _keep(self, status: CommandStatus) -> None:
        self.status = status

    def said(self) -> CommandStatus:
        return self.status

    def _twist(self, msg: TwistStamped) -> None:
        stamp = 1e-9 * Time.from_msg(msg.header.stamp).nanoseconds
        self.twists.append((stamp, msg.twist.linear.x))

    def _send(self) -> None:
        for topic, on in self.sending.items():
            if on:
                self.send(topic, AHEAD if topic == "action" else BACK)

    def send(self, topic: str, x: float, broken: bool = False) -> None:
        chunk = ActionChunk([[x, 0, 0, 0, 0, 0, 0.5]] * 40, eef_delta_spec(dt=0.05))
        msg = chunk_to_msg(chunk, self.time())
        if broken:
            msg.actions[0] = math.nan
        self.out[topic].publish(msg)

    def time(self) -> TimeMsg:
        return self.client.get_clock().now().to_msg()

    def ask(self, name: str, on: bool) -> str:
        future = self.clients[f"command/{name}"].call_async(SetBool.Request(data=on))
        self.until(future.done, f"an answer to {name}")
        assert future.result().success == (not future.result().message)
        return future.result().message

    def until_moves(self, speed: float) -> None:
        self.until(lambda: self.twists and abs(self.twists[-1][1] - speed) < 1e-4, f"{speed} m/s")


class LockStep(Graph):
    """The same with a clock that a simulation moves on by one period after each command."""

    def __init__(self):
        super().__init__(use_sim_time=True, lock_step=True, human_timeout=0.25, stall_timeout=0.5)
        self.sending = {"action": False, "human_action": False}
        self.ticks = 2000  # periods of 0.05 s
        self.clock = self.client.create_publisher(Clock, "/clock", 10)
        self.until(self._on_time, "the node's clock")

    def _on_time(self) -> bool:
        self.clock.publish(Clock(clock=self.time()))
        return self.node.commander._last_now is not None

    def time(self) -> TimeMsg:
        return Time(nanoseconds=50_000_000 * self.ticks).to_msg()

    def input(self) -> None:
        """A person's, taken once this returns."""
        takeover = self.node.commander.takeover
        takeover._heard = None
        self.send("human_action", BACK)
        self.until(lambda: takeover.heard, "the input")

    def step(self) -> float | None:
        """A period; returns the speed that is commanded."""
        self.ticks += 1
        now = 0.05 * self.ticks

        def answered() -> bool:
            self.clock.publish(Clock(clock=self.time()))
            return bool(self.twists) and abs(self.twists[-1][0] - now) < 1e-3

        self.until(answered, f"a command at {now:.2f} s")
        return self.twists[-1][1]


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    graphs = []

    def make(kind: type[Graph]) -> Graph:
        graphs.append(kind())
        return graphs[-1]

    yield make
    for g in graphs:
        g.close()


@pytest.fixture
def graph(make):
    return make(Graph)


def test_model_person_model(graph):
    g = graph
    g.until(lambda: g.status.chunks, "a chunk")
    assert g.ask("enable", True) == ""
    g.until_moves(AHEAD / 0.05)
    assert g.status.source == CommandSource.MODEL
    assert g.ask("take_over", True) == "" == g.ask("take_over", True)
    g.until_moves(BACK / 0.05)
    g.until(lambda: g.status.message == "a person commands the robot", "the status")
    assert g.status.source == CommandSource.HUMAN and g.status.silences == 0

    g.sending["human_action"] = False
    g.until_moves(0.0)
    g.until(lambda: g.status.silences == 1 and "dead-man" in g.status.message, "a silence")
    before = len(g.twists)
    g.until(lambda: len(g.twists) > before + 5, "commands that go on")

    g.sending["action"] = False
    assert g.ask("take_over", False) == ""
    g.until(lambda: "given back" in g.status.message, "the status")
    before = len(g.twists)
    g.until(lambda: len(g.twists) > before + 5, "commands that go on")
    assert not any(x for _, x in g.twists[before:]) and g.status.state == "enabled"
    g.sending["action"] = True
    g.until_moves(AHEAD / 0.05)
    assert g.status.source == CommandSource.MODEL and g.status.state == "enabled"

    told = [(m.sequence, m.source) for m in g.sources]
    assert told == [(0, "model"), (1, "human"), (2, "model")]
    stamps = [1e-9 * Time.from_msg(m.header.stamp).nanoseconds for m in g.sources]
    assert stamps == sorted(stamps)
    by_hand = [x for t, x in g.twists if stamps[1] + 1.0 < t < stamps[2]]
    assert max(by_hand, default=0.0) <= 0.0
    late: list[CommandSource] = []  # who listens late hears it all
    g.client.create_subscription(CommandSource, "command/source", late.append, qos.HISTORY)
    g.until(lambda: len(late) == 3, "what was told before")
    assert late == g.sources


def test_a_second_person_a_broken_chunk_and_an_inactive_node(graph):
    g = graph
    second = g.client.create_publisher(ActionChunkMsg, "human_action", 10)
    g.until(lambda: g.node.count_publishers(g.node.resolve_topic_name("human_action")) == 2, "it")
    assert "1 more publish on" in g.ask("take_over", True)
    g.client.destroy_publisher(second)
    g.until(lambda: g.ask("take_over", True) == "", "leave to take over")
    assert g.ask("enable", True) == ""
    g.until_moves(BACK / 0.05)
    g.send("human_action", BACK, broken=True)
    g.until(lambda: g.status.state == "stopped", "a stop")
    assert g.status.stop_kind == "bad_chunk" and "human_action" in g.status.last_refusal
    assert g.status.source == "human"
    g.node.trigger_deactivate()
    assert "not active" in g.ask("take_over", False)
    g.node.trigger_activate()
    g.until(lambda: g.status.source == "model", "the model")
    g.until(lambda: len(g.sources) == 3, "what is told")
    assert [(m.sequence, m.source) for m in g.sources][-1] == (2, "model")


def test_in_lock_step_a_command_comes_in_each_period_whoever_commands(make):
    g = make(LockStep)
    assert g.ask("take_over", True) == "" == g.ask("enable", True)
    told = []
    for period in range(20):
        if period < 8:
            g.input()
        told.append(g.step())
    assert min(told) == pytest.approx(BACK / 0.05, rel=1e-3) and max(told) == 0.0
    assert told[8:12] == pytest.approx([BACK / 0.05] * 4, rel=1e-3) and not any(told[-4:])
    assert g.ask("take_over", False) == ""
    assert [g.step() for _ in range(5)] == [0.0] * 5
    chunks = g.node.commander.chunks
    g.send("action", AHEAD)
    g.until(lambda: g.node.commander.chunks > chunks, "the chunk")
    assert [g.step() for _ in range(10)][-1] == pytest.approx(AHEAD / 0.05, rel=1e-3)
    assert g.node.commander.safety.enabled
