"""Tests of the simulated base: diff_drive_controller's rules, odometry, and the wheels' motion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_sim_bridge.envs.diff_drive import WHEEL_RADIUS, WHEEL_SEPARATION, DiffDrive
from vla_sim_bridge.ros.robot.base_controller import BaseController, Odometry

PERIOD = 0.05


def controller() -> BaseController:
    return BaseController(WHEEL_RADIUS, WHEEL_SEPARATION)


@given(st.floats(-1, 1), st.floats(-2, 2))
def test_the_wheels_turn_as_the_base_is_to_move(linear, angular):
    base = controller()
    assert base.receive(linear, angular, 0.0, 10.0)
    left, right = base.wheels(10.0)
    assert (left + right) / 2 * WHEEL_RADIUS == pytest.approx(linear, abs=1e-9)
    assert (right - left) * WHEEL_RADIUS / WHEEL_SEPARATION == pytest.approx(angular, abs=1e-9)


def test_a_velocity_lasts_half_a_second():
    base = controller()
    assert base.wheels(9.0) == (0, 0)  # nothing told yet
    base.receive(0.2, 0.0, 10.0, 10.1)
    assert base.wheels(10.5)[0] == pytest.approx(2.0)
    assert base.wheels(10.6) == (0, 0)


def test_periods_without_a_fresh_velocity_are_gaps_unless_it_was_the_last():
    base = controller()
    base.wheels(9.0)  # nothing told yet
    for now in (10.0, 10.05, 10.1, 10.3):
        base.receive(0.2, 0.0, now, now)
        base.wheels(now)
    assert (base.heard.gaps, base.heard.silent) == (0, 0)
    for now in (10.35, 10.4, 10.45, 10.5):  # the velocity of 10.3 is fresh in the first
        base.wheels(now)
    assert (base.heard.gaps, base.heard.silent) == (0, 3)
    base.receive(0.2, 0.0, 10.55, 10.55)
    base.wheels(10.55)
    assert (base.heard.gaps, base.heard.silent) == (3, 0)
    base.wheels(10.75)
    assert (base.heard.gaps, base.heard.silent) == (3, 1)


@pytest.mark.parametrize(
    ("linear", "stamp", "why"), [(math.nan, 0.0, "not finite"), (0.1, 9.0, "stale stamp")]
)
def test_velocities_that_are_refused(linear, stamp, why):
    base = controller()
    assert not base.receive(linear, 0.0, stamp, 10.0)
    assert base.heard.rejected == {why: 1} and base.wheels(10.0) == (0, 0)


@given(st.floats(0.05, 0.5), st.floats(-1, 1))
def test_odometry_of_an_arc_is_the_arc(speed, turn):
    odometry = Odometry(WHEEL_RADIUS, WHEEL_SEPARATION)
    base = controller()
    base.receive(speed, turn, 0.0, 0.0)
    rates = np.array(base.wheels(0.0))
    for i in range(41):
        odometry.update(*(rates * PERIOD * i), PERIOD)
    heading = turn * 2.0
    assert odometry.heading == pytest.approx(math.remainder(heading, 2 * math.pi), abs=1e-6)
    way = speed * 2.0 * (math.sin(heading / 2) / (heading / 2) if abs(heading) > 1e-6 else 1)
    assert math.hypot(odometry.x, odometry.y) == pytest.approx(way, rel=1e-3)
    assert (odometry.linear, odometry.angular) == pytest.approx((speed, turn), abs=1e-6)


def test_the_base_goes_where_its_odometry_says_and_its_camera_sees_it():
    world, base = DiffDrive(64, 48), controller()
    odometry = Odometry(WHEEL_RADIUS, WHEEL_SEPARATION)
    before = world.render("front")
    assert before.shape == (48, 64, 3)
    for i in range(60):
        ramp = min(1.0, i / 20)
        base.receive(0.4 * ramp, 0.5 * ramp, 0.0, i * PERIOD)
        world.step(*base.wheels(i * PERIOD), PERIOD)
        odometry.update(*world.wheels(), PERIOD)
    x, y, heading = world.pose()
    assert heading > 0.8 and x > 0.5
    assert odometry.heading == pytest.approx(heading, abs=0.1)
    assert math.hypot(odometry.x - x, odometry.y - y) < 0.1
    assert np.abs(world.render("front").astype(int) - before).mean() > 5
    for i in range(60, 75):  # nothing is said any more: it stops
        world.step(*base.wheels(i * PERIOD + 0.5), PERIOD)
    stopped = world.pose()
    for i in range(75, 85):
        world.step(*base.wheels(i * PERIOD + 0.5), PERIOD)
    np.testing.assert_allclose(world.pose(), stopped, atol=2e-3)
    world.close()
