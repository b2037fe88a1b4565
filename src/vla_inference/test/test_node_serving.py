"""Tests of an inference node that serves its model over the network as well."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import numpy as np
import pytest
from graphs import IMAGE, domain, inference_graphs
from lifecycle_msgs.msg import Transition
from model_server import StubPolicy, connected, running, seen, talk

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.errors import ObservationError
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.serving.model_thread import ModelThread
from vla_inference.serving.openpi import batcher as batcher_module
from vla_inference.serving.openpi.batcher import Batcher
from vla_inference.serving.openpi.metrics import ServerMetrics
from vla_inference.system import latest_value
from vla_inference.system.latest_value import LatestValue
from vla_inference.types import Observation
from vla_msgs.srv import LoadModel

PORT = 18000 + domain()
URL = f"ws://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_random_checkpoint(folder / "one", seed=1)
    write_random_checkpoint(folder / "two", seed=2)
    return folder


@pytest.fixture
def graph(root):
    defaults = {"model": str(root / "one"), "instruction": "stack it", "model_root": str(root)}
    with inference_graphs(**defaults, num_threads=1, serve_port=PORT) as make:
        yield make


def served(observation=None) -> np.ndarray:
    async def go():
        async with connected(URL) as client:
            return (await client.ask(observation or seen()))["actions"]

    return talk(go)


def test_the_network_and_the_robot_get_the_same_answers(graph):
    g = graph()
    g.meet()
    chunk = msg_to_chunk(g.answer(g.frame())).actions
    np.testing.assert_array_equal(served({"image": IMAGE, "prompt": "stack it"}), chunk)
    assert g.node.diagnose()[2]["answered to clients"] == 1
    g.until(lambda: g.node.diagnose()[2]["clients"] == 0, "the client's end")


def test_the_robot_is_answered_while_clients_flood_the_node(graph):
    g = graph()
    g.meet()
    ending, answers = threading.Event(), []

    async def flood():
        async with connected(URL) as client:
            while not ending.is_set():
                answers.append(await client.ask(seen()))

    threads = [threading.Thread(target=talk, args=(flood,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            g.answer(g.frame())
            g.idle(0.05)
        g.until(lambda: len(answers) > 8, "answers to the network")
    finally:
        ending.set()
        for thread in threads:
            thread.join(30)


def test_a_new_model_is_new_to_the_networks_clients_as_well(graph, root):
    g = graph()
    before = served()

    async def go():
        async with connected(URL) as client:
            loading = asyncio.to_thread(
                g.call, LoadModel, "inference/load_model", LoadModel.Request(model="two")
            )
            assert (await loading).success
            assert await client.hear() is None and client.close_code == 1012

    talk(go)
    after = served()
    expected = g.node.policy.act(Observation({"image": IMAGE}, "go")).actions
    assert g.node.policy.name == "two" and (before != after).any()
    assert after.shape == expected.shape


def test_clean_up_ends_it_and_configure_begins_it_again(graph):
    g = graph()

    async def go():
        async with connected(URL) as client:
            assert await asyncio.to_thread(g.change, Transition.TRANSITION_DEACTIVATE)
            assert "actions" in await client.ask(seen())  # it is the robot that is not moved
            assert await asyncio.to_thread(g.change, Transition.TRANSITION_CLEANUP)
            assert await client.hear() is None and client.close_code == 1001

    talk(go)
    with pytest.raises(OSError):
        served()
    assert g.change(Transition.TRANSITION_CONFIGURE)
    assert served().shape[1] == 7


def test_a_port_that_is_taken_and_an_open_address_are_refused_by_name(graph):
    with running(StubPolicy(), port=PORT):
        g = graph(start=False)
        assert not g.change(Transition.TRANSITION_CONFIGURE)
        assert f"cannot listen on 127.0.0.1:{PORT}" in g.node.failure
    assert g.change(Transition.TRANSITION_CONFIGURE)
    g = graph(start=False, serve_host="0.0.0.0")
    assert not g.change(Transition.TRANSITION_CONFIGURE)
    assert "a node: serve_key_file" in g.node.failure


# -- the time between the robot's images ------------------------------------------------------


def test_the_next_value_is_expected_by_the_intervals_of_the_last_ones(monkeypatch):
    now = 100.0
    monkeypatch.setattr(latest_value.time, "monotonic", lambda: now)
    slot = LatestValue()
    assert slot.due() == math.inf
    for now in (100.0, 100.1, 100.2, 100.3):  # noqa: B007 - the slot's clock
        slot.put("image")
        assert slot.due() == 0
        slot.take()
    now = 100.33
    assert slot.due() == pytest.approx(0.07)
    now = 100.45
    assert slot.due() == 0  # overdue: it may come at any moment
    now = 100.7
    assert slot.due() == math.inf  # they come no more


def test_observations_are_answered_only_where_there_is_time(monkeypatch):
    policy = StubPolicy()
    model = ModelThread(lambda: policy)
    model.start()
    batcher = Batcher(model, 2, ServerMetrics())
    assert model.stop(10)  # from here on the test is its thread
    model.policy = policy
    batcher._closed = False

    def ask(client):
        return batcher.submit(client, Observation({"a": IMAGE}, "go"))

    first, second, third = map(ask, "abc")
    assert batcher._work(0.9) == batcher_module.RETRY and not first.done()
    assert batcher._work(1.0) == 0 and first.done() and not second.done()
    assert batcher._work(math.inf) is None and second.done() and third.done()
    batcher._closed = False
    late = ask("d")
    monkeypatch.setattr(batcher_module, "PATIENCE", 0.0)
    time.sleep(0.01)
    assert batcher._work(0.0) is None
    with pytest.raises(ObservationError, match="busy with its own robot"):
        late.result(0)


def test_a_value_comes_before_the_observations_that_wait():
    order, begun, go_on = [], threading.Event(), threading.Event()

    class Recording(StubPolicy):
        def predict(self, observations):
            order.extend(o.instruction for o in observations)
            return super().predict(observations)

    def answer(model, value):
        order.append(value)
        begun.set()
        assert go_on.wait(10)

    model = ModelThread(Recording, answer)
    model.start()
    batcher = Batcher(model, 1, ServerMetrics())
    order.clear()
    model.latest.put("robot 1")
    assert begun.wait(10)
    futures = [batcher.submit(c, Observation({"a": IMAGE}, c)) for c in "ab"]
    model.latest.put("robot 2")
    go_on.set()
    assert all(f.result(10) for f in futures)
    assert order[:2] == ["robot 1", "robot 2"] and sorted(order[2:]) == ["a", "b"]
    assert model.stop(10)
