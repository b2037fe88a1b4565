"""Outputs that another package brings to the command node and to the IK node, in a real graph.

The package is test/plugins/wave_policy, installed as a dist-info folder beside it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from graphs import NodeGraph
from lifecycle_msgs.msg import Transition
from other_package import install
from sensor_msgs.msg import JointState
from six_axes import HOME, urdf
from std_msgs.msg import Float64, Float64MultiArray
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.command.outputs.base import JOINTS, MOTION, Output
from vla_inference.ros.command.outputs.registry import chosen, output_kinds
from vla_inference.ros.command.parameters import command_configs
from vla_inference.ros.ik.node import IkNode, ik_configs
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.ros.parameters import defaults
from vla_inference.system import plugins
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg


@pytest.fixture
def package(monkeypatch):
    yield from install(monkeypatch)


@pytest.fixture
def graph(package):
    graphs = []

    def make(node, **parameters) -> NodeGraph:
        graphs.append(NodeGraph(node, parameters))
        return graphs[-1]

    yield make
    for g in graphs:
        g.close()


# -- the registry -----------------------------------------------------------------------------


def test_outputs_of_a_package_stand_beside_ours(package):
    motion = {kind.__name__ for kind in output_kinds(MOTION)}
    assert motion >= {"TwistOutput", "PoseOutput", "GripperTopicOutput", "SpeedOutput"}
    joints = {kind.__name__ for kind in output_kinds(JOINTS)}
    assert joints == {"JointTrajectoryOutput", "JointPositionsOutput", "AnglesOutput"}
    assert "publish_speed" in defaults(*command_configs()) and "publish_angles" in defaults(
        *ik_configs()
    )


def test_without_the_package_there_is_neither_output_nor_parameter():
    assert "publish_speed" not in defaults(*command_configs())
    assert "SpeedOutput" not in {kind.__name__ for kind in output_kinds(MOTION)}


def test_no_output_at_all_is_refused_with_what_turns_one_on(package):
    values = {name: False for name in defaults(*command_configs())} | {"gripper_action": ""}
    with pytest.raises(VlaError, match=r"no output is on; set .*publish_speed or publish_twist"):
        chosen(MOTION, values.__getitem__)


def test_an_output_may_not_declare_a_parameter_of_others_its_own_way(monkeypatch):
    @dataclass(frozen=True)
    class Mine:
        command_rate: float = option(5.0, "mine")

    class Greedy(Output):
        CONFIG = Mine

    point = EntryPoint("greedy", "anywhere:Greedy", "vla.controllers")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    monkeypatch.setattr(EntryPoint, "load", lambda self: Greedy)
    with pytest.raises(VlaError, match="Mine declares parameter 'command_rate' another way"):
        defaults(*command_configs())


# -- the nodes --------------------------------------------------------------------------------


def start(g: NodeGraph) -> None:
    assert g.change(Transition.TRANSITION_CONFIGURE), g.node.failure
    assert g.change(Transition.TRANSITION_ACTIVATE), g.node.failure


def chunk(g: NodeGraph, x: float) -> ActionChunkMsg:
    """Twenty steps of x m each."""
    rows = np.tile([x, 0, 0, 0, 0, 0, 1.0], (20, 1))
    stamp = g.client.get_clock().now().to_msg()
    return chunk_to_msg(ActionChunk(rows, eef_delta_spec()), stamp)


def test_the_command_node_sends_through_it(graph):
    alone = {"publish_twist": False, "publish_gripper": False, "publish_speed": True}
    g = graph(CommandNode, **alone, align="arrival", max_period=5.0, stall_timeout=10.0)
    start(g)
    speeds: list[float] = []
    g.client.create_subscription(Float64, "speed", lambda m: speeds.append(m.data), 100)
    actions = g.client.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
    g.until(lambda: actions.get_subscription_count() and g.client.count_publishers("speed"))
    actions.publish(chunk(g, 0.0))
    g.until(lambda: g.node.commander.chunks, "a chunk")
    (output,) = g.node._outputs[""]._all
    assert output.stops > 0 and not speeds
    assert g.call(SetBool, "command/enable", SetBool.Request(data=True)).success
    actions.publish(chunk(g, 0.005))
    g.until(lambda: any(s > 0.05 for s in speeds), "a motion")
    assert max(speeds) <= 0.1 + 1e-9

    other = g.client.create_publisher(Float64, "speed", 1)
    g.until(lambda: g.node.commander.safety.state == "stopped", "a stop")
    assert "1 more publish on" in g.node.commander.safety.last_stop.reason
    g.client.destroy_publisher(other)
    g.until(lambda: speeds[-1] == 0, "a halt")


def test_one_that_fails_stops_the_robot_through_the_others(graph):
    g = graph(
        CommandNode, publish_broken=True, align="arrival", max_period=5.0, stall_timeout=10.0
    )
    start(g)
    twists: list[float] = []
    make, kind = g.client.create_subscription, TwistStamped
    make(kind, "delta_twist", lambda m: twists.append(m.twist.linear.x), 100)
    actions = g.client.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
    g.until(lambda: actions.get_subscription_count() and g.client.count_publishers("delta_twist"))
    actions.publish(chunk(g, 0.005))
    g.until(lambda: g.node.commander.chunks, "a chunk")
    assert g.call(SetBool, "command/enable", SetBool.Request(data=True)).success
    actions.publish(chunk(g, 0.005))
    g.until(lambda: g.node.commander.safety.state == "stopped", "a stop")
    stop = g.node.commander.safety.last_stop
    assert stop.kind == "node_fault" and "the cable is out" in stop.reason
    g.until(lambda: len(twists) > 1, "the halt")
    assert twists[-1] == 0


def test_a_wrong_parameter_of_it_is_told_as_one_of_ours(graph):
    g = graph(CommandNode, publish_sped=True)
    assert not g.change(Transition.TRANSITION_CONFIGURE)
    assert "did you mean publish_speed instead of publish_sped" in g.node.failure


def test_the_ik_node_sends_through_it_as_well(graph, tmp_path):
    (tmp_path / "arm.urdf").write_text(urdf())
    g = graph(IkNode, robot=str(tmp_path / "arm.urdf"), publish_angles=True)
    start(g)
    angles: list[list[float]] = []
    g.client.create_subscription(
        Float64MultiArray, "angles", lambda m: angles.append(list(m.data)), 100
    )
    joints = g.client.create_publisher(JointState, "joint_states", 10)
    twists = g.client.create_publisher(TwistStamped, "delta_twist", 1)

    def talk() -> None:
        now = g.client.get_clock().now().to_msg()
        state = JointState(name=[f"j{i}" for i in range(6)], position=HOME.tolist())
        twist = TwistStamped()
        state.header.stamp = twist.header.stamp = now
        twist.header.frame_id, twist.twist.linear.y = "base_link", 0.05
        joints.publish(state)
        twists.publish(twist)

    timer = g.client.create_timer(0.02, talk)
    g.until(lambda: len(angles) > 5, "joint positions")
    g.client.destroy_timer(timer)
    assert len(angles[-1]) == 6 and 0 < math.dist(angles[-1], HOME) < 0.5
