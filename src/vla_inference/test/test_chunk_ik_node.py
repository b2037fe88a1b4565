"""Tests of the chunk IK node in a real ROS graph."""

from __future__ import annotations

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from graphs import NodeGraph
from rclpy.time import Time as RclpyTime
from sensor_msgs.msg import JointState
from six_axes import HOME, urdf

from vla_inference.control.arm import Arm
from vla_inference.ros import qos
from vla_inference.ros.ik.chunk_node import ChunkIkNode
from vla_inference.ros.messages import chunk_to_msg, msg_to_chunk
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg

STAMP = 100.0  # s, of the image


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("arm") / "six.urdf"
    path.write_text(urdf())
    return path


@pytest.fixture
def graph(path):
    graph = NodeGraph(ChunkIkNode, {"robot": str(path)})
    graph.found = []
    make = graph.client
    graph.joints = make.create_publisher(JointState, "joint_states", 10)
    graph.chunks = make.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
    make.create_subscription(ActionChunkMsg, "joint_action", graph.found.append, qos.CHUNK)
    assert graph.start_node(), graph.node.failure
    graph.until(lambda: graph.joints.get_subscription_count(), "the joints' subscription")
    graph.until(lambda: graph.chunks.get_subscription_count(), "the chunks' subscription")
    graph.until(lambda: graph.node._output.get_subscription_count(), "its own")
    yield graph
    graph.close()


def at(seconds: float) -> Time:
    return RclpyTime(nanoseconds=round(1e9 * seconds)).to_msg()


def tell_joints(graph, positions, stamp: float) -> None:
    """In two messages, as an arm with two drivers tells them."""
    before = len(graph.node._past)
    for part in (slice(0, 4), slice(4, 6)):
        msg = JointState(name=[f"j{i}" for i in range(6)][part])
        msg.position = list(positions)[part]
        msg.header.stamp = at(stamp)
        graph.joints.publish(msg)
    graph.until(lambda: len(graph.node._past) != before, "the joints")


def send(graph, chunk: ActionChunk, stamp: float = STAMP) -> ActionChunkMsg:
    msg = chunk_to_msg(chunk, at(stamp), instruction="go", model="m")
    msg.sequence = 7
    graph.found.clear()
    graph.chunks.publish(msg)
    graph.until(lambda: graph.found, "a chunk")
    return graph.found[0]


def delta(x: float = 0.01) -> ActionChunk:
    actions = np.array([[x, 0, 0, 0, 0, 0, 1.0], [0, x, 0, 0, 0, 0, 0.0]])
    return ActionChunk(actions, eef_delta_spec("rotvec", "base_link", 0.1))


def test_a_chunk_starts_from_the_joints_of_its_image(graph, path):
    for stamp, turned in ((STAMP - 1, 0.5), (STAMP, 0.0), (STAMP + 1, -0.5)):
        tell_joints(graph, HOME + turned, stamp)
    msg = send(graph, delta())
    assert (msg.header.stamp, msg.sequence, msg.instruction, msg.model) == (
        at(STAMP),
        7,
        "go",
        "m",
    )
    chunk, arm = msg_to_chunk(msg), Arm(path, "tool0", "base_link")
    assert [p.kind for p in chunk.spec.parts] == ["joint_position", "gripper"]
    led = arm.pose(chunk.actions[1, :6].astype(float))[:3, 3] - arm.pose(HOME)[:3, 3]
    np.testing.assert_allclose(led, [0.01, 0.01, 0], atol=1e-3)
    np.testing.assert_allclose(chunk.actions[:, 6], [1, 0])


def test_what_cannot_be_converted_goes_on_as_it_is_for_the_command_node_to_stop(graph):
    msg = send(graph, delta())  # no joints are known
    assert [p.kind for p in msg.parts] == ["eef_delta", "gripper"]
    assert "positions are not known" in graph.node._remark
    tell_joints(graph, HOME, STAMP)
    assert send(graph, delta()).parts[0].kind == "joint_position"
    assert not graph.node._remark
    assert send(graph, delta(), STAMP + 3).parts[0].kind == "eef_delta"
    assert "3.00 s from the chunk's image" in graph.node._remark


def test_without_a_description_it_says_which_parameter_to_set():
    graph = NodeGraph(ChunkIkNode, {})
    try:
        assert not graph.start_node()
        assert "'robot' is empty" in graph.node.failure
    finally:
        graph.close()
