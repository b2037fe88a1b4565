"""Tests of the control core: velocities, limits, chunk timing, target poses, gripper."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_inference.control import SafetyLimits
from vla_inference.control import vectors as v
from vla_inference.control.commands import Gripper, Pose, Target, chunk_velocities
from vla_inference.control.limits import LINEAR, Ramp
from vla_inference.control.players.chunk_player import ChunkPlayer, History, planned
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, eef_delta_spec

vectors = st.tuples(*[st.floats(-3, 3)] * 3)

# -- vectors and velocities -------------------------------------------------------------------


@given(vectors, vectors)
def test_quaternions_agree_with_scipy(a, b):
    p, q = (v.from_rotation_vector(r) for r in (a, b))
    P, Q = (Rotation.from_rotvec(r) for r in (a, b))
    np.testing.assert_allclose(v.rotate(p, b), P.apply(b), atol=1e-9)
    together = Rotation.from_quat(v.multiply(p, q))
    assert (together * (P * Q).inv()).magnitude() < 1e-7
    assert v.angle_between(p, q) == pytest.approx((P * Q.inv()).magnitude(), abs=1e-6)


def test_a_velocity_is_the_delta_over_dt_as_a_rotation_vector():
    angles = [0.3, -0.2, 0.5]
    for rotation, wanted in (
        ("rotvec", angles),
        ("rpy", Rotation.from_euler("xyz", angles).as_rotvec()),
    ):
        actions = np.array([[0.01, 0.02, -0.03, *angles, 0.7]])
        velocities, grippers = chunk_velocities(
            ActionChunk(actions, eef_delta_spec(rotation, "base", 0.1))
        )
        np.testing.assert_allclose(velocities[0, :3], [0.1, 0.2, -0.3], rtol=1e-6)
        np.testing.assert_allclose(velocities[0, 3:], np.array(wanted) / 0.1, rtol=1e-6)
        assert grippers[0] == pytest.approx(0.7)


# -- limits -----------------------------------------------------------------------------------


@given(
    st.lists(vectors, min_size=1, max_size=40),
    st.floats(0.05, 2),
    st.floats(0.2, 20),
    st.one_of(st.just(0.0), st.floats(1, 200)),
)
def test_a_ramp_keeps_velocity_acceleration_and_jerk(wishes, top, steepest, jerk):
    period = 0.05
    ramp = Ramp(period, (top, steepest, jerk), LINEAR)
    velocities = [np.zeros(3)] * 2
    for wish in wishes:
        velocities.append(np.array(ramp.follow(wish)[0]))
    accelerations = np.diff(velocities, axis=0) / period
    assert np.linalg.norm(velocities, axis=1).max() <= top * (1 + 1e-9)
    assert np.linalg.norm(accelerations, axis=1).max() <= steepest * (1 + 1e-9)
    if jerk:
        jerks = np.diff(accelerations, axis=0) / period
        assert np.linalg.norm(jerks, axis=1).max() <= jerk * (1 + 1e-6)


@given(vectors, st.floats(0.05, 1), st.floats(0.5, 10), st.one_of(st.just(0.0), st.floats(5, 200)))
def test_a_ramp_comes_to_what_is_wanted_and_stays_there(wish, top, steepest, jerk):
    wish = v.shorten(wish, 0.9 * top)
    ramp = Ramp(0.05, (top, steepest, jerk), LINEAR)
    for goal in (wish, v.ZERO):
        for _ in range(200):
            ramp.follow(goal)
        assert ramp.follow(goal) == (goal, set())


def test_without_limits_nothing_is_clipped():
    ramp = Ramp(0.05, (0, 0, 0), LINEAR)
    assert ramp.follow((5.0, 0.0, -7.0)) == ((5.0, 0.0, -7.0), set())
    step = SafetyLimits(0, 0, 0, 0, 0, 0, 0, 0).clip_step((50.0, 0.0, 0.0), (0.0, 90.0, 0.0), 0.05)
    assert step == ((50.0, 0.0, 0.0), (0.0, 90.0, 0.0), set())


def test_a_step_is_shortened_and_keeps_its_direction():
    limits = SafetyLimits(translation_per_step=0.01)
    linear, _, clips = limits.clip_step((3.0, 4.0, 0.0), v.ZERO, 0.1)
    np.testing.assert_allclose(linear, (0.06, 0.08, 0.0), rtol=1e-6)
    assert clips == {"translation_per_step"}


@given(vectors, st.tuples(*[st.floats(-1.5, 1.5)] * 3))
def test_no_motion_leaves_the_workspace_but_one_may_come_back(velocity, position):
    limits = SafetyLimits(workspace=((-1.0,) * 3, (1.0,) * 3))
    clipped, _ = limits.clip_to_workspace(velocity, [position], 0.05)
    for p, wish, got in zip(position, velocity, clipped, strict=True):
        then = p + 0.05 * got
        assert -1 <= then <= 1 or (abs(then) <= abs(p) and abs(p) > 1)
        assert got == wish or abs(got) < abs(wish)  # never faster, never invented


@pytest.mark.parametrize(
    "bad",
    [{"linear_jerk": -1.0}, {"linear_velocity": math.nan}, {"workspace": ((0, 0, 0), (1, 0, 1))}],
)
def test_senseless_limits_are_refused(bad):
    with pytest.raises(VlaError, match=next(iter(bad))):
        SafetyLimits(**bad)


# -- chunks in time ---------------------------------------------------------------------------


def steps(*xs: float, gripper: float = 1.0):
    return [((x, 0.0, 0.0), v.ZERO, gripper) for x in xs]


def x_of(player: ChunkPlayer, begin: float, end: float) -> float | None:
    motion = player.motion(begin, end)
    return None if motion is None else motion.linear[0]


def test_steps_whose_time_has_passed_are_dropped():
    player = ChunkPlayer()
    assert player.accept(10.0, 0.1, steps(1, 2, 3, 4), begin=10.25)
    assert player.stale == 2
    assert x_of(player, 10.25, 10.30) == pytest.approx(3)
    assert x_of(player, 10.30, 10.40) == pytest.approx(4)
    assert x_of(player, 10.40, 10.50) is None
    assert not player.accept(10.1, 0.1, steps(1, 2), begin=10.4)
    assert player.late == 1 and player.stale == 4


def test_k_of_n_counts_from_the_first_step_that_is_not_stale():
    player = ChunkPlayer(execute_steps=2)
    player.accept(10.0, 0.1, steps(1, 2, 3, 4, 5), begin=10.1)
    got = [x_of(player, 10.1 + 0.1 * i, 10.2 + 0.1 * i) for i in range(3)]
    assert got[:2] == pytest.approx([2, 3]) and got[2] is None


def test_single_steps_and_alignment_by_arrival_begin_when_they_arrive():
    single, arrival = ChunkPlayer(), ChunkPlayer(align="arrival")
    assert single.accept(10.0, 0.2, steps(1), begin=10.7)
    assert arrival.accept(10.0, 0.1, steps(1, 2), begin=10.7)
    assert x_of(single, 10.7, 10.9) == pytest.approx(1)
    assert x_of(arrival, 10.7, 10.9) == pytest.approx(1.5)


@given(st.integers(1, 12), st.sampled_from([0.03, 0.05, 0.1]), st.floats(0, 0.05))
def test_no_displacement_is_lost_between_command_periods(n, dt, offset):
    xs = [0.1 * (i + 1) for i in range(n)]
    player = ChunkPlayer()
    player.accept(10.0, dt, steps(*xs), begin=10.0)
    edges = [10.0 - offset + 0.05 * i for i in range(40)]
    way = sum(0.05 * (x_of(player, a, b) or 0.0) for a, b in itertools.pairwise(edges))
    assert way == pytest.approx(dt * sum(xs), rel=1e-3)  # but for slivers


def test_rounding_adds_no_command_at_the_end():
    now = 1795342736.711034  # seconds since 1970 are coarse
    player = ChunkPlayer(align="arrival")
    player.accept(now, 0.05, steps(1, 1, 1), begin=now)
    begin, xs = now, []
    for _ in range(5):
        xs.append(x_of(player, begin, begin + 0.05))
        begin += 0.05
    assert xs[:3] == pytest.approx([1, 1, 1], rel=1e-4) and xs[3:] == [None, None]


def test_chunks_out_of_order_are_ignored():
    player = ChunkPlayer()
    player.accept(10.0, 0.1, steps(1, 1), begin=10.0)
    assert not player.accept(9.9, 0.1, steps(9, 9, 9), begin=10.0)
    assert not player.accept(10.0, 0.1, steps(9, 9, 9), begin=10.0)
    assert player.ignored == 2 and x_of(player, 10.0, 10.1) == pytest.approx(1)


def test_a_chunk_takes_over_without_a_jump():
    player = ChunkPlayer(blend=0.1)
    player.accept(10.0, 0.1, steps(*[0.0] * 8), begin=10.0)
    player.accept(10.2, 0.1, steps(*[1.0] * 8), begin=10.2)
    got = [x_of(player, 10.2 + 0.02 * i, 10.22 + 0.02 * i) for i in range(6)]
    np.testing.assert_allclose(got, [0.1, 0.3, 0.5, 0.7, 0.9, 1.0], atol=1e-6)


@given(st.floats(0, 0.0999))
def test_nor_does_one_that_comes_in_the_midst_of_a_step(late):
    player, begin = ChunkPlayer(blend=0.1), 10.2 + late
    player.accept(10.0, 0.1, steps(*[0.0] * 8), begin=10.0)
    player.accept(10.1, 0.1, steps(*[1.0] * 8), begin=begin)
    assert x_of(player, begin, begin + 0.01) == pytest.approx(0.05, abs=1e-3)
    assert x_of(player, begin + 0.1, begin + 0.15) == pytest.approx(1)


def test_temporal_ensembling_weighs_the_oldest_most():
    player = ChunkPlayer(ensemble=0.5)
    for i, x in enumerate((1.0, 2.0, 4.0)):
        player.accept(10.0 + 0.1 * i, 0.1, steps(*[x] * 8, gripper=i), begin=10.0 + 0.1 * i)
    weights = np.exp(-0.5 * np.arange(3))
    motion = player.motion(10.3, 10.35)
    assert motion.linear[0] == pytest.approx(weights @ [1, 2, 4] / weights.sum())
    assert motion.gripper == 2


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0, 1.0))
def test_what_steps_have_come_to_is_what_the_player_would_execute(xs, time):
    player = ChunkPlayer()
    player.accept(10.0, 0.1, steps(*xs), begin=10.0)
    history, edges = History(), [10.0 + 0.02 * i for i in range(60)]
    for a, b in itertools.pairwise(edges):
        motion = player.motion(a, b)
        if motion is not None:
            history.add(a, b, motion.linear, motion.angular)
    whole = round(time / 0.02) * 0.02
    wanted, _ = planned(0.1, steps(*xs), whole)
    assert history.way(10.0, 10.0 + whole)[0][0] == pytest.approx(wanted[0], abs=1e-4)
    assert history.way(9.0, 12.0)[0][0] == pytest.approx(0.1 * sum(xs), abs=1e-4)


# -- targets and gripper ----------------------------------------------------------------------


@given(vectors, vectors, vectors)
def test_targets_compose_in_base_and_tool_axes(start, linear, angular):
    pose = Pose((1.0, 2.0, 3.0), v.from_rotation_vector(start))
    turn, r = Rotation.from_rotvec(np.array(angular) * 0.1), Rotation.from_rotvec(start)
    way = 0.1 * np.array(linear)
    for in_tool, position, rotation in ((False, way, turn * r), (True, r.apply(way), r * turn)):
        moved = pose.moved(linear, angular, 0.1, in_tool)
        np.testing.assert_allclose(moved.position, np.add([1, 2, 3], position), atol=1e-9)
        assert (Rotation.from_quat(moved.orientation) * rotation.inv()).magnitude() < 1e-6


def test_a_target_too_far_from_the_robot_waits_for_it_and_never_jumps():
    here, near, far = (Pose((x, 0.0, 0.0)) for x in (0.0, 0.04, 0.06))
    target = Target(drift=(0.05, 0.3), step=(0.004, 0.1), pose=near)
    assert target.follow(here) == set() and target.pose == near
    target.pose = far
    xs = []
    for _ in range(4):  # back to what is permitted, no faster than the robot may go
        clips = target.follow(here)
        target.advance(v.ZERO, v.ZERO, 0.02, False)
        xs.append(target.pose.position[0])
    assert xs == pytest.approx([0.056, 0.052, 0.05, 0.05]) and clips == set()
    target.follow(here)
    target.advance((5.0, 0.0, 0.0), v.ZERO, 0.02, False)
    assert target.pose.position[0] == pytest.approx(0.054)


def test_a_target_that_starts_at_the_robot_goes_there_no_faster_than_it_may():
    target = Target(drift=(0.0, 0.3), step=(0.004, 0.1), pose=Pose((0.0, 0.0, 0.0)))
    target.follow(Pose((0.9, 0.0, 0.0)))
    target.advance((0.2, 0.0, 0.0), v.ZERO, 0.02, False)
    assert target.pose.position[0] == pytest.approx(0.004)


def test_a_target_outside_the_box_only_comes_in():
    target = Target(box=((-0.1,) * 3, (0.1,) * 3))
    target.anchor(Pose((0.15, 0.0, 0.0)))
    for wish, x in ((0.02, 0.15), (-0.02, 0.13), (0.02, 0.13), (-0.05, 0.08), (0.05, 0.1)):
        target.follow(Pose((0.16, 0.0, 0.0)))
        target.advance((wish, 0.0, 0.0), v.ZERO, 1.0, False)
        assert target.pose.position[0] == pytest.approx(x)


@pytest.mark.parametrize("bad", [((math.nan, 0, 0), v.IDENTITY), ((0, 0, 0), (0, 0, 0, 0))])
def test_senseless_poses_are_refused(bad):
    with pytest.raises(VlaError):
        Pose(*bad)


def test_the_gripper_is_told_changes_alone():
    gripper = Gripper(hysteresis=0.1)
    told = [gripper.follow(x) for x in (0.9, 1.0, 0.55, 0.45, 0.3, 0.1, 0.55, 0.7)]
    assert told == [1.0, None, None, None, 0.0, None, None, 1.0]
