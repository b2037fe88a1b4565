"""Tests of an episode from reset to outcome."""

import numpy as np

from vla_sim_bridge.evaluation.episode import SETTLE_STEPS, EpisodeRun

ACTION = np.zeros(7)


def play(run):
    while not run.step(ACTION):
        pass
    return run.result()


def test_settled_success_counts_at_the_frame_where_it_began(fake_simulation):
    sim = fake_simulation([False] * 4 + [True] * (SETTLE_STEPS + 1))
    result = play(EpisodeRun(sim, 0, 0, 100))
    assert (result.outcome, result.frames, result.ever_success) == ("success", 5, True)
    assert sim.log == ["reset"] + ["step"] * 5 + ["hold"] * SETTLE_STEPS


def test_momentary_success_does_not_count_but_is_remembered(fake_simulation):
    sim = fake_simulation([False, True, True, False])
    result = play(EpisodeRun(sim, 0, 0, 30))
    assert (result.outcome, result.frames, result.ever_success) == ("timeout", 30, True)
    # step 2 looked good, of the holds the first did and the second did not: both are spent
    assert sim.log[:5] == ["reset", "step", "step", "hold", "hold"]
    assert len(sim.log) == 1 + 30


def test_one_step_short_of_settled_is_no_success(fake_simulation):
    sim = fake_simulation([True] * SETTLE_STEPS)
    assert play(EpisodeRun(sim, 0, 0, 20)).outcome == "timeout"


def test_success_in_the_last_frame_may_still_settle(fake_simulation):
    sim = fake_simulation([False] * 9 + [True] * (SETTLE_STEPS + 1))
    result = play(EpisodeRun(sim, 0, 0, 10))
    assert (result.outcome, result.frames) == ("success", 10)


def test_horizon_is_never_exceeded_in_the_count(fake_simulation):
    sim = fake_simulation([False] * 9 + [True] * 5)
    result = play(EpisodeRun(sim, 0, 0, 10))
    assert (result.outcome, result.frames, result.ever_success) == ("timeout", 10, True)


def test_a_second_chance_after_a_momentary_success(fake_simulation):
    sim = fake_simulation([True, False, False, *[True] * (SETTLE_STEPS + 1)])
    result = play(EpisodeRun(sim, 0, 0, 100))
    assert (result.outcome, result.frames) == ("success", 4)


def test_never_successful(fake_simulation):
    result = play(EpisodeRun(fake_simulation(), 3, 1, 7))
    assert (result.outcome, result.frames, result.ever_success) == ("timeout", 7, False)
    assert (result.seed, result.index) == (3, 1)


def test_aborting_changes_no_outcome_that_is_known(fake_simulation):
    run = EpisodeRun(fake_simulation(), 0, 0, 2)
    play(run)
    run.abort()
    assert run.outcome == "timeout"
    run = EpisodeRun(fake_simulation(), 0, 0, 2)
    run.abort()
    assert run.outcome == "aborted" and run.done and not run.result().success


def test_every_control_step_is_told(fake_simulation):
    sim = fake_simulation([True, False])
    run = EpisodeRun(sim, 0, 0, 12)
    told = []
    run.on_step = lambda: told.append(sim.at)
    play(run)
    assert told == list(range(1, 13))


def test_a_settled_wrong_end_is_an_outcome_of_its_own_and_no_success(fake_simulation):
    sim = fake_simulation([False, False, *["wrong_order"] * (SETTLE_STEPS + 1)])
    result = play(EpisodeRun(sim, 0, 0, 100))
    assert (result.outcome, result.frames) == ("wrong_order", 3)
    assert not result.success and not result.ever_success


def test_after_a_momentary_wrong_end_success_is_still_possible(fake_simulation):
    sim = fake_simulation(["wrong_order", False, *[True] * (SETTLE_STEPS + 1)])
    assert play(EpisodeRun(sim, 0, 0, 100)).outcome == "success"
