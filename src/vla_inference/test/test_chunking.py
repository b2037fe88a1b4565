"""Real-time chunking: what is left of a chunk, how long answers take, and where chunks meet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic_flow import SPEC, AnalyticFlow, SmoothFlow
from hypothesis import given
from hypothesis import strategies as st
from model_server import StubPolicy

from vla_inference.control.players.joint_player import JointPlayer
from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.chunking import (
    GUIDED,
    TRAINED,
    Continuation,
    RealTimeChunking,
    RunningChunk,
    rest_of,
)
from vla_inference.policies.lerobot.flow import sample
from vla_inference.policies.lerobot.rtc import guide_to
from vla_inference.serving import model_thread
from vla_inference.serving.model_thread import ModelSettings
from vla_inference.types import (
    ActionChunk,
    ActionSpec,
    Observation,
    eef_part,
    gripper_part,
    joint_spec,
)

TRAINED_FORM = RealTimeChunking(form=TRAINED)
DT = SPEC.dt
passed_steps = st.floats(0.01, 40, allow_nan=False)


def ramp(steps: int) -> ActionChunk:
    """Positions at the ends of steps: 1 and 2 rad per step."""
    ends = np.arange(1.0, steps + 1)
    return ActionChunk(np.stack([ends, 2 * ends], 1), SPEC)


# -- what is left ---------------------------------------------------------------------------------


@given(st.integers(1, 40), passed_steps)
def test_what_is_left_of_an_even_motion_is_where_it_would_be(steps, passed):
    left = rest_of(ramp(steps), passed)
    whole = math.floor(passed + 1e-6)
    assert max(0, steps - whole - 1) <= len(left) <= max(0, steps - whole)
    ends = passed + np.arange(1, len(left) + 1)
    np.testing.assert_allclose(left, np.stack([ends, 2 * ends], 1), atol=1e-4)


@given(passed_steps, st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=40))
def test_a_gripper_is_never_halfway(passed, gripper):
    spec = joint_spec({"arm": ("lift",)}, ("gripper",))
    rows = np.stack([np.arange(len(gripper)), gripper], 1)
    left = rest_of(ActionChunk(rows, spec), passed)
    assert set(left[:, 1]) <= {0.0, 1.0}
    assert len(np.unique(left[:, 0])) == len(left)


def test_angles_that_wrap_are_those_of_the_nearer_step():
    spec = ActionSpec((eef_part("arm", "eef_pose", "rpy"), gripper_part()))
    rows = np.zeros((3, 7))
    rows[:, 5], rows[:, 0] = (3.1, -3.1, -3.0), (0.0, 1.0, 2.0)
    left = rest_of(ActionChunk(rows, spec), 0.25)
    np.testing.assert_allclose(left[:, 5], [3.1, -3.075], atol=1e-6)
    np.testing.assert_allclose(left[:, 0], [0.25, 1.25], atol=1e-6)


# -- how long answers take ------------------------------------------------------------------------


def running(**more) -> RunningChunk:
    found = RunningChunk(RealTimeChunking(), **more)
    found.executed(ramp(30), 100.0, "go")
    return found


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30))
def test_the_delay_is_the_longest_of_the_last_ten_answers_in_whole_steps(latencies):
    memory = running()
    for latency in latencies:
        memory.answered(50.0, 50.0 + latency)
    longest = max(latencies[-10:])
    delay = memory.after(100.0 + DT, "go").delay
    assert delay * DT >= longest - 1e-6 > (delay - 1) * DT - 2e-6


def test_stretched_steps_are_counted_as_long_as_they_last():
    memory = running(stretch=2.0)
    memory.answered(50.0, 50.35)
    after = memory.after(100.0 + 4 * DT, "go")
    assert after.delay == 4
    np.testing.assert_allclose(after.previous[0], [3.0, 6.0], atol=1e-4)


def test_a_chunk_begins_anew_where_no_old_one_is_its_beginning():
    memory = running()
    assert memory.after(100.1, "go") is not None
    assert memory.after(100.1, "stop") is None  # another instruction
    assert memory.after(99.0, "go") is None  # the clock went back
    assert memory.after(100.0 + 30 * DT, "go") is None  # nothing is left
    memory.executed(ramp(1), 100.0, "go")
    assert memory.after(100.01, "go") is None  # one step is no plan in time
    memory = running()
    memory.drop()
    assert memory.after(100.1, "go") is None


# -- where chunks meet ----------------------------------------------------------------------------


FLOW, CHUNKS, STEPS = SmoothFlow(30), 60, 10


def draw(guide=None, held=None) -> torch.Tensor:
    """[CHUNKS, 30, 2]"""
    return sample(FLOW, torch.randn(CHUNKS, 30, 2), STEPS, guide, held)


def size(x: torch.Tensor) -> float:
    """Root mean square"""
    return float(x.square().mean().sqrt())


def seam(form: RealTimeChunking | None, delay: int, executed: int = 10) -> tuple[float, float]:
    """How far the executed steps of new chunks are from the old ones, and how far it is from the
    last of these to the first new one."""
    torch.manual_seed(0)
    old, guide, held = draw()[:, executed:], None, None
    if form == TRAINED_FORM:
        held = old[:, :delay]
    elif form:
        guide = guide_to(old, delay, 30, form)
    new = draw(guide, held)
    return size(new[:, :delay] - old[:, :delay]), size(new[:, delay] - old[:, delay - 1])


@pytest.fixture(scope="module")
def within() -> float:
    """How far it is from step to step within a chunk."""
    torch.manual_seed(1)
    return size(draw().diff(dim=1))


@pytest.mark.parametrize("delay", [1, 6, 12])
@pytest.mark.parametrize("form", [RealTimeChunking(), RealTimeChunking(schedule="LINEAR")])
def test_guidance_keeps_the_executed_steps_and_goes_on_smoothly(within, form, delay):
    free_off, free_jump = seam(None, delay)
    off, jump = seam(form, delay)
    assert free_off > 1.0 and free_jump > 1.0  # chunks of their own are strangers
    assert off < 0.1
    assert jump < 1.5 * within


@pytest.mark.parametrize("delay", [1, 6, 12])
def test_a_model_trained_for_it_keeps_them_exactly(within, delay):
    off, jump = seam(TRAINED_FORM, delay)
    assert off == 0
    assert jump < 1.5 * within


def test_a_delay_longer_than_the_rest_holds_the_rest():
    policy = AnalyticFlow()
    old = policy.sample()[25:]
    for form in (RealTimeChunking(), TRAINED_FORM):
        new = policy.sample(Continuation(old, 40, form))
        assert new.shape == (30, 2) and np.abs(new[:5] - old).max() < 0.2


def played(form: RealTimeChunking | None, delay: int = 6, **player) -> np.ndarray:
    """Velocities [n, 2] that are played while a model of this delay answers one image after the
    other, a step a period."""
    policy, queue = AnalyticFlow(), JointPlayer(**player)
    memory = RunningChunk(form) if form else None
    found, seen, due, chunk = [], 0, 0, None
    for now in range(300):
        begin = now * DT
        if now == due:
            if chunk is not None:
                queue.accept(seen * DT, DT, [(row, row) for row in chunk.actions.tolist()], begin)
                if memory:
                    memory.answered(seen * DT, begin)
                    memory.executed(chunk, seen * DT, "go")
            after = memory.after(begin, "go") if memory else None
            seen, due, chunk = now, now + delay, ActionChunk(policy.sample(after), SPEC)
        if motion := queue.velocities(begin, begin + DT):
            found.append(motion.values)
    return np.array(found)


def largest_jump(velocities: np.ndarray) -> float:
    """Of the acceleration, from period to period."""
    return float(np.linalg.norm(np.diff(velocities, 2, axis=0), axis=1).max())


def test_motion_across_chunks_is_as_smooth_as_within_one():
    policy = AnalyticFlow()
    alone = max(largest_jump(policy.sample()) for _ in range(30))
    rtc = largest_jump(played(RealTimeChunking(), blend=0.0))
    assert rtc < 1.5 * alone
    assert rtc < 0.5 * largest_jump(played(None, blend=0.1))
    assert rtc < largest_jump(played(None, ensemble=0.1))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "form", "problem"),
    [
        (StubPolicy(), GUIDED, "model stub takes no chunking 'rtc'; leave it empty"),
        (AnalyticFlow(chunking=(GUIDED,)), TRAINED, "no chunking 'rtc_trained'; it takes rtc"),
    ],
)
def test_a_model_that_cannot_is_refused_by_name(monkeypatch, policy, form, problem):
    monkeypatch.setattr(model_thread, "load_policy", lambda *_: policy)
    assert ModelSettings("model", LoadOptions()).load() is policy
    with pytest.raises(VlaError, match=problem):
        ModelSettings("model", LoadOptions(), chunking=form).load()


def test_an_old_chunk_that_is_none_is_refused():
    for previous, delay in ((np.zeros((0, 2)), 1), (np.zeros(3), 1), (np.zeros((3, 2)), -1)):
        with pytest.raises(VlaError, match="the old chunk has shape"):
            Continuation(previous, delay)
    with pytest.raises(VlaError, match="model stub takes no chunking 'rtc'"):
        StubPolicy().continue_chunk(Observation({}), Continuation(np.zeros((3, 7)), 1))
