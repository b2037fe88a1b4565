"""Trains the models of a study of inputs and tests them; what is there is never done again.

The study's folder holds study.json (what was asked), `data/`, and for each model `models/NAME/`
with `state/` while it is trained, then `checkpoint/` and trained.json, and episodes.jsonl, a line
for each episode that was played.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla_inference.checkpoints.safetensors_io import read_json
from vla_inference.errors import VlaError
from vla_inference.system.files import only_one
from vla_inference.system.worker_pool import WorkerPool
from vla_sim_bridge.generation.generate import GenerateConfig, generate
from vla_training.study import worker as shared
from vla_training.study.claim import claim
from vla_training.study.inputs import worker
from vla_training.study.inputs.config import CAMERAS, Cell, Condition, InputsConfig
from vla_training.study.study import Inline

Say = Callable[[str], None]


class InputsStudy:
    def __init__(self, config: InputsConfig, say: Say = print):
        self.output, self.say = Path(config.output), say
        claim(self.output / "study.json", config.identity())
        self.config = replace(config, data=config.data or self._generate(config))
        self.training: dict[Future, Cell] = {}
        self.playing: dict[Future, Cell] = {}

    def _generate(self, config: InputsConfig) -> tuple[str, ...]:
        """Demonstrations of each task, with all that any variant takes."""
        made = []
        for task in config.tasks:
            wanted = GenerateConfig(
                task=task, episodes=config.demonstrations, cameras=CAMERAS, compression="none"
            )
            folder = self.output / "data" / task
            self.say(f"{task}: {config.demonstrations} demonstrations")
            made.append(str(generate(wanted, folder, max(1, config.parallel))))
        return tuple(made)

    # -- what is there ------------------------------------------------------------------------

    def folder(self, cell: Cell) -> Path:
        return self.output / "models" / cell.name

    def episodes(self, cell: Cell) -> list[dict[str, Any]]:
        """Those that a model has played; a line that a kill cut off counts as not there."""
        path = self.folder(cell) / "episodes.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def missing(self, cell: Cell) -> list[tuple[Condition, int]]:
        done = {(e["task"], e["delay"], e["index"]) for e in self.episodes(cell)}
        return [
            (condition, index)
            for condition in self.config.conditions
            for index in range(self.config.eval_episodes)
            if (condition.task, condition.delay, index) not in done
        ]

    # -- the work -----------------------------------------------------------------------------

    def run(self) -> list[dict[str, Any]]:
        """Does what is left; returns the models' results (`results`)."""
        trainers, players = self._executors()
        try:
            for cell in self.config.cells:
                self._continue(cell, trainers, players)
            while self.training or self.playing:
                self._wait(players)
        finally:
            trainers.close()
            players.close()
        return self.results()

    def _executors(self) -> tuple[Any, Any]:
        if not self.config.parallel:
            return Inline(), Inline()
        gpus = torch.cuda.device_count() if self.config.device == "cuda" else 0
        if self.config.device == "cuda" and not gpus:
            raise VlaError("there is no GPU", "give --device cpu")
        devices = multiprocessing.get_context("spawn").Queue()
        for name in [f"cuda:{i}" for i in range(gpus)] or ["cpu"]:
            devices.put(name)
        return (
            WorkerPool(max(1, gpus), shared.take_device, devices),
            WorkerPool(self.config.parallel, shared.take_core),
        )

    def _continue(self, cell: Cell, trainers: Executor, players: Executor) -> None:
        folder = self.folder(cell)
        if (folder / "trained.json").is_file():
            self._test(cell, players)
        else:
            how = (self.config, cell, str(folder))
            self.training[trainers.submit(worker.train_cell, *how)] = cell

    def _test(self, cell: Cell, players: Executor) -> None:
        checkpoint = str(self.folder(cell) / "checkpoint")
        for condition, index in self.missing(cell):
            how = (self.config, cell, condition, checkpoint, index)
            self.playing[players.submit(worker.play, *how)] = cell

    def _wait(self, players: Executor) -> None:
        done, _ = wait([*self.training, *self.playing], return_when=FIRST_COMPLETED)
        for future in done:
            if future in self.training:
                cell = self.training.pop(future)
                told = future.result()
                self.say(f"{cell.name}: trained, {told['samples']:,} samples")
                self._test(cell, players)
                continue
            cell = self.playing.pop(future)
            with (self.folder(cell) / "episodes.jsonl").open("a") as file:
                file.write(json.dumps(future.result()) + "\n")
            if cell not in self.playing.values():
                self.say(f"{cell.name}: tested")

    def results(self) -> list[dict[str, Any]]:
        """Of each model that was trained: what that took, and its episodes."""
        found = []
        for cell in self.config.cells:
            path = self.folder(cell) / "trained.json"
            if path.is_file():
                found.append({**read_json(path), "played": self.episodes(cell)})
        return found


def study(config: InputsConfig, say: Say = print) -> list[dict[str, Any]]:
    """Runs a study, or the rest of one."""
    config.check()
    with only_one(config.output, "the study of inputs"):
        return InputsStudy(config, say).run()
