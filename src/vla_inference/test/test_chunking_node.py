"""Real-time chunking in a real ROS graph: what the model is told of the chunk that is executed."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from analytic_flow import SPEC, AnalyticFlow
from geometry_msgs.msg import TwistStamped
from graphs import IMAGE, InferenceGraph
from lifecycle_msgs.msg import Transition
from model_server import StubPolicy
from part_robot import Robot
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from vla_inference.policies.chunking import Continuation, rest_of
from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.inference.node import InferenceNode
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.ros.stamps import stamp_seconds
from vla_inference.serving import model_thread
from vla_inference.types import ActionPart, ActionSpec, DimSpec
from vla_msgs.msg import ActionChunk, CommandStatus

DT = SPEC.dt


class ChunkingGraph(InferenceGraph):
    """An inference node with an analytic flow, and what a command node tells of itself."""

    def __init__(self, policy, start: bool = True, **parameters):
        self.policy = policy
        given = {"model": "analytic", "instruction": "go", "chunking": "rtc", "num_threads": 1}
        super().__init__({**given, "max_image_age": 0.0, **parameters}, start)
        self._command = self.client.create_publisher(CommandStatus, "command/status", qos.LATCHED)
        self.stops = 0

    def tell(self, state: str, refused: int = 0, source: str = "model") -> None:
        """The command node's status, which is heard when this returns."""
        self.stops += state == CommandStatus.STOPPED
        msg = CommandStatus(state=state, refused=refused, source=source, nominal_rate=20.0)
        msg.header.stamp = self.client.get_clock().now().to_msg()
        msg.stop_kinds, msg.stop_counts = ["stall"], [self.stops]
        on = state == CommandStatus.ENABLED and source == "model"
        wanted = on, self.stops, refused
        self._command.publish(msg)
        self.until(lambda: self.node._executed._status == wanted, "the command node's status")

    def enabled(self) -> ChunkingGraph:
        self.meet()
        self.tell(CommandStatus.ENABLED)
        return self

    def ask(self) -> tuple[ActionChunk, Continuation | None]:
        """The answer to an image of now, and what it was to go on from."""
        before = len(self.policy.asked)
        answer = self.answer(self.frame())
        (after,) = self.policy.asked[before:]
        return answer, after


@pytest.fixture
def graph(monkeypatch):
    graphs = []

    def make(policy=None, **more) -> ChunkingGraph:
        policy = policy or AnalyticFlow()
        monkeypatch.setattr(model_thread, "load_policy", lambda *_: policy)
        graphs.append(ChunkingGraph(policy, **more))
        return graphs[-1]

    yield make
    for g in graphs:
        g.close()


def steps_taken(answers: list[ActionChunk]) -> int:
    """The delay that the last ten answers tell, in steps."""
    longest = max(stamp_seconds(a.produced) - stamp_seconds(a.header.stamp) for a in answers[-10:])
    return math.ceil(longest / DT - 1e-6)


def test_the_rest_of_the_executed_chunk_is_passed_with_the_measured_delay(graph):
    g = graph(AnalyticFlow(chunk=200))
    g.policy.waits = [0.12]
    g.enabled()
    first, after = g.ask()
    assert after is None  # no chunk has been executed yet
    g.policy.waits = [0.3, 0.02, 0.2, 0.05]
    answers, old = [first], first
    for _ in range(5):
        answer, after = g.ask()
        passed = (stamp_seconds(answer.header.stamp) - stamp_seconds(old.header.stamp)) / DT
        wanted = rest_of(msg_to_chunk(old), passed)
        np.testing.assert_allclose(after.previous, wanted, atol=1e-5)
        assert after.delay >= steps_taken(answers)
        answers, old = [*answers, answer], answer
    assert after.delay >= 0.3 / DT  # the longest counts on


def test_a_delay_that_was_long_is_forgotten_after_ten_answers(graph):
    g = graph(AnalyticFlow(chunk=400)).enabled()
    g.policy.waits = [1.0, 0.0]
    answers = [g.ask()[0] for _ in range(11)]
    _, after = g.ask()
    assert after.delay == steps_taken(answers)
    assert steps_taken(answers) < 20 <= steps_taken(answers[:5])


def test_new_chunks_keep_to_what_is_executed_meanwhile(graph):
    g = graph(AnalyticFlow(chunk=200)).enabled()
    g.policy.waits = [0.2]
    old, _ = g.ask()
    for _ in range(3):
        new, after = g.ask()
        took = stamp_seconds(new.produced) - stamp_seconds(new.header.stamp)
        meanwhile = min(after.delay, math.ceil(took / DT))
        rows = msg_to_chunk(new).actions
        assert np.abs(rows[:meanwhile] - after.previous[:meanwhile]).max() < 0.3
    assert old.sequence < new.sequence


def test_what_ends_before_the_answer_comes_is_passed_as_far_as_it_goes(graph):
    g = graph(AnalyticFlow(chunk=6)).enabled()
    g.policy.waits = [0.5, 0.0]
    g.ask()
    time.sleep(6 * DT)
    assert g.ask()[1] is None  # by now nothing of it is left
    _, after = g.ask()
    if after is not None:  # the images may be more than a chunk apart on a busy machine
        assert len(after.previous) <= 6 < after.delay


@pytest.mark.parametrize("state", [CommandStatus.STOPPED, CommandStatus.DISABLED])
def test_after_a_stop_a_chunk_begins_anew(graph, state):
    g = graph(AnalyticFlow(chunk=400)).enabled()
    g.ask()
    assert g.ask()[1] is not None
    g.tell(state)
    assert [g.ask()[1] for _ in range(2)] == [None, None]
    g.tell(CommandStatus.ENABLED)
    assert g.ask()[1] is None
    assert g.ask()[1] is not None
    g.tell(CommandStatus.ENABLED, refused=1)  # the last chunk may be the one that was refused
    assert g.ask()[1] is None


def test_while_a_person_commands_nothing_is_executed_nor_what_was_seen_before(graph):
    g = graph(AnalyticFlow(chunk=400)).enabled()
    g.ask()
    assert g.ask()[1] is not None
    g.tell(CommandStatus.ENABLED, source="human")
    assert [g.ask()[1] for _ in range(2)] == [None, None]
    seen = g.frame()
    g.tell(CommandStatus.ENABLED)
    g.answer(seen)  # the command node takes none of it
    time.sleep(0.15)
    assert g.ask()[1] is None
    assert g.ask()[1] is not None


def test_a_stop_between_two_reports_is_noticed(graph):
    g = graph(AnalyticFlow(chunk=400)).enabled()
    g.ask()
    assert g.ask()[1] is not None
    g.stops += 1
    g.tell(CommandStatus.ENABLED)
    assert g.ask()[1] is None


def test_another_instruction_begins_anew(graph):
    g = graph(AnalyticFlow(chunk=400)).enabled()
    g.ask()
    assert g.ask()[1] is not None
    assert g.instruct("come back").success
    assert g.ask()[1] is None
    assert g.ask()[1] is not None


def test_another_activation_begins_anew(graph):
    g = graph(AnalyticFlow(chunk=400)).enabled()
    g.ask()
    assert g.ask()[1] is not None
    assert g.change(Transition.TRANSITION_DEACTIVATE)
    assert g.change(Transition.TRANSITION_ACTIVATE)
    assert g.ask()[1] is None
    assert g.ask()[1] is not None


def test_a_model_that_takes_none_is_refused_by_name(graph):
    g = graph(StubPolicy(), start=False)
    assert not g.change(Transition.TRANSITION_CONFIGURE)
    assert "model stub takes no chunking 'rtc'; leave it empty" in g.node.failure


def test_without_a_command_node_the_status_says_that_it_has_no_effect(graph):
    g = graph()
    g.client.destroy_publisher(g._command)
    g.meet()
    g.until(lambda: "chunking has no effect: no command node" in g.status.message, "the remark")
    assert g.policy.asked and not any(g.policy.asked)


def test_a_real_command_node_tells_what_is_executed(monkeypatch):
    dims = DimSpec("x", "m/s"), DimSpec("rz", "rad/s")
    spec = ActionSpec((ActionPart("base", "base_twist", dims, "base"),), DT)
    policy = AnalyticFlow(chunk=400, spec=spec)
    monkeypatch.setattr(model_thread, "load_policy", lambda *_: policy)
    parts = {"base": {"output": "base_twist_stamped"}}
    g = Robot(parts, {"base/cmd_vel": TwistStamped}, align="stamp")
    g.client.destroy_publisher(g.actions)  # the model's are the only ones
    overrides = {"model": "analytic", "instruction": "go", "chunking": "rtc", "num_threads": 1}
    overrides |= {"max_same_image": 0.0, "max_image_age": 0.0}
    given = [Parameter(k, value=v) for k, v in overrides.items()]
    where = {"context": g.context, "namespace": g.node.get_namespace()}
    node = InferenceNode(parameter_overrides=given, **where)
    executor = SingleThreadedExecutor(context=g.context)
    executor.add_node(node)
    images = g.client.create_publisher(Image, "image", qos.IMAGE_OUTPUT)

    def pump(condition, what: str) -> None:
        """Sends images until something has come true."""

        def step() -> bool:
            stamp = g.client.get_clock().now().to_msg()
            images.publish(rgb_to_image(IMAGE, stamp, "camera"))
            executor.spin_once(timeout_sec=0.1)
            return condition()

        g.until(step, what)

    def enable(on: bool) -> None:
        reached = "enabled" if on else "disabled"
        pump(lambda: not g.enable(on) and g.status.state == reached, reached)

    try:
        assert node.start(), node.failure
        pump(lambda: g.status.chunks > 1, "chunks")
        assert not any(policy.asked)  # of a dry run nothing is executed
        enable(True)
        pump(lambda: policy.asked[-1] is not None, "a chunk that goes on from another")
        enable(False)
        pump(lambda: policy.asked[-1] is None, "a chunk that begins anew")
    finally:
        node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        g.close()


def test_without_the_option_every_chunk_is_on_its_own(graph):
    g = graph(chunking="")
    g.meet()
    g._command.publish(CommandStatus(state=CommandStatus.ENABLED))
    assert [g.ask()[1] for _ in range(3)] == [None] * 3
    assert "chunking" not in g.status.message
