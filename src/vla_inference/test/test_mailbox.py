"""The mailbox keeps the newest, the watch measures, the worker starts and stops as asked."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.serving.latest_value import LatestValue
from vla_inference.serving.rate_meter import RateMeter, percentile
from vla_inference.serving.worker import Worker


@given(st.lists(st.sampled_from(["put", "take"])))
def test_the_newest_is_taken_and_every_letter_accounted_for(actions):
    box, newest, taken = LatestValue(), None, 0
    for number, action in enumerate(actions, start=1):
        if action == "put":
            assert box.put(number) == (newest is None)
            newest = number
        else:
            assert box.take(timeout=0) == newest
            taken, newest = taken + (newest is not None), None
    assert box.received == taken + box.dropped + (newest is not None)


def test_taking_waits_for_a_letter():
    box, got = LatestValue(), []
    thread = threading.Thread(target=lambda: got.append(box.take(timeout=10)))
    thread.start()
    box.put("letter")
    thread.join(10)
    assert got == ["letter"]


def test_closing_wakes_whoever_waits():
    box, got = LatestValue(), []
    thread = threading.Thread(target=lambda: got.append(box.take()))
    thread.start()
    box.close()
    thread.join(10)
    assert got == [None] and not thread.is_alive()


def test_a_closed_mailbox_gives_nothing_more():
    box = LatestValue()
    box.put(1)
    box.close()
    assert box.take() is None and box.closed


def test_reset_forgets_letter_and_counts():
    box = LatestValue()
    box.put(1)
    box.put(2)
    box.reset()
    assert box.take(timeout=0) is None and (box.received, box.dropped) == (0, 0)


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


def test_a_worker_loads_and_works_in_one_thread_that_is_not_ours():
    threads, done = [], threading.Event()

    def handle(item):
        threads.append(threading.get_ident())
        if item == "last":
            done.set()

    box = LatestValue()
    worker = Worker(lambda: threads.append(threading.get_ident()), handle, box)
    worker.start()
    box.put("last")
    assert done.wait(10)
    assert worker.stop(10)
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_what_goes_wrong_in_loading_is_told_to_whoever_starts():
    def load():
        raise KeyError("model")

    worker = Worker(load, print, LatestValue())
    with pytest.raises(KeyError, match="model"):
        worker.start()
    assert worker.stop(10)


def test_a_busy_worker_does_not_hold_up_the_stop():
    begun, go_on = threading.Event(), threading.Event()

    def handle(_):
        begun.set()
        go_on.wait(20)

    box = LatestValue()
    worker = Worker(lambda: None, handle, box)
    worker.start()
    box.put(1)
    assert begun.wait(10)
    assert not worker.stop(0.01)
    go_on.set()
    assert worker.stop(10)
