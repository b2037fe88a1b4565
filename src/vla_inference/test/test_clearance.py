"""Tests of a base's stop by its lidar: it is never missed, and no limit is ever exceeded."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from vla_inference.control import ENABLED, STOPPED, RobotCommander, Settings, Watchdogs
from vla_inference.control.parts.clearance import Clearance, ClearanceLimits, Scan, gap_ahead
from vla_inference.control.parts.twist import BaseLimits, BasePart
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, base_twist_spec

ANGLES = np.linspace(-math.pi, math.pi, 181)
LIMITS = ClearanceLimits(distance=0.15, width=0.4, front=0.2, timeout=0.3)
PERIOD = 0.05
FAR = np.full(181, 5.0)


def commander(clearance: ClearanceLimits = LIMITS) -> RobotCommander:
    dogs = Watchdogs(stall=10.0, image_age=10.0)
    s = Settings(rate=1 / PERIOD, align="arrival", watchdogs=dogs)
    limits = BaseLimits((0.5, 1.0, 10.0), (1.0, 2.0, 20.0), clearance=clearance)
    return RobotCommander(s, lambda safety: [BasePart("base", s, limits, safety)])


def see(c: RobotCommander, ranges: np.ndarray, now: float, stamp: float | None = None) -> str:
    stamp = now if stamp is None else stamp
    return c.parts["base"].clearance.measured(Scan(ANGLES, ranges, 0.05), stamp, now, now)


def with_box(far: float, at: float = 0.0) -> np.ndarray:
    """A point `far` m ahead of the scanner, `at` m to the left."""
    ranges = FAR.copy()
    ranges[np.argmin(np.abs(ANGLES - math.atan2(at, far)))] = math.hypot(at, far)
    return ranges


@pytest.mark.parametrize(
    "ranges, gap",
    [
        (FAR, 4.8),
        (with_box(1.0), 0.8),
        (with_box(1.0, at=0.15), 0.8),
        (with_box(1.0, at=0.3), 4.8),  # beside the strip
        (with_box(-1.0), 4.8),  # behind
        (np.full(181, math.inf), math.inf),
        (np.where(np.arange(181) % 3 > 0, FAR, math.nan), 4.8),
        (np.where(np.abs(ANGLES) < 0.02, -math.inf, FAR), 0.0),  # too near to measure
    ],
)
def test_the_gap_is_that_of_the_nearest_point_in_the_strip_ahead(ranges, gap):
    assert gap_ahead(Scan(ANGLES, ranges), LIMITS) == pytest.approx(gap, abs=0.02)


@pytest.mark.parametrize(
    "ranges, least",
    [
        (np.full(181, math.nan), 0.05),
        (np.zeros(181), 0.05),
        (np.zeros(181), 0.0),
        (np.where(np.abs(ANGLES) < 0.4, 0.01, FAR), 0.05),
        (np.where(ANGLES > 0.1, FAR, math.nan), 0.05),  # of one side nothing
    ],
)
def test_a_scan_that_measures_nothing_ahead_is_refused(ranges, least):
    c, scan = Clearance("base", LIMITS), Scan(ANGLES, ranges, least)
    with pytest.raises(VlaError, match="measure anything"):
        gap_ahead(scan, LIMITS)
    assert "measure anything" in c.measured(scan, 1.0, 1.0, 1.0)
    assert "no usable scan" in c.lost(1.0)


@pytest.mark.parametrize(
    "angles, limits",
    [
        (np.linspace(0, math.pi, 181), LIMITS),  # the left alone
        (np.radians([-2.0, 0.0, 2.0]), LIMITS),
        (np.linspace(-0.52, 0.52, 4), LIMITS),  # too far apart
        (np.linspace(-0.52, 0.52, 61), ClearanceLimits(0.15, width=0.5, front=0.0)),
    ],
)
def test_a_scan_that_does_not_see_the_whole_strip_is_refused(angles, limits):
    with pytest.raises(VlaError, match="beams ahead"):
        gap_ahead(Scan(angles, np.full(len(angles), 5.0)), limits)


def test_a_scanner_that_cannot_see_as_near_as_it_is_to_stop_is_refused():
    with pytest.raises(VlaError, match=r"from 0.45 m on, and is to stop it at 0.35"):
        gap_ahead(Scan(ANGLES, FAR, 0.45), LIMITS)


def test_what_is_ahead_of_the_front_but_behind_a_scanner_on_a_boom_counts():
    boom = ClearanceLimits(distance=0.5, width=0.4, front=-0.3)
    assert gap_ahead(Scan(ANGLES, with_box(-0.1)), boom) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    "first, step, last",
    [(-180.0, 1.0, 179.0), (-3.0, 0.01, 3.0), (-1.0, math.nan, 1.0), (0.0, 0.2, 71.8)],
)
def test_angles_that_do_not_fit_the_ranges_are_refused(first, step, last):
    with pytest.raises(VlaError, match="do not lie between its angles"):
        Scan.read(first, step, last, [5.0] * 360, 0.05)
    fine = Scan.read(math.pi, -2 * math.pi / 359, -math.pi, [5.0] * 360, 0.05)
    assert gap_ahead(fine, LIMITS) == pytest.approx(4.8, abs=0.02)


def test_a_scanner_that_is_mounted_turned_is_turned_back():
    turned = ClearanceLimits(distance=0.1, yaw=math.pi)
    assert gap_ahead(Scan(ANGLES, with_box(-1.0)), turned) == pytest.approx(0.8, abs=0.02)


def test_without_a_scan_it_cannot_be_enabled_and_without_a_newer_one_it_stops():
    c, spec = commander(), base_twist_spec()
    c.accept(ActionChunk(np.zeros((20, 2)), spec), 1.0, 1.0, 1.0)
    c.tick(1.0, 1.0)
    assert "no usable scan within 0.3 s" in c.enable(1.0)
    assert "1.00 s old" in see(c, FAR, 1.0, stamp=0.0)
    assert see(c, FAR, 1.0) == "" and c.enable(1.0) == ""
    assert see(c, FAR, 1.2, stamp=1.0) == ""  # a source that repeats itself tells nothing new
    assert "older" in see(c, FAR, 1.2, stamp=0.99)
    for k in range(1, 10):
        c.tick(1.0 + k * PERIOD, 1.0 + k * PERIOD)
    assert c.safety.state == STOPPED and c.safety.last_stop.kind == "scan_lost"


def test_it_may_turn_and_back_off_in_front_of_a_wall_but_not_go_on():
    c, spec, now = commander(), base_twist_spec(), 1.0
    see(c, with_box(0.3), now)
    c.accept(ActionChunk(np.zeros((8, 2)), spec), now, now, now)
    assert c.enable(now) == ""
    now += PERIOD
    c.accept(ActionChunk([[-0.2, 0.5]] * 8, spec), now, now, now)
    for _ in range(4):
        now += PERIOD
        see(c, with_box(0.3), now)
        command = c.tick(now, now)["base"]
    assert c.safety.state == ENABLED and command.linear[0] < 0 < command.angular[2]
    c.accept(ActionChunk([[0.2, 0.0]] * 8, spec), now, now, now)
    while c.safety.state == ENABLED:
        now += PERIOD
        see(c, with_box(0.3), now)
        command = c.tick(now, now)["base"]
        assert command.linear[0] <= 0
    assert c.safety.last_stop.kind == "obstacle" and not command.moves


def test_what_was_driven_since_the_scan_counts_at_the_speed_it_was_driven():
    c = Clearance("base", LIMITS)
    c.measured(Scan(ANGLES, with_box(0.5), 0.05), 1.0, 1.0, 1.0)  # 0.3 m ahead of the front
    for k in range(5):  # 0.125 m
        c.told(0.5, 1.0 + k * PERIOD, PERIOD)
    assert c.fault(0.5, 1.25, PERIOD)
    kind, _ = c.fault(0.05, 1.29, 10 * PERIOD)  # 0.175 m are left, and 0.025 to come
    assert kind == "obstacle"
    assert c.fault(0.05, 1.25, PERIOD) is None
    c.measured(Scan(ANGLES, with_box(0.5), 0.05), 1.25, 1.25, 1.25)
    assert c.fault(0.5, 1.25, PERIOD) is None  # measured anew


def test_a_scan_that_stays_the_very_same_while_it_drives_stops_it():
    rng, spec, c, now = np.random.default_rng(0), base_twist_spec(), commander(), 1.0
    for frozen in (False, True):
        see(c, FAR, now)
        c.accept(ActionChunk(np.zeros((8, 2)), spec), now, now, now)
        c.tick(now, now)
        assert c.enable(now) == ""
        for _ in range(40):
            now += PERIOD
            c.accept(ActionChunk([[0.3, 0.0]] * 8, spec), now, now, now)
            see(c, FAR + (0 if frozen else rng.normal(0, 0.01, 181)), now)
            c.tick(now, now)
        assert (c.safety.state == STOPPED) == frozen
    assert c.safety.last_stop.kind == "scan_lost" and "very same" in c.safety.last_stop.reason
    see(c, np.full(181, math.inf), now)  # nothing in reach is no sign of anything
    c.accept(ActionChunk(np.zeros((8, 2)), spec), now, now, now)
    c.tick(now, now)
    assert c.enable(now) == ""
    for _ in range(40):
        now += PERIOD
        c.accept(ActionChunk([[0.3, 0.0]] * 8, spec), now, now, now)
        see(c, np.full(181, math.inf), now)
        c.tick(now, now)
    assert c.safety.state == ENABLED


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_no_limit_is_exceeded_and_no_obstacle_overlooked(seed):
    rng, spec, c, now = np.random.default_rng(seed), base_twist_spec(), commander(), 1.0
    before, stops, nearest = np.zeros(2), Counter(), math.inf
    for _ in range(400):
        now += PERIOD
        if rng.random() < 0.3:
            rows = rng.normal(0, 1, (8, 2)) * (0.6, 1.5) + (0.2, 0.0)
            c.accept(ActionChunk(rows, spec), now, now, now)
        if rng.random() < 0.8:
            ranges = np.where(rng.random(181) < 0.01, rng.uniform(0.1, 2.0, 181), FAR)
            bad = rng.random(181) < rng.choice([0.0, 0.3, 0.9])
            ranges[bad] = rng.choice([math.nan, math.inf, 0.0])
            near = np.where(np.isfinite(ranges), ranges, 9.0)
            x, y = near * np.cos(ANGLES), near * np.sin(ANGLES)
            strip = (x > 0) & (np.abs(y) <= LIMITS.width / 2) & (ranges >= 0.05)
            if not see(c, ranges, now, now - rng.choice([0.0, 0.0, 0.03, 1.0])):
                nearest = x[strip].min(initial=math.inf)
        if c.safety.state != ENABLED and c.enable(now) == "":
            before = np.zeros(2)
        was, lost = c.safety.state, bool(c.parts["base"].clearance.lost(now))
        blocked = lost or nearest <= LIMITS.front + LIMITS.distance
        command = c.tick(now, now).get("base")
        if c.safety.state != ENABLED:
            assert command is None or not command.moves or not command.live
            if was == ENABLED:
                stops[c.safety.last_stop.kind] += 1
            continue
        if command is None or not command.live:
            continue
        told = np.array([command.linear[0], command.angular[2]])
        assert (np.abs(told) <= (0.5 + 1e-9, 1.0 + 1e-9)).all()
        assert (np.abs(told - before) <= np.array([1.0, 2.0]) * PERIOD + 1e-9).all()
        assert not (blocked and told[0] > 0)
        before = told
    assert stops["obstacle"]
