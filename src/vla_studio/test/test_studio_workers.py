"""Tests of the lasting processes that read datasets."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from vla_inference.errors import VlaError
from vla_studio.web import workers
from vla_studio.web.workers import Workers

# Stands for `vla data browse PATH`: says which process answers, and does as it is told.
STUB = """
import json, os, sys, time
path = sys.argv[-1]
if "broken" in path:
    sys.exit("vla data: it is broken; copy it again")
print("noise " * 50000, file=sys.stderr)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "hang":
        time.sleep(600)
    if asked["do"] == "die":
        os._exit(3)
    for n in range(asked.get("steps", 0)):
        print(json.dumps({"progress": [n + 1, asked["steps"]]}), flush=True)
    answer = {"error": "no"} if asked["do"] == "refuse" else {"pid": os.getpid()}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def run(monkeypatch):
    """Runs a coroutine with workers whose processes are stubs; none is left afterwards."""
    monkeypatch.setattr(workers, "VLA", (sys.executable, "-c", STUB))

    def go(test, **settings):
        async def with_workers():
            made = Workers(**settings)
            watching = asyncio.create_task(made.watch())
            await asyncio.sleep(0)
            try:
                await test(made)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
            assert not len(made)

        asyncio.run(with_workers())

    return go


async def pid(made, path):
    return (await made.ask(path, {"do": "episode"}))["pid"]


async def ended(process):
    """Waits for a process's end."""
    for _ in range(500):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        await asyncio.sleep(0.02)
    return False


def test_one_process_answers_until_its_dataset_changes(run, tmp_path):
    path = tmp_path / "demo.hdf5"
    path.write_text("one")

    async def test(made):
        first = await pid(made, path)
        assert await pid(made, path) == first
        path.write_text("another")
        assert await pid(made, path) != first
        assert await ended(first)

    run(test)


def test_only_a_few_processes_run_and_unused_ones_end(run, tmp_path):
    paths = [tmp_path / name for name in "abc"]

    async def test(made):
        first, second, third = [await pid(made, path) for path in paths]
        assert await ended(first) and len(made) == 2
        assert await ended(second) and await ended(third)
        assert not len(made)

    run(test, unused=0.5)


def test_a_process_that_fails_is_replaced(run, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS", 2.0)
    path = tmp_path / "demo.hdf5"

    async def test(made):
        first = await pid(made, path)
        with pytest.raises(VlaError, match="no"):
            await made.ask(path, {"do": "refuse"})
        assert await pid(made, path) == first  # an answer like any other
        for how in ("die", "hang"):
            with pytest.raises(VlaError):
                await made.ask(path, {"do": how})
        assert await pid(made, path) != first and await ended(first)

    run(test)


def test_what_cannot_be_read_is_said_in_the_readers_words(run, tmp_path):
    async def test(made):
        with pytest.raises(VlaError, match=r"^it is broken; copy it again"):
            await made.ask(tmp_path / "broken", {"do": "episode"})

    run(test)


def test_progress_comes_before_the_answer(run, tmp_path):
    heard = []

    async def test(made):
        request = {"do": "compare", "steps": 3}
        await made.ask(tmp_path / "demo", request, lambda *told: heard.append(told))

    run(test)
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_all_busy_is_said(run, tmp_path):
    async def test(made):
        one = asyncio.create_task(made.ask(tmp_path / "a", {"do": "hang"}))
        await asyncio.sleep(0.1)
        with pytest.raises(VlaError, match="1 other datasets are being read"):
            await pid(made, tmp_path / "b")
        one.cancel()

    run(test, most=1)
