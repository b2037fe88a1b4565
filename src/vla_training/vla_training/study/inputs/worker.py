"""Worker processes: train one model, or play one episode with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vla_inference.policies.base import LoadOptions, Policy
from vla_inference.policies.registry import load_policy
from vla_sim_bridge.envs.protocol import World, make_world
from vla_sim_bridge.evaluation.report import write_json
from vla_sim_bridge.evaluation.rollout import run_episode
from vla_training.loop.training_state import find_states
from vla_training.small_model.episode_frames import frames_from_paths
from vla_training.small_model.frames import TrainingFrames
from vla_training.small_model.train import TrainConfig, Trainer
from vla_training.study import worker
from vla_training.study.inputs.config import CAMERAS, Cell, Condition, InputsConfig, Variant

SAVE_MINUTES = 1.0  # a killed study loses no more of a model


@cache
def read_frames(data: tuple[str, ...], device: str, size: int) -> TrainingFrames:
    """With everything that any variant takes."""
    return frames_from_paths(data, size, device, cameras=CAMERAS, states=True)


def frames_of(variant: Variant, frames: TrainingFrames) -> TrainingFrames:
    """The same frames with what a variant sees of them; no image is copied."""
    images = frames.images[:, : len(variant.cameras)]
    return replace(frames, images=images, states=frames.states if variant.state else None)


def make_trainer(config: InputsConfig, cell: Cell) -> Trainer:
    variant, device = cell.variant, worker._device
    options = TrainConfig(
        batch_size=config.batch_size,
        steps=config.steps or 1,
        minutes=config.minutes,
        learning_rate=config.learning_rate,
        cameras=variant.cameras,
        history=variant.history,
        history_interval=config.interval,
        state=variant.state,
        seed=cell.seed,
        compile=config.compile,
    )
    shape = options.model_json()
    shape["name"] = cell.name
    frames = read_frames(config.data, device, shape["vision_towers"][0]["image_size"])
    if variant.state and frames.states is not None:
        shape["action_head"]["proprio_dim"] = frames.states.shape[1]
    return Trainer(frames_of(variant, frames), options, device, shape)


def train_cell(config: InputsConfig, cell: Cell, folder: str) -> dict[str, Any]:
    """Trains, writes folder/checkpoint, then folder/trained.json with the returned values."""
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    if config.compile:
        torch._dynamo.config.cache_size_limit = 64
    trainer = make_trainer(config, cell)
    state, log = where / "state", where / "train.jsonl"
    if find_states(state):
        trainer.load(state)
    last: dict[str, Any] = {}

    def report(values: dict) -> None:
        last.update(values)
        with log.open("a") as file:
            file.write(json.dumps(values) + "\n")

    trainer.run(
        report,
        max(1, (config.steps or 2000) // 2),
        lambda: trainer.save(state),
        glance=5.0,
        save_minutes=SAVE_MINUTES,
    )
    last = last or json.loads(log.read_text().splitlines()[-1])  # killed right after the end
    trainer.export(where / "checkpoint")
    told = {
        **asdict(cell),
        "steps": trainer.step,
        "samples": trainer.step * config.batch_size,
        "seconds": last["seconds"],
        "loss": last["loss"],
        "held_out_l1": (last.get("validation") or [None])[0],
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }
    write_json(where / "trained.json", told)
    shutil.rmtree(state, ignore_errors=True)
    return told


_policy: tuple[str, Policy] | None = None  # the one that played last


@cache
def _world(task: str, cameras: tuple[str, ...]) -> World:
    return make_world(task, cameras)


def play(
    config: InputsConfig, cell: Cell, condition: Condition, checkpoint: str, index: int
) -> dict[str, Any]:
    """Runs one closed-loop episode; the episodes are the same for all models."""
    global _policy
    if _policy is None or _policy[0] != checkpoint:
        _policy = checkpoint, load_policy(checkpoint, LoadOptions(device="cpu"))
    policy, world = _policy[1], _world(condition.task, cell.variant.cameras)
    result = run_episode(
        world,
        policy.act,
        config.eval_seed,
        index,
        config.horizon or world.task.horizon,
        config.execute_steps,
        condition.delay,
        policy.needs,
    )
    told = {"outcome": result.outcome, "frames": result.frames}
    return {**asdict(condition), "index": index, **told}
