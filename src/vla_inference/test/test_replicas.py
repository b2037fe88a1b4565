"""Tests of `vla serve --ray`: replicas behind the same sockets, loads, dead replicas, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from model_server import IMAGE, connected, post, seen, serving, talk

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.main import main
from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.serving.openpi.settings import ReplicaSettings, ServeSettings
from vla_inference.types import Observation

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("starlette") is None,
    reason="Ray Serve is optional",
)
CLIENTS, ANSWERS = 8, 12
MARK = uuid.uuid4().hex


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def served(model):
    os.environ["VLA_TEST_MARK"] = MARK
    options = ("--ray", "--replicas", "2", "--num-threads", "1")
    try:
        with serving(model, *options) as (process, url):
            yield process, url
    finally:
        del os.environ["VLA_TEST_MARK"]


def replicas() -> set[int]:
    """The processes of our replicas."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            name, environment = ((path / n).read_bytes() for n in ("cmdline", "environ"))
            if name.startswith(b"ray::ServeReplica:vla-") and MARK.encode() in environment:
                found.add(int(path.name))
    return found


@pytest.mark.slow
@needs_ray
def test_many_clients_get_the_models_answers(served, model):
    policy = load_policy(model, LoadOptions(device="cpu"))
    expected = [policy.act(Observation({"a": IMAGE + n}, "go")).actions for n in range(CLIENTS)]

    async def ask(number):
        async with connected(served[1]) as client:
            assert client.metadata["model"] == "tiny"
            for _ in range(ANSWERS):
                reply = await client.ask(seen(**{"observation/image": IMAGE + number}))
                np.testing.assert_allclose(reply["actions"], expected[number], atol=1e-5)

    async def go():
        await asyncio.gather(*map(ask, range(CLIENTS)))

    talk(go)


@pytest.mark.slow
@needs_ray
def test_refusals_and_rest_are_those_of_any_server(served):
    async def go():
        async with connected(served[1]) as client:
            assert "takes 1 images, 0 came" in await client.ask({"prompt": "go"})
            assert "instruction is empty" in await client.ask(seen(prompt=""))
            await client.say(seen())
            for _ in range(3):
                await client.say(seen())
            replies = [await client.hear() for _ in range(4)]
            assert "actions" in replies[0] and "actions" in replies[-1]

    talk(go)
    http = served[1].replace("ws://", "http://")
    code, reply = post(http, {"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}})
    assert code == 400 and "dtype '|O'" in reply["error"]


@pytest.mark.slow
@needs_ray
def test_a_replica_that_dies_costs_an_answer_at_most_and_is_replaced(served):
    _, url = served
    before = replicas()
    assert len(before) == 2

    async def go():
        async with connected(url) as client:
            os.kill(min(before), signal.SIGKILL)
            lost = 0
            for _ in range(60):
                reply = await client.ask(seen())
                lost += isinstance(reply, str)
                await asyncio.sleep(0.05)
            assert lost <= 2 and "actions" in reply

    talk(go)


@pytest.mark.slow
@needs_ray
def test_its_end_ends_the_replicas(served):
    process, _ = served
    assert replicas()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    end = time.monotonic() + 30
    while replicas():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_options_that_do_not_go_together_are_refused(capsys):
    assert main(["serve", "x", "--replicas", "2"]) == 2
    assert "are for --ray" in capsys.readouterr().err
    with pytest.raises(VlaError, match="cannot change the model of replicas"):
        ReplicaSettings(ray=True).check(ServeSettings(model_root="models"))
    with pytest.raises(VlaError, match="Ray chooses the GPU"):
        ReplicaSettings(ray=True).check(ServeSettings(device="cuda:1"))


def test_without_ray_it_says_what_to_install(capsys, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", str(model), "--ray", "--device", "cpu"]) == 2
    assert "requirements/ray.txt" in capsys.readouterr().err
