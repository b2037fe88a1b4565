"""Tests of the hand-over between model and person: the rules of `Takeover`, and its fuzz."""

from __future__ import annotations

import numpy as np
import pytest
from command_bench import Bench, forward
from takeover_fuzz import ROBOTS, fuzz_hand_overs

from vla_inference.control import (
    HUMAN,
    MODEL,
    STOPPED,
    RobotCommander,
    SafetyLimits,
    Settings,
    Takeover,
    Watchdogs,
)
from vla_inference.control import vectors as v
from vla_inference.control.axis import AxisLimits
from vla_inference.control.commands import Pose
from vla_inference.control.parts.eef import EefPart
from vla_inference.control.parts.gripper import GripperPart
from vla_inference.control.parts.joints import JointPart, JointSettings
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec, eef_part, gripper_part, joint_part


def by_person(b: Bench, chunk: ActionChunk, age: float = 0.001) -> bool:
    return b.commander.accept(chunk, b.now - age, b.now, b.steady, HUMAN)


def take_over(b: Bench, by_hand: bool = True) -> None:
    b.commander.take_over(by_hand, b.now, b.steady)


@pytest.mark.parametrize("robot", ROBOTS)
def test_random_hand_overs_break_no_rule(robot):
    found, taken = fuzz_hand_overs(robot, 40, seed=5)
    assert not taken.wrong and not found.wrong
    assert taken.hand_overs >= 40 and taken.moved_by_hand > 100


def backward(steps: int = 4, **more) -> ActionChunk:
    return forward(steps, x=-0.01, **more)


def test_a_person_takes_over_and_gives_back():
    b = Bench(align="arrival")
    b.accept(forward(20))
    b.tick(), b.tick()
    take_over(b)
    assert not by_person(b, backward(), age=0.1)  # it was read before
    assert by_person(b, backward(), age=0.0)
    assert [b.tick().linear[0] for _ in range(3)] == pytest.approx([-0.2] * 3, rel=1e-5)
    assert not b.accept(forward(8)) and b.tick().linear[0] < 0  # the model's is checked alone
    take_over(b, False)
    told = [b.tick() for _ in range(4)]
    assert all(c.live and not c.moves for c in told)
    before = b.commander.takeover.since
    assert not b.commander.accept(forward(8), before, b.now, b.steady)
    assert b.tick().live and b.commander.takeover.waits
    assert b.accept(forward(8)) and b.tick().linear[0] == pytest.approx(0.2, rel=1e-5)
    assert not b.commander.takeover.holds


def test_the_hand_over_is_gentle_and_the_gripper_stays():
    b = Bench(limits=SafetyLimits(), align="arrival")
    b.accept(forward(20, gripper=0.0))
    speeds = [b.tick().linear[0] for _ in range(10)]
    take_over(b)
    for _ in range(10):
        by_person(b, backward(gripper=0.5), age=0.0)
        command = b.tick()
        speeds.append(command.linear[0])
        assert command.gripper is None
    assert speeds[9] == pytest.approx(0.2, rel=1e-5) == pytest.approx(-speeds[-1], rel=1e-5)
    acceleration = np.diff(speeds) / 0.05
    assert abs(acceleration).max() <= 2.5 and abs(np.diff(acceleration)).max() / 0.05 <= 50 + 1e-6


def test_a_silent_person_halts_the_robot_and_may_go_on():
    b = Bench(align="arrival")
    take_over(b)
    assert by_person(b, backward(100), age=0.0)  # far longer than it may be followed
    told = [b.tick() for _ in range(20)]
    moves = [c.moves for c in told]
    assert moves == [True] * 5 + [False] * 15 and b.state == "enabled"
    takeover = b.commander.takeover
    assert takeover.silences == 1 and not takeover.heard
    assert by_person(b, backward(), age=0.0) and b.tick().moves and takeover.silences == 1


def test_the_model_is_not_missed_while_a_person_commands_and_has_its_time_afterwards():
    b = Bench(align="arrival")
    take_over(b)
    assert all(b.tick().live for _ in range(40)) and b.state == "enabled"
    take_over(b, False)
    for _ in range(19):
        assert b.tick().live and b.state == "enabled"
    b.tick(), b.tick()
    assert b.state == STOPPED and b.stop.kind == "inference_stall"


def test_whose_broken_chunks_stop_the_robot():
    b = Bench(align="arrival")
    broken = forward(2, x=float("nan"))
    assert not by_person(b, broken) and b.state == "enabled"
    take_over(b)
    assert not b.accept(broken) and b.state == "enabled"
    assert not by_person(b, broken) and b.state == STOPPED
    assert "human_action: step 0 contains" in b.commander.safety.last_refusal
    assert b.commander.safety.refusals["bad_chunk"] == 3


def test_old_input_is_refused_and_the_range_of_training_is_the_models():
    b = Bench(align="arrival")
    take_over(b)
    b.tick(passed=0.4)
    for age, word in ((0.3, "old"), (-0.3, "in the future")):
        assert not by_person(b, forward(), age=age)
        assert f"0.30 s {word}" in b.commander.safety.last_refusal
    assert b.state == "enabled" and b.commander.safety.refusals["input_age"] == 2


def test_it_is_enabled_by_hand_without_a_model():
    b = Bench(enable=False)
    take_over(b)
    assert b.commander.enable(b.steady) == ""
    assert b.tick().live and not b.tick().moves
    assert by_person(b, forward(4), age=0.0) and b.tick().moves
    take_over(b, False)
    b.commander.disable()
    for _ in range(30):
        b.tick()
    assert "no usable chunk" in b.commander.enable(b.steady)


def test_watchdogs_of_the_robot_stop_a_person_as_well():
    for fault, kind in (
        ({"others": "1 more publish on /human_action"}, "second_publisher"),
        ({"passed": 0.6}, "late"),
    ):
        b = Bench(align="arrival")
        take_over(b)
        by_person(b, forward(8), age=0.0)
        b.tick()
        b.tick(**fault)
        assert b.state == STOPPED and b.stop.kind == kind
        assert b.commander.takeover.source == HUMAN  # who commands is never decided by a fault
    b = Bench(enable=False, align="arrival", watchdogs=Watchdogs(heartbeat=0.3))
    b.commander.safety.heartbeat(b.steady)
    take_over(b)
    assert b.commander.enable(b.steady) == ""
    while b.state == "enabled":
        b.tick()
    assert b.stop.kind == "heartbeat"


def test_a_person_may_use_other_axes_than_the_model_where_the_tools_turn_is_known():
    turn = v.from_rotation_vector((0.0, 0.0, np.pi / 2))
    b = Bench(align="arrival", enable=False)
    for _ in range(3):
        b.measure((0.0, 0.0, 0.0), turn=turn)
    b.accept(forward(20, frame="tool"))
    assert b.commander.enable(b.steady) == ""
    b.accept(forward(20, frame="tool"), age=-0.01)
    assert b.tick().linear[0] == pytest.approx(0.2, rel=1e-5) and b.commander.in_tool
    take_over(b)
    assert by_person(b, forward(4), age=0.0)
    # What was along x of the tool is along y of the base.
    assert b.commander.arm._linear.velocity == pytest.approx((0.0, 0.2, 0.0), abs=1e-5)
    assert b.tick().linear[0] == pytest.approx(0.2, rel=1e-5) and not b.commander.in_tool


def test_joints_take_another_kind_from_a_person_and_what_is_left_out_holds():
    s = Settings(rate=50.0, align="arrival")
    limits = JointSettings(("a", "b"), (AxisLimits(-2, 2, 1.0, 10.0, 200.0),) * 2, (0.3,) * 2)

    def parts(safety):
        return [JointPart("arm", s, limits, safety), GripperPart("gripper", s, safety)]

    c, now, q = RobotCommander(s, parts), 100.0, np.zeros(2)

    def tick():
        nonlocal now, q
        now += 0.02
        c.parts["arm"].measured(["a", "b"], q.tolist(), now, now, now)
        command = c.tick(now, now).get("arm")
        q = np.array(command.positions) if command is not None else q
        return command

    def send(kind: str, row: list[float], source: str, hand: bool = True) -> bool:
        some = (joint_part("arm", "ab", kind), *([gripper_part()] if hand else []))
        rows = np.tile([*row, *([1.0] if hand else [])], (4, 1))
        return c.accept(ActionChunk(rows, ActionSpec(some, 0.1)), now, now, now, source)

    for _ in range(10):
        tick()
    assert send("joint_position", [0.5, 0.5], MODEL)
    assert c.enable(now) == ""
    tick()
    assert send("joint_position", [0.5, 0.5], MODEL)
    for _ in range(10):
        tick()
    c.take_over(True, now, now)
    assert send("joint_velocity", [-0.3, 0.0], HUMAN, hand=False)
    assert not send("joint_position", [0.5, 0.5], MODEL)
    told = [tick() for _ in range(12)]
    assert told[-1].velocities == pytest.approx((-0.3, 0.0)) and c.safety.enabled
    told = [tick() for _ in range(30)]  # silence
    assert told[-1].velocities == (0.0, 0.0) and c.takeover.silences == 1
    assert not c.accept(forward(2), now, now, now, HUMAN)
    assert "arm is eef_delta in the chunk" in c.safety.last_refusal
    assert c.safety.state == STOPPED


@pytest.mark.parametrize("kinds", [("eef_pose", "eef_delta"), ("eef_delta", "eef_pose")])
def test_poses_and_deltas_take_over_from_each_other(kinds):
    s = Settings(rate=50.0, align="arrival", needs_pose=True, drift=(0.0, 0.3))
    c = RobotCommander(s, lambda safety: [EefPart("arm", s, safety)])
    now, pose, told = 10.0, Pose((0.4, 0.1, 0.2)), []
    rows = {"eef_pose": [0.6, 0.1, 0.2, 0, 0, 0], "eef_delta": [0.0, 0.008, 0, 0, 0, 0]}

    def send(by_hand: bool) -> bool:
        part = eef_part("arm", kinds[by_hand])
        chunk = ActionChunk([rows[kinds[by_hand]]] * 5, ActionSpec((part,), 0.05))
        return c.accept(chunk, now, now, now, HUMAN if by_hand else MODEL)

    for k in range(130):
        now += 0.02
        sagged = Pose((*pose.position[:2], pose.position[2] - 1e-4))
        c.parts["arm"].measured(sagged, now, now, now)
        if k in (8, 12):
            assert send(False)
        if k == 9:
            assert c.enable(now) == ""
        if k == 20:
            c.take_over(True, now, now)
        if k in (30, 38):
            assert send(True)
        command = c.tick(now, now).get("arm")
        if command is not None and command.live:
            told.append(command)
            pose = command.target
    speeds = np.array([command.linear for command in told])
    assert np.linalg.norm(np.diff(speeds, axis=0), axis=1).max() <= 2.5 * 0.02 + 1e-9
    along = {"eef_pose": 0, "eef_delta": 1}
    first, second = (speeds[:, along[kind]] for kind in kinds)
    assert first.max() > 0.1 and second.max() > 0.1
    begun = np.flatnonzero((second > 1e-6) & (np.arange(len(second)) > 15))[0]
    assert not speeds[begun - 1].any() and first[begun:].max() < 1e-3  # a pose leads back
    # It is silent in the end, and held where it stands though it sags.
    ends = [command.target for command in told[-30:]]
    assert len(set(ends)) == 1 and not speeds[-30:].any() and c.safety.enabled


def test_who_commands_is_told_anew_where_the_clock_stands_or_goes_back():
    takeover = Takeover()
    takeover.hand_over(HUMAN, 100.05)
    takeover.begins(100.05)
    assert takeover.changes == 1
    takeover.begins(99.0)
    assert (takeover.changes, takeover.since, takeover.source) == (2, 99.0, HUMAN)


def test_a_dead_mans_switch_cannot_be_switched_off():
    with pytest.raises(VlaError, match="human_timeout is 0 s"):
        Settings(human_timeout=0)
