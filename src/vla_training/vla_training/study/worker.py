"""Worker processes of a study: train one cell's model, or run its episodes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_sim_bridge.envs.protocol import World, make_world
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_sim_bridge.evaluation.report import write_json
from vla_sim_bridge.evaluation.rollout import run_episode
from vla_training.loop.training_state import find_states
from vla_training.small_model.episode_frames import frames_from_paths
from vla_training.small_model.frames import TrainingFrames
from vla_training.small_model.train import SMALL, TrainConfig, Trainer
from vla_training.study.config import HELD_OUT, Cell, StudyConfig

MEASURED = 30  # steps whose speed is measured, after as many to warm up

_device = "cpu"


def take_device(devices: multiprocessing.Queue) -> None:
    """Initialises a training process with one device of its own."""
    global _device
    _device = devices.get()
    if _device.startswith("cuda"):
        torch.cuda.set_device(_device)
        torch.set_float32_matmul_precision("high")


def take_core() -> None:
    """Initialises an evaluation process, many of which share the machine."""
    torch.set_num_threads(1)
    if torch.cuda.device_count() > 1:  # images are drawn on all GPUs
        place = str(os.getpid() % torch.cuda.device_count())
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", place)


@lru_cache(1)  # frames of one image size at a time
def read_frames(data: tuple[str, ...], device: str, image_size: int = 0) -> TrainingFrames:
    size = image_size or SMALL["vision_towers"][0]["image_size"]
    return frames_from_paths(data, size, device)


def choose(total: int, episodes: int, largest: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the episodes to train on, and of those held out from all cells.

    Of one seed, those of a smaller cell are among those of a larger one.
    """
    mixed = np.random.default_rng(0).permutation(total)
    held = min(HELD_OUT, total - largest)
    rest = np.random.default_rng([1, seed]).permutation(mixed[held:])
    return rest[:episodes], mixed[:held]


def make_trainer(config: StudyConfig, cell: Cell, steps: int) -> Trainer:
    """A cell's trainer; all cells share the frames in memory and their statistics."""
    size = cell.image_size
    frames = read_frames(config.data_of(size), _device, size)
    more: dict[str, Any] = {"model_json": with_images(size)} if size else {}
    options = TrainConfig(
        image_size=size or SMALL["vision_towers"][0]["image_size"],
        batch_size=config.batch_size,
        steps=steps,
        learning_rate=config.learning_rate,
        validation=0.0,
        seed=cell.seed,
        compile=config.compile,
        start=config.start or None,
    )
    trainer = Trainer(frames, options, _device, **more)
    total = int(frames.episode.max()) + 1
    parts = choose(total, cell.episodes, max(config.episodes), cell.seed)
    number = frames.episode.cpu()
    trainer.training, trainer.held_out = (
        torch.nonzero(torch.isin(number, torch.from_numpy(p))).flatten().to(_device) for p in parts
    )
    return trainer


def with_images(size: int) -> dict[str, Any]:
    """config.json of the small model that sees images of size x size."""
    shape = copy.deepcopy(SMALL)
    shape["vision_towers"][0]["image_size"] = size
    return shape


def survey(config: StudyConfig) -> dict[str, float]:
    """Number of episodes and frames in the data; with `minutes`, samples per second of one
    device, of the largest images."""
    largest = max(config.sizes)
    frames = read_frames(config.data_of(largest), _device, largest)
    total = int(frames.episode.max()) + 1
    found: dict[str, float] = {"episodes": total, "frames": len(frames)}
    if total < max(config.episodes):
        raise VlaError(
            f"the data contains {total} episodes, the study asks for {max(config.episodes)}",
            "generate more, or give smaller numbers of episodes",
        )
    if config.minutes:
        if config.compile:  # one model after the other is compiled by the same code
            torch._dynamo.config.cache_size_limit = 64
        speeds: list[float] = []
        trainer = make_trainer(config, Cell(min(config.episodes), 0, 0, largest), 2 * MEASURED)
        trainer.run(lambda r: speeds.append(r["samples_per_s"]), every=MEASURED)
        found["samples_per_s"] = speeds[-1]
    return found


def train_cell(config: StudyConfig, cell: Cell, steps: int, folder: str) -> dict[str, Any]:
    """Trains, writes folder/checkpoint, then folder/trained.json with the returned values."""
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    if config.compile:
        torch._dynamo.config.cache_size_limit = 64
    trainer = make_trainer(config, cell, steps)
    state, log = where / "state", where / "train.jsonl"
    if find_states(state):
        trainer.load(state)
    last: dict[str, Any] = {}

    def report(values: dict) -> None:
        last.update(values)
        with log.open("a") as file:
            file.write(json.dumps(values) + "\n")

    trainer.run(report, max(1, steps // 5), lambda: trainer.save(state))
    last = last or json.loads(log.read_text().splitlines()[-1])  # killed right after the end
    seen, held_out = steps * config.batch_size, last["validation"]
    trainer.export(where / "checkpoint")
    told = {
        **asdict(cell),
        "steps": steps,
        "frames_seen": seen,
        "frames": len(trainer.training),
        "epochs": seen / len(trainer.training),
        "loss": last["loss"],
        "held_out_l1": held_out and held_out[0],
        "samples_per_s": last["samples_per_s"],
        "train_seconds": last["seconds"],
    }
    write_json(where / "trained.json", told)
    shutil.rmtree(state, ignore_errors=True)
    return told


# -- playing ----------------------------------------------------------------------------------

_policy: tuple[str, OpenVLAPolicy] | None = None  # of the cell that was played last


@cache
def _world(task: str, image_size: int) -> World:
    if not image_size:
        return make_world(task)
    return make_world(task, width=image_size, height=image_size)


def play(config: StudyConfig, checkpoint: str, index: int, image_size: int = 0) -> EpisodeResult:
    """Runs one closed-loop episode; the episodes are the same for all cells."""
    global _policy
    if _policy is None or _policy[0] != checkpoint:
        _policy = checkpoint, OpenVLAPolicy.from_pretrained(checkpoint, device="cpu")
    world = _world(config.task, image_size)
    return run_episode(
        world,
        _policy[1].predict_action,
        config.eval_seed,
        index,
        config.horizon or world.task.horizon,
        config.execute_steps,
    )
