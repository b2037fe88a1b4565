"""Tests of a simulation that people enable, with a command node in place of the real one."""

from __future__ import annotations

import time

import pytest
import rclpy
from graphs import domain
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import SetBool

from vla_inference.ros.qos import LATCHED
from vla_msgs.msg import CommandStatus
from vla_sim_bridge.ros.auto_enable import ByHand


@pytest.fixture
def graph():
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain())
    found = Graph(rclpy.create_node("hand", context=context), context)
    yield found
    found.executor.shutdown()
    found.node.destroy_node()
    rclpy.shutdown(context=context)


class Graph:
    def __init__(self, node, context):
        self.node, self.asked = node, []
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(node)
        self.status = node.create_publisher(CommandStatus, "command/status", LATCHED)
        node.create_service(SetBool, "command/enable", self._enable)
        self.hand = ByHand(node, timeout=0.0)

    def _enable(self, request, response):
        self.asked.append(request.data)
        self.tell("enabled" if request.data else "disabled")
        response.success = True
        return response

    def tell(self, state):
        self.status.publish(CommandStatus(state=state))

    def until(self, condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            self.executor.spin_once(timeout_sec=0.05)


def test_the_robot_may_move_while_the_command_node_is_enabled(graph):
    graph.hand.begin()
    assert not graph.hand.poll(seen=True)
    graph.tell("enabled")
    graph.until(lambda: graph.hand.poll(seen=True))
    assert not graph.hand.poll(seen=False)  # the model has not seen this scene yet
    for state in ("disabled", "stopped"):
        graph.tell("enabled")
        graph.until(lambda: graph.hand.poll(seen=True))
        graph.tell(state)
        graph.until(lambda: not graph.hand.poll(seen=True))
    assert graph.asked == []  # nobody enables for them


def test_a_new_episode_disables_what_was_enabled(graph):
    graph.tell("enabled")
    graph.until(lambda: graph.hand.poll(seen=True))
    graph.until(graph.hand._client.service_is_ready)
    graph.hand.begin()
    graph.until(lambda: graph.asked == [False])
    graph.until(lambda: not graph.hand.poll(seen=True))
