"""Generates demonstrations with parallel workers, one file per attempt, then one dataset.

Attempt i is a function of (seed, i) alone, and the kept episodes are the first N successful
attempts by number, so the result does not depend on how many workers made it, or where. Every
success is written under its own name at once and renamed into place, so kill -9 loses none; a
second call takes up where the first was stopped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.system.files import only_one, writable
from vla_inference.system.workers import Processes, RayWorkers, WorkerDiedError, Workers
from vla_sim_bridge.envs.other_python.process import ProcessLostError
from vla_sim_bridge.envs.protocol import check_installed, make_expert_world
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.envs.rover.world import RoverWorld
from vla_sim_bridge.generation import elsewhere, rover
from vla_sim_bridge.generation.attempt import Attempt, make_attempt
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.corrections import attempt as corrected
from vla_sim_bridge.generation.endings import attempt as endings
from vla_sim_bridge.generation.shards import (
    AttemptShards,
    DamagedPartError,
    claim,
    merge,
    recall,
    store,
    to_bytes,
)
from vla_sim_bridge.tasks import get_task
from vla_sim_bridge.tasks.rover import RoverTask

MAX_DEATHS = 3  # of workers, without an attempt in between


@dataclass
class GenerationProgress:
    """Reported after each attempt."""

    successes: int
    attempts: int
    wanted: int
    seconds: float

    @property
    def rate(self) -> float:
        """Successes per second in this call."""
        return self.successes / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        return (self.wanted - self.successes) / self.rate if self.rate else float("inf")


def generate(
    config: GenerateConfig,
    output: str | os.PathLike,
    parallel: int | None = None,
    report: Callable[[GenerationProgress], None] = lambda _: None,
    ray_address: str | None = None,
    start_workers: Callable[..., Workers] | None = None,
) -> Path:
    """Generates `config.episodes` successes into `output`/demo.hdf5 and returns that path.

    parallel: workers; None or -1 for one per core, of the Ray cluster where there is one.
    ray_address: of a Ray cluster, or "local". start_workers: called with what makes the function
    that plays an attempt, in place of both.
    """
    config.check()
    task = get_task(config.task)
    if task.package:
        elsewhere.check(config)
        check_installed(task)
    if task.robot == "Rover":
        rover.check(config)
    if config.method == "corrected":
        corrected.check(config)
    if config.method == "endings":
        endings.check(config)
    output = Path(output)
    final, parts = output / "demo.hdf5", output / "parts"
    sources = _read_sources(config, task)
    begun_before = (output / "generate.json").exists()
    try:
        if final.exists():
            claim(output, asdict(config), _defaults())
            return final
        writable(output, "folder")
        with only_one(output, "vla generate"):
            claim(output, asdict(config), _defaults())
            parts.mkdir(parents=True, exist_ok=True)
            make = partial(_make_play, config, sources, None if ray_address else str(parts))
            start = start_workers or _starter(parallel, ray_address)
            _fill(config, parts, final, partial(start, make), report)
    except VlaError:
        if not begun_before:
            _unclaim(output)
        raise
    except OSError as error:
        if isinstance(error, FileExistsError | PermissionError | NotADirectoryError):
            raise VlaError(f"{output} cannot be written ({error})", "choose another") from error
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        raise VlaError(
            f"{output}: {'the disk is full' if full else f'writing failed ({error})'}",
            "make room; the same command resumes, nothing made so far is lost",
        ) from error
    return final


def _unclaim(output: Path) -> None:
    """Removes the traces of a request that could not start, so that a corrected one can."""
    with contextlib.suppress(OSError):
        if not any((output / "parts").iterdir()):
            (output / "parts").rmdir()
            (output / "generate.json").unlink()
            output.rmdir()


def _fill(config, parts: Path, final: Path, start, report) -> None:
    """Runs attempts until there are enough successes, and merges them."""
    ledger = recall(parts)
    before, begun, deaths = ledger.good, time.perf_counter(), 0

    def tell() -> None:
        seconds = time.perf_counter() - begun
        good = ledger.good - before
        report(GenerationProgress(good, len(ledger), config.episodes - before, seconds))

    while True:
        known = len(ledger)
        try:
            if not ledger.enough(config.episodes):
                _work(config, parts, ledger, start, tell)
            merge(config, parts, ledger, final)
            return
        except DamagedPartError:
            ledger = recall(parts)
        except (WorkerDiedError, ProcessLostError) as error:
            # Killed (out of memory, say), it or its world. What it was at is done again.
            ledger = recall(parts)
            deaths = deaths + 1 if len(ledger) == known else 0
            if deaths == MAX_DEATHS:
                if isinstance(error, ProcessLostError):
                    raise
                raise VlaError(
                    "workers die before they finish an episode",
                    "use fewer with --parallel: memory may be short; the same command resumes",
                ) from error


def _work(config, parts: Path, ledger: AttemptShards, start, tell) -> None:
    workers: Workers = start()
    running = 0
    try:
        while not ledger.enough(config.episodes):
            while running < workers.count and _worth_starting(config, ledger, running, workers):
                workers.start(ledger.take())
                running += 1
            for index, (outcome, content, stored) in workers.finished():
                running -= 1
                if not stored:
                    store(parts, index, outcome, content)
                ledger.add(index, outcome)
                tell()
    finally:
        workers.close()


def _worth_starting(config, ledger: AttemptShards, running: int, workers: Workers) -> bool:
    """Whether another attempt may still be needed, given those known and running."""
    return not running or ledger.good + running < config.episodes + workers.count


def _starter(parallel: int | None, ray_address: str | None) -> Callable[..., Workers]:
    count = None if parallel in (None, -1) else max(1, parallel)
    if ray_address:
        return lambda make: RayWorkers(make, count, ray_address)
    return lambda make: Processes(make, count or os.cpu_count() or 1)


def _make_play(config: GenerateConfig, sources, parts: str | None) -> Callable[[int], Any]:
    """A worker's function that runs attempts: index -> (outcome, content, whether it is
    stored).

    parts: where the worker itself stores what it made; None: the caller does.
    """
    attempt = _attempts(config, sources)

    def play(index: int) -> tuple[str, bytes | None, bool]:
        made = attempt(index)
        content = None
        if made.success or config.keep_failures:
            packed = None if config.compression == "none" else config.compression
            content = to_bytes(made.episode, packed)
        if parts is None:
            return made.outcome, content, False
        store(Path(parts), index, made.outcome, content)
        return made.outcome, None, True

    return play


def _attempts(config: GenerateConfig, sources) -> Callable[[int], Attempt]:
    """Makes the simulation, and the function that runs an attempt in it."""
    task = get_task(config.task)
    size = config.camera_width, config.camera_height
    if task.package:
        cameras = config.cameras if config.images else ()
        world = make_expert_world(task, cameras, *size)
        return partial(elsewhere.make_attempt, world, config)
    if isinstance(task, RoverTask):
        cameras = config.cameras if config.images else ()
        return partial(rover.make_attempt, RoverWorld(task, cameras, *size), config)
    sim = Simulation(
        config.task,
        config.cameras,
        *size,
        randomize=config.look(),
    )
    if config.method == "corrected":
        return partial(_corrected, sim, config, corrected.load_act(config))
    if config.method == "endings":
        act = corrected.load_act(config) if config.model else None
        return lambda index: endings.make_attempt(sim, config, index, act)
    demonstrations = None
    if config.method == "mimicgen":
        from vla_sim_bridge.mimicgen.source_demos import pose_sources

        # sources are posed in the plain world, before anything is drawn
        demonstrations = pose_sources(sim, sources)
    return lambda index: make_attempt(sim, config, index, demonstrations)


def _corrected(sim: Simulation, config: GenerateConfig, act, index: int) -> Attempt:
    return corrected.make_attempt(sim, config, index, act)


def _read_sources(config: GenerateConfig, task):
    if config.method != "mimicgen":
        return None
    from vla_sim_bridge.mimicgen.source_demos import read_sources

    return read_sources(task, config.source)


def _defaults() -> dict:
    return asdict(GenerateConfig())
