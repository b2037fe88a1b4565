"""Tests of the gripper action client: goals on change, cancelled by a stop.

With control_msgs against a real action server; without, against a stand-in of rclpy's client.
"""

from __future__ import annotations

import sys
import time
import types

import pytest
import rclpy
from geometry_msgs.msg import TwistStamped
from graphs import domain
from rclpy.parameter import Parameter
from rclpy.task import Future
from rclpy.time import Time
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.command.outputs import gripper_action
from vla_inference.ros.command.outputs.gripper_action import (
    PARALLEL,
    PLAIN,
    GripperAction,
    action_type,
)
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.action import RunJob
from vla_msgs.msg import ActionChunk as ActionChunkMsg


class Goal:
    def __init__(self):
        self.command = types.SimpleNamespace()


class Handle:
    def __init__(self, accepted: bool):
        self.accepted, self.cancelled, self.result = accepted, 0, Future()

    def get_result_async(self) -> Future:
        return self.result

    def cancel_goal_async(self) -> None:
        self.cancelled += 1


class Client:
    """rclpy's ActionClient, whose server is there and answers on request."""

    def __init__(self, node, kind, name):
        self.ready, self.goals = True, []

    def server_is_ready(self) -> bool:
        return self.ready

    def send_goal_async(self, goal) -> Future:
        self.goals.append((goal, Future()))
        return self.goals[-1][1]

    def answer(self, index: int, accepted: bool = True) -> Handle:
        handle, future = Handle(accepted), self.goals[index][1]
        future.set_result(handle)
        return handle


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("control_msgs")
    module.action = types.ModuleType("control_msgs.action")
    for name in (PARALLEL, PLAIN):
        setattr(module.action, name, types.SimpleNamespace(Goal=Goal))
    monkeypatch.setitem(sys.modules, "control_msgs", module)
    monkeypatch.setitem(sys.modules, "control_msgs.action", module.action)
    monkeypatch.setattr(gripper_action, "ActionClient", Client)
    return module


def test_goals_as_both_actions_have_them(stand_in):
    parallel = GripperAction(None, "grip", PARALLEL, "finger", 20.0).goal(0.04)
    assert vars(parallel.command) == {"name": ["finger"], "position": [0.04], "effort": [20.0]}
    plain = GripperAction(None, "grip", PLAIN, "", 20.0).goal(0.04)
    assert vars(plain.command) == {"position": 0.04, "max_effort": 20.0}
    assert not hasattr(GripperAction(None, "g", PARALLEL, "f", 0.0).goal(0.0).command, "effort")


def test_a_stop_cancels_what_is_under_way_and_what_is_still_being_accepted(stand_in):
    g = GripperAction(None, "grip", PLAIN, "", 0.0)
    g.move(0.0)
    first = g.client.answer(0)
    g.stop(), g.stop()
    assert first.cancelled == 1
    g.move(0.04)
    g.stop()
    assert g.client.answer(1).cancelled == 1
    g.move(0.0)
    done = g.client.answer(2)
    done.result.set_result(None)
    g.stop()
    assert done.cancelled == 0 and g.sent == 3


def test_a_newer_goal_is_left_to_preempt_the_older(stand_in):
    g = GripperAction(None, "grip", PLAIN, "", 0.0)
    g.move(0.0), g.move(0.04)
    older, newer = g.client.answer(0), g.client.answer(1)
    assert (older.cancelled, newer.cancelled) == (0, 0)
    g.stop()  # a server that does not preempt has both
    assert (older.cancelled, newer.cancelled) == (1, 1)


def test_who_does_not_take_a_goal_is_named(stand_in):
    g = GripperAction(None, "grip", PLAIN, "", 0.0)
    g.move(0.0)
    g.client.answer(0, accepted=False)
    assert "rejected" in g.remark and g.rejected == 1
    g.client.ready = False
    g.move(0.04)
    assert "no server" in g.remark and g.sent == 1


def test_what_cannot_be_is_refused(stand_in, monkeypatch):
    with pytest.raises(VlaError, match="gripper_joint is empty"):
        GripperAction(None, "grip", PARALLEL, "", 0.0)
    with pytest.raises(VlaError, match="unknown gripper_action_type"):
        action_type("Grip")
    del stand_in.action.ParallelGripperCommand
    with pytest.raises(VlaError, match="has no ParallelGripperCommand"):
        action_type(PARALLEL)
    monkeypatch.setitem(sys.modules, "control_msgs", None)
    monkeypatch.delitem(sys.modules, "control_msgs.action")
    with pytest.raises(VlaError, match="control_msgs cannot be imported"):
        action_type(PLAIN)


@pytest.mark.parametrize("kind", [PARALLEL, PLAIN])
def test_a_real_server_hears_changes_and_a_stop(kind, monkeypatch):
    actions = pytest.importorskip("control_msgs.action", reason="control_msgs isn't installed")
    from rclpy.action import ActionClient, ActionServer, CancelResponse
    from rclpy.callback_groups import ReentrantCallbackGroup
    from rclpy.executors import MultiThreadedExecutor

    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(80))
    robot = rclpy.create_node("robot", context=context)
    heard, cancelled, open_until = [], [], time.monotonic() + 20

    def grip(goal):
        command = goal.request.command
        heard.append(list(command.position) if kind == PARALLEL else [command.position])
        result = getattr(actions, kind).Result()
        while not goal.is_cancel_requested and time.monotonic() < open_until:
            time.sleep(0.01)
        cancelled.append(heard[-1])
        goal.canceled()
        return result

    ActionServer(
        robot,
        getattr(actions, kind),
        "/grip",
        grip,
        callback_group=ReentrantCallbackGroup(),
        cancel_callback=lambda _: CancelResponse.ACCEPT,
    )
    values = {
        "gripper_action": "/grip",
        "gripper_action_type": kind,
        "gripper_joint": "finger",
        "gripper_open": 0.04,
        "align": "arrival",
        "max_period": 5.0,
        "stall_timeout": 10.0,
        "publish_gripper": False,
    }
    node = CommandNode(
        context=context, parameter_overrides=[Parameter(k, value=x) for k, x in values.items()]
    )
    executor = MultiThreadedExecutor(4, context=context)
    for n in (robot, node):
        executor.add_node(n)
    chunks = robot.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
    twists = []
    robot.create_subscription(TwistStamped, "delta_twist", twists.append, 10)

    def until(condition) -> None:
        while not condition():
            assert time.monotonic() < open_until, node._remarks()
            executor.spin_once(timeout_sec=0.02)

    def say(gripper: float) -> None:
        stamp = Time(seconds=1e-9 * robot.get_clock().now().nanoseconds).to_msg()
        steps = [[0.001, 0, 0, 0, 0, 0, gripper]] * 4
        chunks.publish(chunk_to_msg(ActionChunk(steps, eef_delta_spec()), stamp))

    try:
        assert node.start(), node.failure
        until(chunks.get_subscription_count)
        say(0.5)
        until(lambda: node._enable(SetBool.Request(data=True), SetBool.Response()).success)
        say(1.0)
        until(lambda: heard == [[0.04]])
        say(0.9)  # nothing new
        until(lambda: node.commander.chunks == 3)
        told = len(twists)
        until(lambda: len(twists) > told + 1)
        assert heard == [[0.04]] and not cancelled
        assert node._others() == ""
        rival = ActionClient(robot, getattr(actions, kind), "/grip")
        if hasattr(node, "count_clients"):
            until(lambda: "1 more clients of the action /grip" in node._others())
        rival.destroy()
        until(lambda: node._others() == "")
        node._enable(SetBool.Request(data=False), SetBool.Response())
        until(lambda: cancelled == [[0.04]])
    finally:
        open_until = 0.0
        executor.shutdown()
        node.trigger_shutdown()
        node.destroy_node()
        robot.destroy_node()
        rclpy.shutdown(context=context)


def test_a_second_client_of_the_action_is_counted(monkeypatch):
    """With an action of our own: control_msgs may not be there."""
    from rclpy.action import ActionClient

    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setattr(gripper_action, "action_type", lambda kind: RunJob)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(81))
    node, other = (rclpy.create_node(n, context=context, namespace="/arm") for n in ("a", "b"))
    if not hasattr(node, "count_clients"):
        pytest.skip("Humble's nodes cannot count clients")
    try:
        gripper = GripperAction(node, "grip", PLAIN, "", 0.0)
        assert gripper.others() == 0
        rival = ActionClient(other, RunJob, "grip")
        end = time.monotonic() + 20
        while gripper.others() != 1:
            assert time.monotonic() < end
            time.sleep(0.02)
        rival.destroy()
        while gripper.others():
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        for n in (node, other):
            n.destroy_node()
        rclpy.shutdown(context=context)
