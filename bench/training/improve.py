#!/usr/bin/env python3
"""Corrections against further whole demonstrations: as many episodes, the same training.

    python bench/training/improve.py --work FOLDER [--task Stack_D0] [--seeds 3] [--output FILE]

A small model is trained to about 60 % (--demonstrations, --train-steps; or --start CHECKPOINT).
From it `vla improve` makes 4 rounds of 25 episodes, with --collect corrected (the scripted expert
takes over where the model errs) and with --collect scripted (whole demonstrations), once for each
seed. What each round kept is then measured on episodes that judged nothing. A run that was stopped
goes on with the same command: all that was made stays in FOLDER, and the options with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, finish, keep, settled

from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.rollout import rollout, summarise
from vla_sim_bridge.tasks import get_task
from vla_training.loop.training_state import find_states

VLA = [sys.executable, "-m", "vla_inference.cli.main"]
ARMS = ("corrected", "scripted")
FREE = ("work", "parallel", "output")  # options that change no result
TEST = 900_001  # seed of the episodes that measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--task", default="Stack_D0")
    parser.add_argument("--start", help="a checkpoint, in place of training one")
    parser.add_argument("--demonstrations", type=int, default=250, help="to start with")
    parser.add_argument("--train-steps", type=int, default=1500, help="of the start")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=25, help="of a round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="updates of a round")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--judged-by", type=int, default=100, help="episodes that decide a round")
    parser.add_argument("--test-episodes", type=int, default=200)
    parser.add_argument("--size", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--parallel", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cuda")
    add_output(parser)
    args = settled(parser, lambda args: args.work, FREE, lambda args: get_task(args.task))
    data = demonstrations(args)
    start = Path(args.start) if args.start else trained(args, data)
    report: dict[str, Any] = {
        "options": args.options,
        "task": args.task,
        "rounds": args.rounds,
        "episodes_of_a_round": args.episodes,
        "start": measured(args, start, args.work / "start.json"),
        "arms": {arm: [] for arm in ARMS},
    }
    for seed in range(args.seeds):
        for arm in ARMS:
            report["arms"][arm].append(improved(args, start, data, arm, seed))
            keep({**report, "pooled": pooled(report["arms"])}, args.output, show=False)
    keep({**report, "pooled": pooled(report["arms"])}, args.output)


def run(*words: Any) -> None:
    subprocess.run([*VLA, *map(str, words)], check=True)


def train_small(folder: Path, words: Sequence[Any], steps: int) -> bool:
    """`vla train`, from where it was; returns whether it came to its end."""
    run("train", *words, *(["--resume"] if (folder / "state").exists() else []))
    return find_states(folder / "state")[-1].name == f"step-{steps}"


def demonstrations(args: argparse.Namespace) -> Path:
    folder = args.work / "demonstrations"
    made = ["--episodes", args.demonstrations, "--seed", 51, "--parallel", args.parallel]
    size = ["--camera-width", args.size, "--camera-height", args.size]
    run("generate", "--task", args.task, *made, *size, "--output", folder)
    return folder / "demo.hdf5"


def trained(args: argparse.Namespace, data: Path) -> Path:
    folder = args.work / "start"
    words = ["--dataset", data, "--output", folder, "--batch-size", args.batch]
    words += ["--steps", args.train_steps, "--image-size", args.size]
    words += ["--devices", 0 if args.device == "cpu" else 1]
    finish(folder, lambda: train_small(folder, words, args.train_steps))
    return folder / "checkpoint"


def improved(
    args: argparse.Namespace, start: Path, data: Path, arm: str, seed: int
) -> dict[str, Any]:
    """The rounds of one arm and seed, and what each of them kept, measured."""
    folder = args.work / f"{arm}-{seed}"
    words = ["--model", start.absolute(), "--task", args.task, "--collect", arm]
    words += ["--rounds", args.rounds, "--episodes", args.episodes, "--dataset", data.absolute()]
    words += ["--recipe", "train", "--max-steps", args.steps, "--batch-size", args.batch]
    words += ["--learning-rate", args.learning_rate, "--val-split", 0]
    words += ["--judged-by", args.judged_by, "--seed", 1000 * (seed + 1)]
    words += ["--parallel", args.parallel, "--device", args.device, "--no-tensorboard"]
    run("improve", *words, "--output", folder)
    versions = [
        json.loads(path.read_text()) for path in sorted(folder.glob("versions/*/figures.json"))
    ]
    last = [v["version"] for v in versions if v["kept"]][-1]
    checkpoint = start if last == 0 else folder / "versions" / f"{last:04d}" / "checkpoint"
    return {
        "seed": seed,
        "versions": [
            {
                "kept": v["kept"],
                "judged": v["judged"]["successes"],
                **{k: v[k] for k in ("collected", "compared") if k in v},
            }
            for v in versions
        ],
        "test": measured(args, checkpoint, folder / "test.json"),
    }


def measured(args: argparse.Namespace, checkpoint: Path, path: Path) -> dict[str, Any]:
    """Counts on the episodes of the test, and which failed; kept in `path`."""
    if path.exists():
        return json.loads(path.read_text())
    results = rollout(
        str(checkpoint),
        args.task,
        args.test_episodes,
        TEST,
        horizon=get_task(args.task).horizon,
        workers=args.parallel,
        device=args.device,
        size=args.size,
    )
    found = summarise(results)
    write_whole(path, json.dumps(found))
    return found


def pooled(arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Success of each arm over its seeds, and by how much each seed's differ."""
    found: dict[str, Any] = {}
    for arm, runs in arms.items():
        good, all_ = (sum(r["test"][k] for r in runs) for k in ("successes", "episodes"))
        rate = good / max(1, all_)
        found[arm] = {"success_rate": rate, "wilson95": list(wilson_interval(good, all_))}
    rates = [[r["test"]["success_rate"] for r in arms[arm]] for arm in ARMS]
    found["difference_by_seed"] = [a - b for a, b in zip(*rates, strict=False)]
    return found


if __name__ == "__main__":
    main()
