"""Tests of the callback guard: a callback that raises is logged and counted, the node runs on."""

from __future__ import annotations

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from graphs import NodeGraph
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float64, String
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros.lifecycle import ManagedNode
from vla_inference.ros.stamps import stamp_ns, stamp_seconds


class Probe(ManagedNode):
    """Fails at negative numbers, refuses 0, in each kind of callback."""

    TASK = "probe"

    def __init__(self, **kwargs):
        super().__init__("probe", **kwargs)
        self.heard: list[float] = []
        self.failed: list[str] = []
        self.ticks = 0
        self.create_subscription(Float64, "number", lambda m: self.take(m.data), 10)
        self.create_service(SetBool, "~/set", self.set)
        self.create_timer(0.02, self.tick)

    def take(self, number: float) -> None:
        if number == 0:
            raise VlaError("0 is no number here", "give another")
        if number < 0:
            raise KeyError("negative")
        self.heard.append(number)

    def set(self, request, response):
        self.take(-1.0 if request.data else 1.0)
        response.success = True
        return response

    def tick(self) -> None:
        self.ticks += 1
        raise OverflowError("always")

    def callback_failed(self, where: str, reason: str) -> None:
        self.failed.append(where)
        raise RuntimeError("nor does this one end it")


@pytest.fixture
def graph():
    g = NodeGraph(Probe, {"use_sim_time": False})
    yield g
    g.close()


def test_a_callback_that_raises_is_counted_and_the_next_message_is_heard(graph, capfd):
    g = graph
    numbers = g.client.create_publisher(Float64, "number", 10)
    reports: list = []
    g.client.create_subscription(DiagnosticArray, "/diagnostics", reports.append, 10)
    g.until(lambda: numbers.get_subscription_count(), "a subscription")
    for value in (-1.0, 0.0, -2.0, 7.0):
        numbers.publish(Float64(data=value))
    g.until(lambda: g.node.heard == [7.0], "the good one")
    assert g.node.faults["number"] == 2 and g.node.refused["number"] == 1
    g.until(lambda: g.node.ticks > 10, "the timer")
    assert g.node.faults["timer tick"] >= 10
    assert {"number", "timer tick"} <= set(g.node.failed)

    answer = g.call(SetBool, "probe/set", SetBool.Request(data=True))
    assert not answer.success and "unexpected KeyError in ~/set" in answer.message
    assert g.call(SetBool, "probe/set", SetBool.Request(data=False)).success

    def told() -> dict:
        ours = [s for r in reports for s in r.status if s.name.endswith("probe: probe")]
        return {v.key: v.value for v in ours[-1].values} if ours else {}

    g.until(lambda: told().get("faults in number") == "2", "diagnostics")
    assert told()["refused on number"] == "1"
    said = capfd.readouterr().err
    assert said.count("unexpected OverflowError in timer tick") == 1  # not once a period
    assert said.count("unexpected KeyError in number") == 1
    assert said.count("refused: 0 is no number here; give another") == 1


def test_a_clock_before_1970_does_not_end_a_node_that_goes_by_it():
    g = NodeGraph(Probe, {"use_sim_time": True})
    try:
        clock = g.client.create_publisher(Clock, "/clock", 10)
        g.until(lambda: clock.get_subscription_count(), "a subscription")
        clock.publish(Clock(clock=Time(sec=-1)))
        g.until(lambda: g.node.faults["/clock"] == 1, "the bad one")
        clock.publish(Clock(clock=Time(sec=5)))
        g.until(lambda: g.node.get_clock().now().nanoseconds == 5 * 10**9, "the good one")
    finally:
        g.close()


def test_a_stamp_that_is_no_time_is_refused_by_name():
    assert stamp_ns(Time(sec=1, nanosec=5)) == 10**9 + 5
    assert stamp_seconds(Time(sec=2, nanosec=5 * 10**8)) == 2.5
    assert stamp_ns(Time()) == 0  # no stamp: the caller decides
    for bad in (Time(sec=-1), Time(sec=-(2**31)), Time(nanosec=10**9), Time(nanosec=2**32 - 1)):
        with pytest.raises(
            VlaError, match=r"the stamp of image is not a valid time .*; set header.stamp"
        ):
            stamp_ns(bad, "image")


def test_a_string_message_keeps_its_meaning_through_the_guard(graph):
    """rclpy looks at a callback's arguments: one that takes the message's info gets it."""
    heard = []
    graph.node.create_subscription(String, "words", lambda m, info: heard.append((m, info)), 10)
    words = graph.client.create_publisher(String, "words", 10)
    graph.until(lambda: words.get_subscription_count(), "a subscription")
    words.publish(String(data="so"))
    graph.until(lambda: heard, "the word")
    assert heard[0][0].data == "so" and "source_timestamp" in heard[0][1]


@pytest.mark.parametrize("locked", [False, True])
def test_a_locked_node_lets_nobody_change_its_parameters(locked):
    """Review m16: a path set by somebody else is code that the node loads."""
    g = NodeGraph(Probe, {"locked": locked, "use_sim_time": False})
    try:
        g.node.declare_parameter("engine", "plain")
        request = SetParameters.Request()
        request.parameters = [Parameter("engine", value="tvm:/tmp/x").to_parameter_msg()]
        (result,) = g.call(SetParameters, "probe/set_parameters", request).results
        assert result.successful is not locked and ("locked:=true" in result.reason) is locked
        assert g.node.get_parameter("engine").value == ("plain" if locked else "tvm:/tmp/x")
        assert g.start_node(), g.node.failure
    finally:
        g.close()


def test_a_node_that_lives_in_another_process_refuses_what_it_does_not_have_too():
    g = NodeGraph(Probe, {"spead": 1.0})
    try:
        assert not g.start_node()
        assert "has no parameter 'spead'; it has" in g.node.failure
    finally:
        g.close()
