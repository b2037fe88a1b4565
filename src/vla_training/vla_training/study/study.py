"""`vla study`: trains a grid of models at equal cost and evaluates them in closed loop.

A study's folder holds study.json (what was asked, how many steps follow), for each cell
`cells/NAME/` with `checkpoint/`, trained.json and result.json, each whole or not there, and from
the first finished cell on results.json, report.md and success.png. The same command continues a
killed study.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla_inference.checkpoints.safetensors_io import read_json
from vla_inference.errors import VlaError
from vla_inference.system import progress
from vla_inference.system.files import LOCK, only_one
from vla_inference.system.worker_pool import WorkerPool
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_sim_bridge.evaluation.report import write_json
from vla_sim_bridge.evaluation.rollout import summarise
from vla_sim_bridge.tasks import get_task
from vla_training.study import worker
from vla_training.study.claim import check_same
from vla_training.study.config import HELD_OUT, Cell, StudyConfig
from vla_training.study.report import write_report

PERIOD = 2.0  # seconds between two looks at how far training is
SHARE = 0.85  # of the minutes left that is planned for, the rest is for reading and writing

Say = Callable[[str], None]


class Inline(Executor):
    """Runs tasks immediately, in this process."""

    def submit(self, function, /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # any error: `result` raises it again, as a pool's does
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing to do."""


Pool = Inline | WorkerPool


class Study:
    """A running study: its cells and what is left to do."""

    def __init__(self, config: StudyConfig, say: Say = print):
        config.check()
        get_task(config.task)
        self.output, self.say = Path(config.output), say
        available = torch.cuda.device_count()
        self.gpus = available if config.devices is None else config.devices
        if not 0 <= self.gpus <= available:
            raise VlaError(
                f"{self.gpus} GPUs were requested, there are {available}", "ask for fewer"
            )
        self.plan = self._claim(config.identity())
        self.config = config
        if not config.data:
            made = tuple((size, self._generate(config, size)) for size in config.sizes)
            self.config = replace(config, generated=made)
        self.results: dict[Cell, dict[str, Any]] = {}
        self.begun = time.perf_counter()

    def _claim(self, identity: dict[str, Any]) -> dict[str, Any]:
        path = self.output / "study.json"
        if not path.is_file():
            if self.output.exists() and (
                not self.output.is_dir() or any(p.name != LOCK for p in self.output.iterdir())
            ):
                raise VlaError(f"{self.output} is not empty, and no study", "choose another")
            plan = {"settings": identity}
            write_json(path, plan)
            return plan
        plan = read_json(path)
        check_same(self.output, plan.get("settings", {}), identity)
        return plan

    def _generate(self, config: StudyConfig, size: int) -> str:
        """Of each image size the same episodes."""
        from vla_sim_bridge.generation.generate import GenerateConfig, generate

        wanted = max(config.episodes) + HELD_OUT
        pixels = f" of {size} x {size} pixels" if size else ""
        self.say(f"generating {wanted} episodes of {config.task}{pixels}")
        made = GenerateConfig(task=config.task, episodes=wanted)
        if size:
            made = replace(made, camera_width=size, camera_height=size)

        def tell(done) -> None:
            progress.report(0, 0, f"generated {done.successes} of {wanted}")

        output = self.output / (f"data-{size}" if size else "data")
        return str(generate(made, output, config.parallel or 1, tell))

    # -- the plan -----------------------------------------------------------------------------

    def _decide(self, trainers: Pool) -> None:
        """Decides the number of steps of each cell and stores it in study.json."""
        if "steps" in self.plan:
            return
        c, slots = self.config, max(1, self.gpus)
        found = [f.result() for f in [trainers.submit(worker.survey, c) for _ in range(slots)]]
        episodes, frames = found[0]["episodes"], found[0]["frames"]
        per_pass = frames / episodes / c.batch_size  # steps
        if c.minutes:
            speed = min(f["samples_per_s"] for f in found)
            left = 60 * c.minutes - (time.perf_counter() - self.begun)
            rounds = -(-len(c.cells([0])) // slots)
            steps = int(SHARE * left / rounds * speed / c.batch_size)
            if steps < 1:
                raise VlaError(
                    f"{c.minutes:g} minutes are too few for {len(c.cells([0]))} cells at "
                    f"{speed:.0f} samples/s",
                    "give more minutes, fewer seeds or fewer numbers of episodes",
                )
            passes = {round(steps / per_pass) or 1: steps}
        else:
            passes = {p: max(1, round(p * per_pass)) for p in c.passes}
        self.plan |= {
            "data_episodes": episodes,
            "data_frames": frames,
            "steps": {str(p): s for p, s in passes.items()},
        }
        write_json(self.output / "study.json", self.plan)

    # -- the work -----------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Does the remaining work; returns the content of results.json."""
        trainers, players = self._executors()
        try:
            self._decide(trainers)
            self._work(trainers, players)
        except BrokenProcessPool as error:
            raise VlaError(
                "a process of the study has ended, perhaps out of memory",
                "the same command continues; lower --parallel or --batch-size",
            ) from error
        finally:
            for pool in (trainers, players):  # a cell may last for hours
                pool.close()
        return self._report()

    def _executors(self) -> tuple[Pool, Pool]:
        if not self.config.parallel:
            return Inline(), Inline()
        context = multiprocessing.get_context("spawn")
        devices = context.Queue()
        for i in range(max(1, self.gpus)):
            devices.put(f"cuda:{i}" if self.gpus else "cpu")
        count = max(1, self.gpus)
        return (
            WorkerPool(count, worker.take_device, devices),
            WorkerPool(self.config.parallel, worker.take_core),
        )

    def _folder(self, cell: Cell) -> Path:
        return self.output / "cells" / cell.name

    def _work(self, trainers: Pool, players: Pool) -> None:
        steps = {int(p): s for p, s in self.plan["steps"].items()}
        cells = self.config.cells(list(steps))
        self.say(
            f"{len(cells)} cells; "
            + ", ".join(f"{s} steps for {p} passes" for p, s in steps.items())
        )
        waiting: list[Cell] = []
        training: dict[Any, Any] = {}
        playing: dict[Any, Any] = {}
        played: dict[Cell, list[EpisodeResult]] = {}
        for cell in cells:
            if (self._folder(cell) / "result.json").is_file():
                self.results[cell] = read_json(self._folder(cell) / "result.json")
            else:
                waiting.append(cell)
        while waiting or training or playing:
            while waiting and len(training) < max(1, self.gpus):
                cell = waiting.pop(0)
                done = self._folder(cell) / "trained.json"
                if done.is_file():
                    future: Future = Future()
                    future.set_result(read_json(done))
                else:
                    how = (self.config, cell, steps[cell.passes], str(self._folder(cell)))
                    future = trainers.submit(worker.train_cell, *how)
                training[future] = cell
            finished, _ = wait([*training, *playing], PERIOD, FIRST_COMPLETED)
            for future in sorted(finished, key=training.__contains__):  # what is played, first
                if future in training:
                    cell = training.pop(future)
                    told = future.result()
                    self.say(
                        f"{cell.name}: trained, loss {told['loss']:.4f}, "
                        f"{told['samples_per_s']} samples/s"
                    )
                    where = str(self._folder(cell) / "checkpoint")
                    played[cell] = []
                    for i in range(self.config.eval_episodes):
                        task = (self.config, where, i, cell.image_size)
                        playing[players.submit(worker.play, *task)] = cell
                else:
                    cell = playing.pop(future)
                    played[cell].append(future.result())
                    if len(played[cell]) == self.config.eval_episodes:
                        self._finish(cell, played.pop(cell), len(cells))
            self._progress(cells, training)

    def _finish(self, cell: Cell, played: list[EpisodeResult], count: int) -> None:
        played.sort(key=lambda r: r.index)
        told = read_json(self._folder(cell) / "trained.json")
        result = {"training": told, **summarise(played), "results": played}
        write_json(self._folder(cell) / "result.json", result)
        self.results[cell] = result
        self.say(
            f"{cell.name}: {result['successes']} of {result['episodes']} "
            f"({len(self.results)} of {count} cells)"
        )
        self._report()

    def _progress(self, cells: list[Cell], training: dict[Future, Cell]) -> None:
        done = float(len(self.results))
        for cell in training.values():
            try:
                last = (self._folder(cell) / "train.jsonl").read_text().splitlines()[-1]
                done += 0.5 * json.loads(last)["progress"]
            except (OSError, IndexError, ValueError, KeyError):
                pass  # not begun, or a line is just being written
        progress.report(len(self.results), len(cells), "cells", fraction=done / len(cells))

    def _report(self) -> dict[str, Any]:
        return write_report(self.output, self.config, self.plan, self.results)


def study(config: StudyConfig, say: Say = print) -> dict[str, Any]:
    """Runs a study, or the rest of one; returns the content of results.json."""
    config.check()
    with only_one(config.output, "vla study"):
        return Study(config, say).run()
