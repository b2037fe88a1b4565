"""Tests of joints whose commands say what follows: a plan that is kept, and within all limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_inference.control import RobotCommander, Settings, Watchdogs
from vla_inference.control.axis import AxisLimits
from vla_inference.control.parts.joints import JointSettings, JointTargets
from vla_inference.control.parts.planned_joints import PlannedJointPart
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec, joint_part

NAMES = ("a", "b")
LIMITS = AxisLimits(-2.0, 2.0, 1.0, 10.0, 200.0)
PERIOD = 0.02
KINDS = ("joint_position", "joint_delta", "joint_velocity")


class Arm:
    """A planned arm at 50 Hz that is where it was told to be, `held` joints excepted."""

    def __init__(self, kind: str = "joint_position", horizon: float = 1.0, drift: float = 0.3):
        self.joints = JointSettings(NAMES, (LIMITS,) * 2, (drift,) * 2)
        watchdogs = Watchdogs(stall=0.0, image_age=0.0)
        self.settings = Settings(rate=1 / PERIOD, align="arrival", watchdogs=watchdogs)
        self.commander = RobotCommander(
            self.settings,
            lambda s: [PlannedJointPart("arm", self.settings, self.joints, s, horizon)],
        )
        self.part = self.commander.parts["arm"]
        self.spec = ActionSpec((joint_part("arm", NAMES, kind),), 0.1)
        self.now, self.steady = 1000.0, 50.0
        self.q, self.held = np.zeros(2), False
        for _ in range(5):
            self.period()
        self.send([[0.0, 0.0]] * 2)
        assert self.commander.enable(self.steady) == ""
        for _ in range(20):
            self.period()

    def send(self, rows) -> bool:
        self.now, self.steady = self.now + 1e-3, self.steady + 1e-3  # no image answers twice
        chunk = ActionChunk(np.array(rows, float), self.spec)
        return self.commander.accept(chunk, self.now, self.now, self.steady)

    def period(self, passed: float = PERIOD) -> JointTargets | None:
        """The live command of a period that comes so long [s] after the last."""
        self.now, self.steady = self.now + passed, self.steady + passed
        self.part.measured(list(NAMES), list(self.q), self.now, self.now, self.steady)
        command = self.commander.tick(self.now, self.steady).get("arm")
        if command is None or not command.live:
            return None
        if not self.held:
            self.q = np.array(command.positions)
        return command

    def motion(self) -> list[JointTargets]:
        """The commands until there are no more."""
        told = []
        while (command := self.period()) is not None:
            told.append(command)
        return told


def test_another_scale_is_another_velocity_limit():
    arm = Arm()
    arm.commander.disable()
    arm.motion()
    arm.commander.rescale(0.1)
    arm.send([[0.5, 0.0]] * 20)
    assert arm.commander.enable(arm.steady) == ""
    arm.send([[0.5, 0.0]] * 20)
    places = np.array([command.positions for command in arm.motion()])
    fastest = np.abs(np.diff(places, axis=0)).max() / PERIOD
    assert fastest == pytest.approx(0.1 * LIMITS.velocity, rel=1e-3)


def way(command: JointTargets) -> np.ndarray:
    """All that a command says [n, joints]."""
    return np.array([command.positions, *(command.ahead or ())])


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_said_first_is_what_is_commanded(kind):
    arm = Arm(kind)
    row = [0.05, -0.02] if kind != "joint_velocity" else [0.5, -0.2]
    arm.send(np.cumsum([row] * 5, 0) if kind == "joint_position" else [row] * 5)
    told = arm.motion()
    first = way(told[0])
    assert len(first) > 20 and not any(command.moves for command in told[len(first) :])
    np.testing.assert_array_equal(first, [c.positions for c in told[: len(first)]])
    for k, command in enumerate(told[: len(first)]):
        np.testing.assert_array_equal(way(command), first[k:])


def test_a_new_chunk_changes_what_is_ahead_at_once():
    arm = Arm()
    arm.send([[0.5, 0.0]] * 10)
    before = arm.period()
    arm.send([[-0.5, 0.0]] * 10)
    after = arm.period()
    assert way(before)[-1][0] == pytest.approx(0.5)
    assert way(after)[-1][0] == pytest.approx(-0.5)


def test_a_hand_over_changes_what_is_ahead_at_once():
    arm = Arm()
    arm.send([[0.5, 0.0]] * 10)
    before = [arm.period() for _ in range(15)][-1]
    arm.commander.take_over(True, arm.now, arm.steady)
    told = [arm.period() for _ in range(40)]
    assert way(before)[-1][0] == pytest.approx(0.5)
    places = np.array([before.positions, *way(told[0])])[:, 0]
    np.testing.assert_allclose([c.positions[0] for c in told[: len(places) - 1]], places[1:])
    speeds = np.diff(places, prepend=before.positions[0] - before.velocities[0] * PERIOD) / PERIOD
    assert np.abs(np.diff(speeds)).max() / PERIOD <= 10 * (1 + 1e-6)
    assert len(places) < 15 and abs(speeds[-1]) < 0.02
    # It is held where it stands, with nothing more to come.
    assert told[-1].ahead == () and told[-1].positions == told[-5].positions


def test_a_long_chunk_is_planned_on_before_the_plan_brakes():
    arm = Arm("joint_velocity", horizon=0.5)
    arm.send([[0.5, 0.0]] * 20)  # 2 s
    told = arm.motion()
    steady = [c for c in told if c.velocities[0] == pytest.approx(0.5)]
    assert len(steady) > 80
    speeds = [np.diff(way(c)[:, 0])[: len(way(c)) // 3] / PERIOD for c in steady[:-25]]
    # What is said next never brakes while the chunk goes on.
    assert all(speed[:5] == pytest.approx(0.5) for speed in speeds)
    most = max(len(way(c)) for c in told)
    assert most * PERIOD < 0.5 + 0.3  # the horizon, and the braking


def test_periods_that_did_not_take_place_were_executed_all_the_same():
    arm = Arm("joint_velocity")
    arm.send([[0.5, 0.0]] * 20)
    for _ in range(20):
        command = arm.period()
    ahead = way(command)
    late = arm.period(10 * PERIOD)
    # Nine periods were missed; it goes on where the plan had got to.
    assert late.positions[0] == pytest.approx(ahead[10][0], abs=0.02)
    assert late.velocities[0] == pytest.approx(0.5)


def test_a_joint_that_is_held_up_is_not_left_behind():
    arm = Arm()
    arm.held = True
    arm.send([[1.5, 0.0]] * 15)
    told = [command for _ in range(60) if (command := arm.period()) is not None]
    assert told[0].ahead and way(told[0])[-1][0] > 0.8
    waiting = [way(c)[:, 0].max() for c in told[45:]]
    assert waiting and max(waiting) <= 0.3 + 0.01
    assert arm.commander.safety.enabled


def test_a_stop_says_nothing_of_what_follows():
    arm = Arm()
    arm.send([[1.0, 0.0]] * 15)
    arm.period()
    arm.commander.safety.stop("node_fault", "test", arm.now)
    halt = arm.period()
    assert halt.ahead is None and not halt.moves
    arm.commander.enable(arm.steady)
    arm.send([[0.1, 0.0]] * 5)
    assert len(way(arm.period())) > 2


def test_commands_that_start_from_the_measured_joint_cannot_be_planned():
    with pytest.raises(VlaError, match="max_drift is 0"):
        Arm(drift=0.0)


steps = st.lists(
    st.lists(st.floats(-3, 3), min_size=2, max_size=2), min_size=1, max_size=12
).flatmap(lambda rows: st.tuples(st.just(rows), st.integers(1, 25)))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.lists(steps, min_size=1, max_size=4), st.floats(0.1, 1.5))
def test_every_way_holds_all_limits_and_ends_at_rest(kind, chunks, horizon):
    """From the two commands before on, whatever is executed of which plan."""
    arm = Arm(kind, horizon)
    before = [arm.q, arm.q]
    for rows, periods in chunks:
        arm.send(rows)
        for _ in range(periods):
            command = arm.period()
            if command is None:
                break
            line = np.array([*before, *way(command)])
            speed = np.diff(line, axis=0) / PERIOD
            change = np.diff(speed, axis=0) / PERIOD
            assert np.abs(line).max() <= 2.0 + 1e-9
            assert np.abs(speed).max() <= LIMITS.velocity + 1e-6
            assert np.abs(change).max() <= LIMITS.acceleration + 1e-6
            if command.ahead:
                assert np.abs(speed[-1]).max() * PERIOD <= LIMITS.jerk * PERIOD**3 + 1e-9
            before = [before[1], command.positions]
            assert math.isfinite(line.sum())
