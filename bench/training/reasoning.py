#!/usr/bin/env python3
"""Does reasoning raise success and obedience? The small model with and without, on the same data.

    python bench/training/reasoning.py --work FOLDER [--task Stack_L] [--seeds 3] [--output FILE]

Both arms see the same demonstrations for as many updates; a model that reasons takes longer for
each. Measured on sentences of the training grammar and on free ones, as people type them; obeyed
is what did not end in the wrong order. An episode in which the model comes to no action, as it
does not end its text, is neither a success nor obeyed. A run that was stopped goes on with the
same command, which may leave out all options but --work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, finish, keep, settled
from improve import run, train_small

from vla_inference.policies.base import LoadOptions, Policy
from vla_inference.policies.openvla.reasoning import NoAction
from vla_inference.policies.registry import load_policy
from vla_inference.system.files import write_whole
from vla_inference.system.worker_pool import WorkerPool
from vla_sim_bridge.envs.protocol import World, make_world
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_sim_bridge.evaluation.rollout import run_episode
from vla_sim_bridge.tasks import get_task

ARMS = {"acts": [], "reasons": ["--reasoning"]}
LANGUAGES = ("train", "free")
TEST = 900_001  # seed of the episodes that measure
KEPT = ("episodes", "successes", "wrong_order", "no_action")
FREE = ("work", "parallel", "output")  # options that change no result
EXECUTED = 4  # steps of each answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--task", default="Stack_L")
    parser.add_argument("--demonstrations", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=15_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test-episodes", type=int, default=200)
    parser.add_argument("--size", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--parallel", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda")
    add_output(parser)
    args = settled(parser, lambda args: args.work, FREE, lambda args: get_task(args.task))
    data = demonstrations(args)
    runs: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for arm in ARMS:
            checkpoint = trained(args, data, arm, seed)
            found = {name: measured(args, checkpoint, name) for name in LANGUAGES}
            runs.append({"arm": arm, "seed": seed, **found})
            report = {"options": args.options, "runs": runs, "pooled": pooled(runs)}
            keep(report, args.output, show=False)
    keep(report, args.output)


def demonstrations(args: argparse.Namespace) -> Path:
    folder = args.work / "demonstrations"
    made = ["--episodes", args.demonstrations, "--seed", 61, "--parallel", args.parallel]
    size = ["--camera-width", args.size, "--camera-height", args.size]
    run("generate", "--task", args.task, *made, *size, "--output", folder)
    return folder / "demo.hdf5"


def trained(args: argparse.Namespace, data: Path, arm: str, seed: int) -> Path:
    folder = args.work / f"{arm}-{seed}"
    words = ["--dataset", data, "--output", folder, "--batch-size", args.batch]
    words += ["--steps", args.steps, "--image-size", args.size, "--seed", seed, *ARMS[arm]]
    words += ["--devices", 0 if args.device == "cpu" else 1]
    finish(folder, lambda: train_small(folder, words, args.steps))
    return folder / "checkpoint"


def measured(args: argparse.Namespace, checkpoint: Path, language: Any) -> dict[str, Any]:
    """Counts of the test's episodes with such sentences; kept beside the checkpoint."""
    path = checkpoint.parent / f"{language}.json"
    if not path.exists():
        how = (str(checkpoint), args.task, args.size, args.device, language)
        with contextlib.closing(WorkerPool(args.parallel, start, *how)) as pool:
            results = list(pool.map(play, range(args.test_episodes)))
        write_whole(path, json.dumps(counted(results)))
    return json.loads(path.read_text())


_state: tuple[World, Policy] | None = None  # of a worker process


def start(model: str, task: str, size: int, device: str, language: Any) -> None:
    global _state
    torch.set_num_threads(1)
    policy = load_policy(model, LoadOptions(device=device, engine="plain"))
    _state = make_world(task, ("agentview",), size, size, language), policy


def play(index: int) -> EpisodeResult:
    """An episode of the test; one in which the model comes to no action ends there."""
    assert _state is not None  # by `start`
    world, policy = _state
    policy.forget()
    horizon = world.task.horizon
    try:
        return run_episode(world, policy.act, TEST, index, horizon, EXECUTED, needs=policy.needs)
    except NoAction:
        about = (world.task.name, TEST, index, world.instruction, horizon, horizon)
        return EpisodeResult(*about, outcome="no_action", ever_success=False)


def counted(results: Sequence[EpisodeResult]) -> dict[str, int]:
    outcomes = [result.outcome for result in results]
    counts = [outcomes.count(name) for name in ("success", "wrong_order", "no_action")]
    return dict(zip(KEPT, (len(outcomes), *counts), strict=True))


def pooled(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success and obedience of each arm over its seeds, with 95 % intervals."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        for language in LANGUAGES:
            own = [r[language] for r in runs if r["arm"] == arm]
            count, good, wrong, silent = (sum(r[name] for r in own) for name in KEPT)
            obeyed = count - wrong - silent
            if count:
                found[f"{arm}, {language}"] = {
                    "success": [good / count, *wilson_interval(good, count)],
                    "obeyed": [obeyed / count, *wilson_interval(obeyed, count)],
                    "no_action": silent,
                }
    return found


if __name__ == "__main__":
    main()
