"""Tests of the latest-value slot, the rate meter and the model thread."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.errors import VlaError
from vla_inference.policies.base import Needs, Policy
from vla_inference.serving.model_thread import ModelThread
from vla_inference.serving.rate_meter import RateMeter, percentile
from vla_inference.system.latest_value import LatestValue
from vla_inference.types import ActionChunk, Observation, eef_delta_spec


@given(st.lists(st.sampled_from(["put", "take"])))
def test_the_newest_is_taken_and_every_value_accounted_for(actions):
    slot, newest, taken = LatestValue(), None, 0
    for number, action in enumerate(actions, start=1):
        if action == "put":
            assert slot.put(number) == (newest is None)
            newest = number
        else:
            assert slot.take(timeout=0) == newest
            taken, newest = taken + (newest is not None), None
    assert slot.received == taken + slot.dropped + (newest is not None)


def test_taking_waits_for_a_value():
    slot, got = LatestValue(), []
    thread = threading.Thread(target=lambda: got.append(slot.take(timeout=10)))
    thread.start()
    slot.put("value")
    thread.join(10)
    assert got == ["value"]


def test_closing_wakes_a_waiting_thread():
    slot, got = LatestValue(), []
    thread = threading.Thread(target=lambda: got.append(slot.take()))
    thread.start()
    slot.close()
    thread.join(10)
    assert got == [None] and not thread.is_alive()


def test_a_closed_slot_gives_nothing_more():
    slot = LatestValue()
    slot.put(1)
    slot.close()
    assert slot.take() is None and slot.closed


def test_reset_forgets_value_and_counts():
    slot = LatestValue()
    slot.put(1)
    slot.put(2)
    slot.reset()
    assert slot.take(timeout=0) is None and (slot.received, slot.dropped) == (0, 0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_percentiles_are_numpys(values, share):
    assert percentile(values, share) == pytest.approx(
        np.percentile(values, 100 * share), rel=1e-9, abs=1e-6
    )


def test_of_nothing_there_is_no_percentile_and_no_rate():
    watch = RateMeter()
    assert math.isnan(watch.median) and math.isnan(watch.last) and watch.rate(3.0) == 0


def test_a_steady_beat_has_its_rate():
    watch = RateMeter(window=5)
    for i in range(100):
        watch.add(10.0, 0.1 * i)
    assert watch.rate(9.9) == pytest.approx(10)
    assert (watch.median, watch.p95, watch.last) == (10, 10, 10)


def test_the_rate_falls_when_nothing_comes_and_is_zero_in_the_end():
    watch = RateMeter(window=5)
    for i in range(20):
        watch.add(10.0, 0.1 * i)
    rates = [watch.rate(t) for t in (1.9, 3.0, 5.0, 6.0, 9.0)]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(10)
    assert rates[-1] == 0 and math.isnan(watch.median)


def test_only_the_window_counts():
    watch = RateMeter(window=1)
    watch.add(1000.0, 0.0)
    watch.add(1.0, 2.0)
    assert watch.p95 == 1


class Still(Policy):
    """A policy that does nothing but tell what happened to it."""

    name, placement, needs, chunk = "still", "nothing", Needs(), 1

    def __init__(self):
        self.threads, self.closed = [], threading.Event()

    def action_spec(self):
        return eef_delta_spec()

    def predict(self, observations):
        self.threads.append(threading.get_ident())
        return [ActionChunk(np.zeros((1, 7)), eef_delta_spec()) for _ in observations]

    def close(self):
        self.threads.append(threading.get_ident())
        self.closed.set()


def test_a_model_loads_works_and_ends_in_one_thread_that_is_not_ours():
    policy, answered = Still(), threading.Event()

    def load():
        policy.threads.append(threading.get_ident())
        return policy

    def answer(model, item):
        model.policy.act(Observation({}))
        answered.set()

    model = ModelThread(load, answer)
    model.start()
    model.latest.put("last")
    assert answered.wait(10)
    assert model.stop(10) and policy.closed.is_set() and model.policy is None
    # load, warm up twice, answer, close
    assert len(policy.threads) == 5 and len(set(policy.threads)) == 1
    assert policy.threads[0] != threading.get_ident()


def test_an_error_of_loading_is_raised_where_it_was_started():
    def load():
        raise KeyError("model")

    model = ModelThread(load, print)
    with pytest.raises(KeyError, match="model"):
        model.start()
    assert model.stop(10)


def test_a_policy_that_cannot_be_warmed_up_is_closed():
    class Broken(Still):
        def predict(self, observations):
            raise VlaError("not finite", "check its weights")

    policy = Broken()
    with pytest.raises(VlaError, match="not finite"):
        ModelThread(lambda: policy, print).start()
    assert policy.closed.is_set()


def test_a_busy_model_does_not_hold_up_the_stop():
    begun, go_on = threading.Event(), threading.Event()

    def answer(_, item):
        begun.set()
        go_on.wait(20)

    model = ModelThread(Still, answer)
    model.start()
    model.latest.put(1)
    assert begun.wait(10)
    assert not model.stop(0.01)
    go_on.set()
    assert model.stop(10)
