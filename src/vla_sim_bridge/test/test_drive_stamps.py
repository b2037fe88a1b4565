"""Tests of commands with invalid stamps: the simulated robot rejects them and keeps running."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped

from vla_sim_bridge.ros.robot.robot_inputs import BASE_FRAME, CartesianInput


@pytest.mark.parametrize(("kind", "name"), [(TwistStamped, "twist"), (PoseStamped, "pose")])
def test_a_command_before_1970_is_rejected_and_the_next_one_is_taken(kind, name):
    said: list[str] = []
    taken: list[int | None] = []
    node = SimpleNamespace(
        callback_refused=lambda where, reason: said.append(reason),
        create_publisher=lambda *given: None,
    )
    drive = SimpleNamespace(node=node, now=lambda: 10**9, commanded=taken.append)
    robot = CartesianInput(drive, name)
    hear = robot._on_twist if kind is TwistStamped else robot._on_pose
    for stamp in (Time(sec=-1), Time(nanosec=10**9), Time(sec=1)):
        msg = kind()
        msg.header.stamp, msg.header.frame_id = stamp, BASE_FRAME
        if kind is PoseStamped:
            msg.pose.orientation.w = 1.0
        hear(msg)
    assert robot.heard.rejected == {"no time as stamp": 2}
    assert robot.heard.accepted == 1 and taken == [10**9]
    assert len(said) == 2 and "the stamp of the command is not a valid time" in said[0]
