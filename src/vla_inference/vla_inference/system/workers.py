"""Runs attempts in local processes, or in Ray's on many machines.

Both play the same function, which decides what is handed back and what is written where.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from vla_inference.system.ray_cluster import connect
from vla_inference.system.worker_pool import WorkerPool

Result = tuple[int, Any]  # a number handed to `start`, and what `play` made of it


class WorkerDiedError(Exception):
    """A worker ended (out of memory, a machine switched off); its work must be redone."""


class Workers(Protocol):
    """Runs attempts by number, `count` at a time."""

    count: int

    def start(self, index: int) -> None:
        """Starts attempt `index`."""

    def finished(self) -> list[Result]:
        """Waits for at least one result; raises errors of `play`, and WorkerDiedError."""

    def close(self) -> None:
        """Stops all work, including running attempts."""


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


# A worker process keeps what it plays with: making a simulation takes seconds. It is made with
# the first number rather than at the start, so that what is wrong with it is told as an error.
_make: Callable[[], Callable[[int], Any]] | None = None
_play: Callable[[int], Any] | None = None


def _start_process(make) -> None:
    global _make
    _one_thread()
    _make = make


def _play_in_process(index: int):
    global _play
    assert _make is not None  # by `_start_process`
    _play = _play or _make()
    return _play(index)


class Processes:
    """Local worker processes. make: makes `play` once in each process; both must be picklable."""

    def __init__(self, make: Callable[[], Callable[[int], Any]], count: int):
        self.count = count
        self._pool = WorkerPool(count, _start_process, make)
        self._running: dict = {}

    def start(self, index: int) -> None:
        try:
            self._running[self._pool.submit(_play_in_process, index)] = index
        except BrokenProcessPool as error:
            raise WorkerDiedError from error

    def finished(self) -> list[Result]:
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        try:
            return [(self._running.pop(future), future.result()) for future in done]
        except BrokenProcessPool as error:
            raise WorkerDiedError from error

    def close(self) -> None:
        self._pool.close()


class RayWorkers:
    """On a Ray cluster, one actor per worker; address "local" starts one on this machine.

    count: None for one per core of the cluster. An actor that dies is a `WorkerDiedError`.
    """

    def __init__(self, make: Callable[[], Callable[[int], Any]], count: int | None, address: str):
        self._ray = ray = connect(address, cpus=count)
        self.count = count or int(ray.cluster_resources().get("CPU", 1))

        @ray.remote(num_cpus=1)
        class Actor:
            def __init__(self, make):
                _one_thread()
                self.make, self.play = make, None

            def run(self, index):
                self.play = self.play or self.make()
                return self.play(index)

        actor: Any = Actor  # what `ray.remote` made of it
        self._free = [actor.remote(make) for _ in range(self.count)]
        self._running: dict = {}

    def start(self, index: int) -> None:
        actor = self._free.pop()
        self._running[actor.run.remote(index)] = index, actor

    def finished(self) -> list[Result]:
        done, _ = self._ray.wait(list(self._running))
        results = []
        for reference in done:
            index, actor = self._running.pop(reference)
            try:
                results.append((index, self._ray.get(reference)))
            except self._ray.exceptions.RayActorError as error:
                raise WorkerDiedError from error
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            self._free.append(actor)
        return results

    def close(self) -> None:
        self._ray.shutdown()
