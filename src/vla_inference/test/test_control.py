"""Chunks in time, limits, safety and commands; and a fuzz of all of them together."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_inference.control import (
    DISABLED,
    ENABLED,
    STOPPED,
    Commander,
    SafetyLimits,
    Settings,
    Watchdogs,
)
from vla_inference.control import vectors as v
from vla_inference.control.chunk_player import ChunkPlayer, History, planned
from vla_inference.control.commands import Gripper, Pose, Target, chunk_velocities
from vla_inference.control.fuzz import fuzz
from vla_inference.control.limits import LINEAR, Ramp
from vla_inference.control.safety import Distribution
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, eef_delta_spec

NO_LIMITS = SafetyLimits(0, 0, 0, 0, 0, 0, 0, 0)
vectors = st.tuples(*[st.floats(-3, 3)] * 3)


def chunk(*rows, rotation="rotvec", frame="base", dt=0.05) -> ActionChunk:
    return ActionChunk(np.array(rows), eef_delta_spec(rotation, frame, dt))


def forward(steps: int = 1, x: float = 0.01, gripper: float = 1.0, **more) -> ActionChunk:
    return chunk(*[[x, 0, 0, 0, 0, 0, gripper]] * steps, **more)


class Bench:
    """A commander at 20 Hz and its two clocks."""

    def __init__(self, limits: SafetyLimits = NO_LIMITS, enable: bool = True, **more):
        self.commander = Commander(Settings(limits=limits, **more))
        self.now, self.steady = 100.0, 7.0
        self.tick()
        if enable:
            assert self.commander.enable(self.steady) == ""

    def tick(self, passed: float = 0.05, **more):
        self.now += passed
        self.steady += passed
        return self.commander.tick(self.now, self.steady, **more)

    def accept(self, c: ActionChunk, age: float = 0.0) -> bool:
        return self.commander.accept(c, self.now - age, self.now, self.steady)

    @property
    def state(self) -> str:
        return self.commander.safety.state

    @property
    def stop(self):
        return self.commander.safety.last_stop


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
        velocities, grippers = chunk_velocities(
            chunk([0.01, 0.02, -0.03, *angles, 0.7], rotation=rotation, dt=0.1)
        )
        np.testing.assert_allclose(velocities[0, :3], [0.1, 0.2, -0.3], rtol=1e-6)
        np.testing.assert_allclose(velocities[0, 3:], np.array(wanted) / 0.1, rtol=1e-6)
        assert grippers[0] == pytest.approx(0.7)


# -- limits -----------------------------------------------------------------------------------


@given(st.lists(vectors, min_size=1, max_size=40), st.floats(0.05, 2), st.floats(0.2, 20),
       st.one_of(st.just(0.0), st.floats(1, 200)))  # fmt: skip
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
    step = NO_LIMITS.clip_step((50.0, 0.0, 0.0), (0.0, 90.0, 0.0), 0.05)
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


@pytest.mark.parametrize("bad", [{"linear_jerk": -1.0}, {"linear_velocity": math.nan},
                                 {"workspace": ((0, 0, 0), (1, 0, 1))}])  # fmt: skip
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


def test_a_target_too_far_from_the_robot_is_anchored_anew():
    here, near, far = (Pose((x, 0.0, 0.0)) for x in (0.0, 0.04, 0.06))
    target = Target(drift=(0.05, 0.3), pose=near, measured=here)
    assert target.check() == set() and target.pose == near
    target.pose = far
    assert target.check() == {"drift"} and target.pose == here


@pytest.mark.parametrize("bad", [((math.nan, 0, 0), v.IDENTITY), ((0, 0, 0), (0, 0, 0, 0))])
def test_senseless_poses_are_refused(bad):
    with pytest.raises(VlaError):
        Pose(*bad)


def test_the_gripper_is_told_changes_alone():
    gripper = Gripper(hysteresis=0.1)
    told = [gripper.follow(x) for x in (0.9, 1.0, 0.55, 0.45, 0.3, 0.1, 0.55, 0.7)]
    assert told == [1.0, None, None, None, 0.0, None, None, 1.0]


# -- commander and safety ---------------------------------------------------------------------


def test_disabled_at_first_and_everything_is_computed_but_not_live():
    b = Bench(enable=False)
    assert b.state == DISABLED
    assert b.accept(forward())
    command = b.tick()
    assert command.moves and not command.live
    assert b.commander.enable(b.steady) == "" and b.tick() is None  # old plans are void


def test_a_motion_its_end_and_silence():
    b = Bench(align="arrival")
    b.accept(forward(2, gripper=0.0))
    told = [b.tick() for _ in range(6)]
    assert [c.linear[0] for c in told[:2]] == pytest.approx([0.2, 0.2], rel=1e-5)
    assert [c.gripper for c in told[:2]] == [0.0, None]
    assert [c.moves for c in told[2:4]] == [False, False]
    assert told[4:] == [None, None] and b.state == ENABLED


def test_scale_and_target_pose():
    b = Bench(scale=0.5, align="arrival")
    b.commander.measured(Pose((1.0, 0.0, 0.0)), b.steady)
    b.accept(forward(2))
    first, second = b.tick(), b.tick()
    assert first.linear[0] == pytest.approx(0.1, rel=1e-5)
    assert second.target.position[0] == pytest.approx(1.01, rel=1e-5)
    b.tick(), b.tick()
    assert b.tick() is None and b.commander.target.pose == second.target  # held, not zero


def way(b: Bench, ticks: int) -> float:
    return sum(0.05 * c.linear[0] for c in (b.tick() for _ in range(ticks)) if c)


def test_stretched_steps_take_longer_and_lead_as_far():
    b = Bench(stretch=2.0, align="arrival")
    b.accept(forward(3))
    told = [b.tick() for _ in range(8)]
    assert [c.linear[0] for c in told[:6]] == pytest.approx([0.1] * 6, rel=1e-4)
    assert not told[6].moves


@pytest.mark.parametrize(("catch_up", "wanted"), [(0.0, 0.04), (0.1, 0.08)])
def test_a_late_chunk_makes_up_for_what_was_not_done_in_the_meantime(catch_up, wanted):
    b = Bench(catch_up=catch_up, blend=0.0)
    b.tick()
    # It wanted 0.01 m a step from its picture on; four of its eight steps are over.
    b.accept(forward(8), age=0.15)
    assert way(b, 8) == pytest.approx(wanted, rel=1e-3)


def test_what_was_done_in_the_meantime_is_not_done_twice():
    b = Bench(catch_up=0.1, blend=0.0)
    b.accept(forward(8), age=-0.05)
    done = way(b, 4)
    assert b.accept(forward(8), age=0.1499)  # says the same of the same moment
    assert done + way(b, 8) == pytest.approx(0.08, rel=1e-3)


def swing(catch_up: float, delay: int = 7) -> float:
    """How far commands differ, 1 to 3 s after a push, under answers of 0.35 s [m/s]."""
    b = Bench(catch_up=catch_up, stretch=2.0, watchdogs=Watchdogs(0, 0, 0, 0, 0, 0))
    here, due, told = 0.0, None, []
    for tick in range(90):
        if due is not None and tick == due[0]:
            b.commander.accept(due[2], due[1], b.now, b.steady)
            due = None
        if due is None:  # on to a goal far away, at the same speed from wherever it is
            due = tick + delay, b.now, forward(8, x=min(0.01, 0.3 * (9.0 - here)))
        command = b.tick()
        told.append(command.linear[0] if command else 0.0)
        here += 0.05 * told[-1] + 0.05 * (tick == 30)
    return max(told[50:]) - min(told[50:])


def test_what_is_made_up_for_over_twice_the_answers_time_dies_down():
    """The next picture is taken before a chunk has made up for anything. What is made up for in
    full before the next chunk comes is undone by that one, and so on."""
    assert swing(0.7) < 1e-3 and swing(0.3) > 0.02


def faults() -> dict:
    nan = forward()
    nan.actions[0, 2] = np.nan
    return {
        "bad_chunk": lambda b: b.accept(nan),
        "picture_age": lambda b: b.accept(forward(40), age=1.2),
        "second_publisher": lambda b: b.tick(others=1),
        "clock_back": lambda b: setattr(b, "now", b.now - 60),
        "clock_forward": lambda b: setattr(b, "now", b.now + 0.5),
        "late": lambda b: b.tick(0.8),
        "inference_stall": lambda b: [b.tick() for _ in range(21)],
    }


@pytest.mark.parametrize("kind", faults())
def test_a_fault_halts_at_once_and_nothing_moves_until_enabled_again(kind):
    b = Bench()
    b.accept(forward(80))
    assert b.tick().moves
    if kind == "inference_stall":  # the plan is still good for seconds
        b.commander.settings.watchdogs.__dict__["picture_age"] = 0.0
    faults()[kind](b)
    # Whatever the fault didn't tell yet comes with the next period.
    told = [b.tick() for _ in range(4)]
    assert b.state == STOPPED and b.stop.kind == kind and len(b.stop.reason) > 15
    assert b.commander.safety.stops == {kind: 1}
    assert not any(c.moves for c in told if c) and told[2:] == [None, None]
    b.accept(forward(80))
    assert b.tick() is None
    b.now += 0.001
    assert b.commander.enable(b.steady) == "" and b.state == ENABLED
    b.accept(forward(2))
    assert b.tick().moves


def test_heartbeat_and_pose_are_asked_for_before_and_while_moving():
    b = Bench(enable=False, needs_pose=True, watchdogs=Watchdogs(heartbeat=0.2))
    assert "heartbeat" in b.commander.enable(b.steady)
    b.commander.safety.heartbeat(b.steady)
    assert "measured pose" in b.commander.enable(b.steady)
    b.commander.measured(Pose((0.0, 0.0, 0.0)), b.steady)
    assert "more publish" in b.commander.enable(b.steady, others=1)
    assert b.commander.enable(b.steady) == ""
    for _ in range(5):
        b.tick()
    assert b.stop.kind == "heartbeat"


def test_what_training_never_saw_is_left_out_and_the_rest_goes_on():
    mask = [True] * 6 + [False]
    statistics = {"q01": [-0.01] * 7, "q99": [0.01] * 7, "mask": mask}
    b = Bench(distribution=Distribution.from_statistics(statistics, margin=0.5))
    assert b.accept(forward(x=0.019))
    b.now += 0.01
    assert not b.accept(forward(x=0.021))
    assert b.commander.safety.refusals == {"out_of_distribution": 1}
    assert "x of step 0" in b.commander.safety.last_refusal and b.state == ENABLED


def test_a_model_that_changes_its_frame_is_stopped():
    b = Bench()
    assert b.accept(forward())
    b.tick()
    assert not b.accept(forward(frame="tool")) and b.state == STOPPED


def test_a_stop_holds_the_measured_pose_and_an_old_one_is_not_gone_back_to():
    for age, wanted in ((0.1, 1.0), (0.6, 1.02)):
        b = Bench(align="arrival", watchdogs=Watchdogs(picture_age=0.0, stall=0.0, late=0.0))
        b.commander.measured(Pose((1.0, 0.0, 0.0)), b.steady)
        b.accept(forward(2))
        b.tick(), b.tick()
        halt = b.tick(age, others=1)
        assert not halt.moves and halt.target.position[0] == pytest.approx(wanted, rel=1e-5)


def test_disabling_halts_twice():
    b = Bench()
    b.accept(forward(20))
    b.tick()
    b.commander.disable()
    told = [b.tick() for _ in range(3)]
    assert [c is not None and not c.moves and c.live for c in told] == [True, True, False]
    assert b.state == DISABLED


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": 0.0},
        {"scale": 1.5},
        {"align": "x"},
        {"rate": 0.0},
        {"watchdogs": {"stall": math.nan}},
        {"watchdogs": {"heartbeat": -1.0}},
        {"limits": SafetyLimits(workspace=((0,) * 3, (1,) * 3))},
    ],
)
def test_senseless_settings_are_refused(bad):  # fmt: skip
    with pytest.raises(VlaError):
        if "watchdogs" in bad:
            bad = {"watchdogs": Watchdogs(**bad["watchdogs"])}
        Settings(**bad)


# -- all of it --------------------------------------------------------------------------------


def test_fuzz_finds_nothing_wrong():
    found = fuzz(20_000, seed=1)
    assert not found.wrong, found
    assert found.slowest_stop == 1  # command period
    assert found.moving > 10_000 and len(found.faults) == 14 and len(found.stops) == 9


@pytest.mark.slow
def test_long_fuzz_finds_nothing_wrong():
    assert not fuzz(200_000, seed=2).wrong


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_short_fuzzes_of_any_seed_find_nothing_wrong(seed):
    assert not fuzz(100, seed=seed, per_trial=25).wrong


def test_the_fuzz_would_notice(monkeypatch):
    monkeypatch.setattr(Ramp, "follow", lambda self, wish: (wish, set()))
    assert {"linear_velocity", "angular_jerk"} <= set(fuzz(300, seed=3).wrong)
    monkeypatch.undo()
    monkeypatch.setattr(SafetyLimits, "clip_to_workspace", lambda s, a, p, t: (a, set()))
    assert "workspace" in fuzz(2000, seed=3).wrong
    monkeypatch.undo()
    monkeypatch.setattr("vla_inference.control.commands.np.isfinite", lambda a: np.ones(1, bool))
    assert fuzz(1000, seed=3).wrong
