"""Tests of commander and safety, including a fuzz of the whole command path."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from command_bench import Bench, forward
from fuzz import FAULTS, LIES, Findings, Trial, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_inference.control import (
    DISABLED,
    ENABLED,
    STOPPED,
    SafetyLimits,
    Settings,
    Watchdogs,
)
from vla_inference.control import vectors as v
from vla_inference.control.commands import Pose, Target
from vla_inference.control.limits import Ramp
from vla_inference.control.measured import Measured, Reckoning, Track
from vla_inference.control.parts.eef import EefPart
from vla_inference.control.safety import Distribution, Safety
from vla_inference.errors import VlaError


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
    b = Bench(scale=0.5, align="arrival", at=(1.0, 0.0, 0.0))
    b.accept(forward(2))
    first, second = b.tick(), b.tick()
    assert first.linear[0] == pytest.approx(0.1, rel=1e-5)
    assert second.target.position[0] == pytest.approx(1.01, rel=1e-5)
    b.tick(), b.tick()
    assert b.tick() is None and b.commander.target.pose == second.target  # held, not zero


def way(b: Bench, ticks: int) -> float:
    return sum(0.05 * c.linear[0] for c in (b.tick() for _ in range(ticks)) if c)


def test_the_scale_changes_while_disabled_and_counts_stay():
    bench = Bench(scale=0.5)
    with pytest.raises(VlaError, match="the robot is enabled"):
        bench.commander.rescale(0.1)
    bench.tick()
    bench.commander.disable()
    for _ in range(3):
        bench.tick()
    chunks = bench.commander.chunks
    bench.commander.rescale(0.1)
    assert bench.accept(forward(20)) and bench.commander.enable(bench.steady) == ""
    bench.tick()
    assert bench.accept(forward(20))
    assert bench.tick().linear[0] == pytest.approx(0.1 * 0.01 / 0.05)
    assert bench.commander.scale == 0.1 and bench.commander.chunks == chunks + 2
    for scale in (0.0, 1.5):
        bench.commander.disable()
        with pytest.raises(VlaError, match="0 < scale <= 1"):
            bench.commander.rescale(scale)


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
    # It wanted 0.01 m a step from its image on; four of its eight steps are over.
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
    """The next image is taken before a chunk has made up for anything. What is made up for in
    full before the next chunk comes is undone by that one, and so on."""
    assert swing(0.7) < 1e-3 and swing(0.3) > 0.02


def faults() -> dict:
    nan = forward()
    nan.actions[0, 2] = np.nan
    return {
        "bad_chunk": lambda b: b.accept(nan),
        "image_age": lambda b: b.accept(forward(40), age=1.2),
        "second_publisher": lambda b: b.tick(others="1 more publish on /action"),
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
        b.commander.settings.watchdogs.__dict__["image_age"] = 0.0
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
    b.now += 0.001
    b.accept(forward(2))
    assert b.tick().moves


def test_heartbeat_and_pose_are_asked_for_before_and_while_moving():
    b = Bench(enable=False, needs_pose=True, watchdogs=Watchdogs(heartbeat=0.2))
    assert "heartbeat" in b.commander.enable(b.steady)
    b.commander.safety.heartbeat(b.steady)
    for _ in range(3):  # one or two may be wrong
        assert "measured pose" in b.commander.enable(b.steady)
        b.measure((0.0, 0.0, 0.0))
    others = "1 more publish on /action"
    assert others in b.commander.enable(b.steady, others)
    assert "no usable chunk" in b.commander.enable(b.steady)
    b.accept(forward())
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
        loose = Watchdogs(image_age=0.0, stall=0.0, late=0.0)
        b = Bench(align="arrival", watchdogs=loose, at=(1.0, 0.0, 0.0))
        b.accept(forward(2))
        b.tick(), b.tick()
        halt = b.tick(age, others="1 more publish on /action")
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
def test_senseless_settings_are_refused(bad):
    with pytest.raises(VlaError):
        if "watchdogs" in bad:
            bad = {"watchdogs": Watchdogs(**bad["watchdogs"])}
        Settings(**bad)


# -- fuzz -------------------------------------------------------------------------------------


def test_fuzz_finds_nothing_wrong():
    found = fuzz(20_000, seed=1)
    assert not found.wrong, found
    assert found.slowest_stop == 1  # command period
    assert found.moving > 10_000 and len(found.faults) == len(FAULTS) + len(LIES)
    assert found.jogged > 30
    kinds = {"pose_frozen", "pose_lost", "clock_stopped", "inference_stall", "bad_chunk", "late"}
    assert kinds <= set(found.stops) and len(found.stops) >= 11


@pytest.mark.slow
def test_long_fuzz_finds_nothing_wrong():
    assert not fuzz(200_000, seed=2).wrong


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_short_fuzzes_of_any_seed_find_nothing_wrong(seed):
    assert not fuzz(100, seed=seed, per_trial=25).wrong


def goes_anywhere(self, pose, at, bounds):
    self.pose, self.at, self.length = pose, max(self.at, at), self.length + 1
    return True


def aged_by_arrival(self, pose, stamp, now, taken, moving):
    return hear(self, pose, now, now, taken[1:] * 2, moving)


def snap(self, measured):
    self.pose = measured or self.pose
    return set()


def by_the_targets_axes(self, linear, angular):
    box, target, measured = self.settings.limits, self.target.pose, self.robot.pose
    if box.workspace is None or target is None or measured is None:
        return linear, set()
    turn = target.orientation if self.in_tool else v.IDENTITY
    centre = v.scale(v.add(*self.robot.reckoned()[0][-2:]), 0.5)
    positions = [target.position, measured.position, centre]
    inside, clips = box.clip_to_workspace(v.rotate(turn, linear), positions, self.period)
    return v.rotate(v.conjugate(turn), inside), clips


def remembers_what_was_told(self, steady):
    told = self._told
    enabled(self, steady)
    self._told = told or self._told


def begins_where_it_was_told_to_be():
    standstill = EefPart._standstill

    def begins(self):
        standstill(self)
        self.target.anchor(self._told or self.target.pose)

    return begins


hear, enabled = Measured.hear, EefPart.enabled
BUGS = {
    "the ramp follows every wish": (
        Ramp,
        "follow",
        lambda self, wish: (wish, set()),
        "linear_velocity",
    ),
    "no box": (
        SafetyLimits,
        "clip_to_workspace",
        lambda s, a, p, t, u=0: (a, set()),
        "robot_outside",
    ),
    "poses aged by their arrival": (Measured, "hear", aged_by_arrival, "motion_unseen"),
    "poses of any place": (Track, "goes_on", goes_anywhere, "hold_elsewhere"),
    "a hold of another session": (
        EefPart,
        "enabled",
        remembers_what_was_told,
        "hold_elsewhere",
    ),
    "a target of another session": (
        EefPart,
        "_standstill",
        begins_where_it_was_told_to_be(),
        "begins_elsewhere",
    ),
    "the target snaps to the robot": (Target, "follow", snap, "target_jumps"),
    "nothing is reckoned": (Measured, "told", lambda *_: None, "robot_outside"),
    "nothing is left to do": (Reckoning, "_left", lambda *_: None, "robot_outside"),
    "a tool that turns as it is told": (
        EefPart,
        "_into_workspace",
        by_the_targets_axes,
        "robot_outside",
    ),
    "a clock may stop": (Safety, "_clock_stopped", lambda self: None, "motion_on_a_stopped_clock"),
    "enabled by nobody's chunk": (Safety, "_no_chunk", lambda *_: None, "enabled_without_a_chunk"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_fuzz_would_notice(bug, monkeypatch):
    owner, name, planted, kind = BUGS[bug]
    monkeypatch.setattr(owner, name, planted)
    assert any(kind in fuzz(2000, seed=seed).wrong for seed in range(3, 13))


def test_the_fuzz_would_notice_chunks_that_nobody_checks(monkeypatch):
    monkeypatch.setattr(
        "vla_inference.control.commands.np.isfinite", lambda a: np.ones(np.shape(a), bool)
    )
    assert fuzz(1000, seed=3).wrong


def test_the_fuzz_remembers_where_a_robot_was_when_its_clock_jumped():
    """It may be held where it was measured last, a delay before that."""
    trial = Trial(random.Random(0), Findings())
    trial.been.extend([(0.45, 0.0, 0.0), (0.51, 0.0, 0.0)])
    trial.sensor.live(1000.0, 50.0, Pose((0.51, 0.0, 0.0)))
    trial.sensor.live(900.0, 50.05, Pose((0.51, 0.0, 0.0)))
    assert trial.knows(Pose((0.45, 0.0, 0.0)))
    assert not trial.knows(Pose((0.39, 0.0, 0.0)))
