"""Tests of one joint's limits, of joint players and of robot descriptions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from six_axes import urdf

from vla_inference.control.axis import ACCELERATION, JERK, POSITION, VELOCITY, Axis, AxisLimits
from vla_inference.control.players.joint_player import JointPlayer, position_steps
from vla_inference.control.robot_description import JointRange, joint_ranges
from vla_inference.errors import VlaError


def or_none(low: float, high: float) -> st.SearchStrategy[float]:
    return st.one_of(st.just(math.inf), st.floats(low, high))


LIMITS = st.builds(
    AxisLimits,
    st.floats(-2, -0.1),
    st.floats(0.1, 2),
    st.floats(0.1, 3),
    or_none(1, 30),
    or_none(10, 500),
)
PERIODS = st.sampled_from([0.01, 0.02, 0.05])
WISHES = st.lists(
    st.tuples(st.sampled_from(["go", "move"]), st.floats(-4, 4), st.integers(1, 30)), max_size=12
)


def steps(limits: AxisLimits, period: float, wishes, start: float = 0.0):
    """Each period's axis after these wishes."""
    axis = Axis(limits, period)
    axis.reset(start)
    for kind, wanted, periods in wishes:
        for _ in range(periods):
            axis.follow(wanted) if kind == "go" else axis.follow_velocity(wanted)
            yield axis


@given(LIMITS, PERIODS, WISHES, st.floats(-0.1, 0.1))
@settings(deadline=None, max_examples=50)
def test_all_limits_hold_at_once_whatever_is_wanted(limits, period, wishes, start):
    at, speed, change = start, 0.0, 0.0
    for axis in steps(limits, period, wishes, start):
        velocity = (axis.position - at) / period
        acceleration = (velocity - speed) / period
        assert limits.lower - 1e-9 <= axis.position <= limits.upper + 1e-9
        assert abs(velocity) <= limits.velocity * (1 + 1e-6) + 1e-7
        assert abs(acceleration) <= limits.acceleration * (1 + 1e-6) + 1e-5
        assert abs(acceleration - change) / period <= limits.jerk * (1 + 1e-6) + 1e-2
        at, speed, change = axis.position, velocity, acceleration


@given(LIMITS, PERIODS, st.floats(-1, 1))
@settings(deadline=None, max_examples=50)
def test_it_reaches_what_is_within_its_limits_and_rests_there(limits, period, share):
    goal = share * (limits.upper if share > 0 else -limits.lower)
    *_, axis = steps(limits, period, [("go", goal, int(30 / period))])
    assert axis.position == pytest.approx(goal, abs=1e-3) and abs(axis.velocity) < 1e-3


@given(LIMITS, PERIODS, st.sampled_from([-1.0, 1.0]))
@settings(deadline=None, max_examples=50)
def test_at_a_wanted_velocity_it_goes_as_far_as_it_may_and_rests(limits, period, way):
    *_, axis = steps(limits, period, [("move", way * 9, int(60 / period))])
    assert axis.position == pytest.approx(limits.upper if way > 0 else limits.lower, abs=1e-3)
    assert abs(axis.velocity) < 1e-3


def test_a_moving_position_is_followed_without_a_lag():
    axis, period = Axis(AxisLimits(-2, 2, 1.0, 10.0, 200.0), 0.02), 0.02
    for k in range(150):
        at, before = (0.3 * math.sin(2 * t * period) for t in (k + 1, k))
        axis.follow(at, (at - before) / period)
    assert axis.position == pytest.approx(at, abs=1e-9)


def test_one_that_begins_outside_comes_in_and_goes_no_farther_out():
    limits = AxisLimits(-1, 1, 1.0, 10.0, 200.0)
    farthest = max(a.position for a in steps(limits, 0.02, [("move", 1.0, 50)], 1.2))
    assert farthest == 1.2
    path = [a.position for a in steps(limits, 0.02, [("go", 0.5, 100), ("go", 2.0, 100)], 1.2)]
    assert min(path) == pytest.approx(0.5, abs=1e-3) and path[-1] == pytest.approx(1.0, abs=1e-3)


def test_clips_are_named():
    axis = Axis(AxisLimits(-1, 1, 1.0, 10.0, 200.0), 0.02)
    axis.reset(0.0)
    assert axis.follow_velocity(0.0) == set()
    assert {VELOCITY, ACCELERATION, JERK} <= axis.follow_velocity(5.0)
    clips = set().union(*(axis.follow_velocity(1.0) for _ in range(100)))
    assert POSITION in clips


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lower": 1.0, "upper": 1.0}, "position limits 1 to 1"),
        ({"lower": math.nan}, "position limits nan"),
        ({"velocity": 0.0}, "velocity limit 0"),
        ({"velocity": math.inf}, "velocity limit inf"),
        ({"jerk": 0.0}, "jerk limit 0"),
        ({"acceleration": math.nan}, "acceleration limit nan"),
    ],
)
def test_limits_that_are_none_are_refused(changes, words):
    with pytest.raises(VlaError, match=words):
        AxisLimits(**changes)


# -- players ----------------------------------------------------------------------------------


def test_positions_change_evenly_within_a_step_and_stay_at_the_end():
    player = JointPlayer(align="arrival", blend=0.0)
    player.accept(1.0, 0.1, position_steps((0.0,), [(1.0,), (3.0,)]), begin=1.0)
    for end, value, going in ((1.05, 0.5, 10.0), (1.1, 1.0, 10.0), (1.15, 2.0, 20.0)):
        motion = player.positions(end - 0.05, end)
        assert motion.values[0] == pytest.approx(value)
        assert motion.going[0] == pytest.approx(going)
    assert player.positions(1.19, 1.24).values[0] == pytest.approx(3.0)
    assert player.positions(1.21, 1.26) is None


def test_mean_velocities_come_to_what_the_steps_say():
    player = JointPlayer(align="arrival", blend=0.0)
    player.accept(1.0, 0.1, [((0.0,), (1.0,)), ((0.0,), (2.0,))], begin=1.0)
    total = sum(
        0.03 * m.values[0]
        for k in range(8)
        if (m := player.velocities(1 + 0.03 * k, 1.03 + 0.03 * k))
    )
    assert total == pytest.approx(0.1 * 1 + 0.1 * 2, abs=1e-6)


def test_stale_steps_are_dropped_and_chunks_blended():
    player = JointPlayer(blend=0.1)
    player.accept(1.0, 0.1, position_steps((0.0,), [(float(k),) for k in range(1, 9)]), 1.25)
    assert player.stale == 2
    assert player.positions(1.25, 1.3).values[0] == pytest.approx(3.0)
    player.accept(1.1, 0.1, position_steps((10.0,), [(10.0,)] * 8), 1.3)
    assert player.positions(1.3, 1.35).values[0] == pytest.approx(0.75 * 3.5 + 0.25 * 10)
    assert player.positions(1.4, 1.45).values[0] == pytest.approx(10.0)


# -- descriptions -----------------------------------------------------------------------------


def test_a_urdf_says_how_far_and_how_fast_joints_go(tmp_path):
    path = tmp_path / "six.urdf"
    path.write_text(urdf())
    ranges = joint_ranges(urdf())
    assert joint_ranges(str(path)) == ranges
    assert ranges["j5"] == JointRange(-3.0, 3.0, 0.5) and ranges["finger"] == JointRange(
        0, 0.04, 1
    )
    assert "mount" not in ranges
    turning = (
        '<robot><joint name="w" type="continuous"><limit velocity="4" effort="1"/></joint></robot>'
    )
    assert joint_ranges(turning) == {"w": JointRange(velocity=4.0)}


@pytest.mark.parametrize(
    "text, words",
    [
        ("<robot", "cannot read the robot description"),
        ("<mujoco/>", "it is a <mujoco>, not a <robot>"),
        ("/nowhere.urdf", "No such file"),
        ('<robot><joint name="a" type="revolute"/></robot>', "joint 'a' has no limits"),
        (
            '<robot><joint name="a" type="revolute"><limit lower="x" upper="1"/></joint></robot>',
            "'x'",
        ),
    ],
)
def test_a_description_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(VlaError, match=words):
        joint_ranges(text)
