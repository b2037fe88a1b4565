"""Tests of real-time chunk execution."""

import numpy as np
import pytest

from vla_sim_bridge.ros.real_time import RealTime


def steps(n, first=0):
    actions = np.zeros((n, 7))
    actions[:, 0] = np.arange(first, first + n)
    return actions


def executed(real, times):
    return [None if (a := real.period(t)) is None else int(a[0]) for t in times]


def test_steps_are_executed_in_order_then_held():
    real = RealTime(0.05)
    real.accept(0.0, steps(3), 0.0)
    assert executed(real, np.arange(5) * 0.05) == [0, 1, 2, None, None]
    assert (real.held, real.missed) == (2, 0)


def test_without_a_chunk_the_robot_is_held():
    real = RealTime(0.05)
    assert executed(real, [0.0, 0.05]) == [None, None]
    assert real.held == 2


def test_steps_that_lie_in_the_past_are_skipped():
    real = RealTime(0.05)
    real.accept(1.0, steps(8), 1.11)  # two periods have passed
    assert executed(real, [1.11, 1.16]) == [2, 3]


def test_a_chunk_older_than_all_its_steps_gives_its_last():
    real = RealTime(0.05)
    real.accept(1.0, steps(1), 1.5)
    assert executed(real, [1.5, 1.55]) == [0, None]


def test_the_newest_chunk_wins_and_older_ones_are_ignored():
    real = RealTime(0.05)
    assert real.accept(1.0, steps(8), 1.0)
    assert executed(real, [1.0]) == [0]
    assert real.accept(1.05, steps(8, 100), 1.05)
    assert not real.accept(1.02, steps(8, 200), 1.06)
    assert executed(real, [1.05]) == [100]
    assert real.ignored == 1


def test_periods_that_were_slept_through_are_counted():
    real = RealTime(0.05)
    real.accept(0.0, steps(8), 0.0)
    executed(real, [0.0, 0.05, 0.25, 0.27])
    assert real.missed == pytest.approx(3, abs=1)


def test_a_new_episode_forgets_what_was_predicted_for_the_last():
    real = RealTime(0.05)
    real.accept(1.0, steps(8), 1.0)
    real.restart(2.0)
    assert executed(real, [2.0]) == [None]
    assert not real.accept(1.9, steps(8), 2.1)
    assert real.accept(2.05, steps(8), 2.1)
