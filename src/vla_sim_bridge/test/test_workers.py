"""Tests of generation workers, as processes and in Ray: results, errors, dead workers."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
from functools import partial

import pytest

from vla_inference.errors import VlaError
from vla_inference.system.workers import Processes, RayWorkers, WorkerDiedError
from vla_sim_bridge.generation.generate import GenerateConfig, generate

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is optional")


def make_play():
    return play


def make_nothing():
    raise VlaError("there is no task 'X'", "choose another")


def play(index: int):
    if index == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    if index == 99:
        raise OSError(28, "No space left on device")
    return index * index


def run(workers, indices) -> dict:
    found, waiting, running = {}, list(indices), 0
    try:
        while waiting or running:
            while waiting and running < workers.count:
                workers.start(waiting.pop(0))
                running += 1
            done = workers.finished()
            running -= len(done)
            found.update(done)
    finally:
        workers.close()
    return found


def check(start) -> None:
    assert run(start(make_play, 2), range(7)) == {i: i * i for i in range(7)}
    with pytest.raises(WorkerDiedError):
        run(start(make_play, 2), [1, 13, 2, 3])
    with pytest.raises(OSError, match="No space left"):
        run(start(make_play, 2), [1, 99])
    with pytest.raises(VlaError, match="no task 'X'; choose another"):
        run(start(make_nothing, 1), [0])


def test_processes():
    check(Processes)


@pytest.mark.slow
@needs_ray
def test_ray():
    check(partial(RayWorkers, address="local"))


@pytest.mark.slow
@needs_ray
def test_ray_makes_the_same_bytes(tmp_path):
    config = GenerateConfig(task="Stack_D0", episodes=3, seed=5, images=False)
    here = generate(config, tmp_path / "here", parallel=2)
    there = generate(config, tmp_path / "there", parallel=2, ray_address="local")
    assert here.read_bytes() == there.read_bytes()


@needs_ray
def test_a_cluster_that_is_not_there_is_named(tmp_path):
    config = GenerateConfig(task="Stack_D0", episodes=1, images=False)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(VlaError, match=f"no Ray cluster at {address}"):
            generate(config, tmp_path / "data", ray_address=address)
    assert not (tmp_path / "data").exists()
