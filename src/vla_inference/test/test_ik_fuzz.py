"""Fuzz test of the IK path with false joint states: no step exceeds the velocity limits."""

from __future__ import annotations

import random

import numpy as np
import pytest
from ik_fuzz import LIES, SLACK, IkFindings, IkTrial, ik_fuzz
from six_axes import urdf

from vla_inference.control.arm import Arm
from vla_inference.control.ik import JointCommander
from vla_inference.control.joint_states import JointStates


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    path = tmp_path_factory.mktemp("arm") / "six.urdf"
    path.write_text(urdf())
    return Arm(path, "tool0", "base_link")


def test_whatever_it_is_told_of_its_joints_the_arm_keeps_to_its_velocities(arm):
    found = ik_fuzz(arm, 4000, seed=5)
    assert not found.wrong
    assert set(found.lies) == set(LIES) and found.fastest <= SLACK
    # It was tried: it moved at the limit, was silenced by lies and moved by hand meanwhile.
    assert found.commands > 1000 and found.fastest > 0.95 and found.moved_by_hand
    assert found.refusals["joints_jump"] and found.refusals["joints_age"]
    assert {"joint states jump", "no joint states that tell of all joints"} <= set(found.silences)


def test_an_arm_that_a_hand_moved_unseen_is_faster_by_that_way_alone(arm):
    """A hand moved it after the last true joint states and before the first command."""
    found = IkFindings()
    IkTrial(arm, random.Random("424243 126000"), found).run(1500)
    assert not found.wrong and found.moved_by_hand


def for_ever(self, position, quaternion, steady, age=0.0):
    self._told = np.inf
    self._target = self.pose() if self.joints is not None else np.eye(4)
    return True


@pytest.mark.parametrize(
    ("where", "method", "broken", "seen"),
    [
        (JointStates, "_implausible", lambda *_: "", "joint_speed"),
        (
            JointStates,
            "trouble",
            lambda self, _: "" if self.positions is not None else "no",
            "not_believable",
        ),
        (JointCommander, "_bounded", lambda self, step, _: (step, set()), "command_step"),
        (JointCommander, "target", for_ever, "after_the_command"),
    ],
)
def test_a_commander_without_one_of_its_bounds_is_found_out(
    arm, monkeypatch, where, method, broken, seen
):
    monkeypatch.setattr(where, method, broken)
    assert ik_fuzz(arm, 4000, seed=5).wrong[seen]
