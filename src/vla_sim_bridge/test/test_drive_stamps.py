"""Tests of commands with invalid stamps: the simulated robot rejects them and keeps running."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TwistStamped

from vla_sim_bridge.ros.controller_emulation import PoseController, TwistController
from vla_sim_bridge.ros.robot_executor import BASE_FRAME, RobotDrive


@pytest.mark.parametrize(
    ("kind", "controller"), [(TwistStamped, TwistController), (PoseStamped, PoseController)]
)
def test_a_command_before_1970_is_rejected_and_the_next_one_is_taken(kind, controller):
    said: list[str] = []
    drive = object.__new__(RobotDrive)  # without a simulation: only what hears commands
    drive.node = SimpleNamespace(callback_refused=lambda where, reason: said.append(reason))
    drive.controller, drive._heard, drive._clock = controller(), False, 10**9
    drive._own_time = True
    hear = drive._on_twist if kind is TwistStamped else drive._on_pose
    for stamp in (Time(sec=-1), Time(nanosec=10**9), Time(sec=1)):
        msg = kind()
        msg.header.stamp, msg.header.frame_id = stamp, BASE_FRAME
        if kind is PoseStamped:
            msg.pose.orientation.w = 1.0
        hear(msg)
    assert drive.controller.heard.rejected == {"no time as stamp": 2}
    assert drive.controller.heard.accepted == 1 and drive._heard
    assert len(said) == 2 and "the stamp of the command is not a valid time" in said[0]
