#!/usr/bin/env python3
"""Does reasoning raise success and obedience? The small model with and without, on the same data.

    python bench/training/reasoning.py --work FOLDER [--task Stack_L] [--seeds 3] [--output FILE]

Both arms see the same demonstrations for as many updates; a model that reasons takes longer for
each. Measured on sentences of the training grammar and on free ones, as people type them; obeyed
is what did not end in the wrong order. A run that was stopped goes on with the same command.
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
from common import add_output, keep

from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.rollout import rollout, summarise
from vla_sim_bridge.tasks import get_task

VLA = [sys.executable, "-m", "vla_inference.cli.main"]
ARMS = {"acts": [], "reasons": ["--reasoning"]}
LANGUAGES = ("train", "free")
TEST = 900_001  # seed of the episodes that measure
KEPT = ("episodes", "successes", "wrong_order")


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
    args = parser.parse_args()
    data = demonstrations(args)
    runs: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for arm in ARMS:
            checkpoint = trained(args, data, arm, seed)
            found = {name: measured(args, checkpoint, name) for name in LANGUAGES}
            runs.append({"arm": arm, "seed": seed, **found})
            report = {"task": args.task, "runs": runs, "pooled": pooled(runs)}
            keep(report, args.output, show=False)
    keep(report, args.output)


def run(*words: Any) -> None:
    subprocess.run([*VLA, *map(str, words)], check=True)


def demonstrations(args: argparse.Namespace) -> Path:
    folder = args.work / "demonstrations"
    made = ["--episodes", args.demonstrations, "--seed", 61, "--parallel", args.parallel]
    size = ["--camera-width", args.size, "--camera-height", args.size]
    run("generate", "--task", args.task, *made, *size, "--output", folder)
    return folder / "demo.hdf5"


def trained(args: argparse.Namespace, data: Path, arm: str, seed: int) -> Path:
    folder = args.work / f"{arm}-{seed}"
    if not (folder / "done").exists():
        words = ["--dataset", data, "--output", folder, "--batch-size", args.batch]
        words += ["--steps", args.steps, "--image-size", args.size, "--seed", seed, *ARMS[arm]]
        words += ["--devices", 0 if args.device == "cpu" else 1]
        run("train", *words, *(["--resume"] if (folder / "state").exists() else []))
        (folder / "done").touch()
    return folder / "checkpoint"


def measured(args: argparse.Namespace, checkpoint: Path, language: Any) -> dict[str, Any]:
    """Counts of the test's episodes with such sentences; kept beside the checkpoint.

    An answer without an action, of a model that does not end its text, ends the run: it has then
    not learned to reason.
    """
    path = checkpoint.parent / f"{language}.json"
    if not path.exists():
        results = rollout(
            str(checkpoint),
            args.task,
            args.test_episodes,
            TEST,
            horizon=get_task(args.task).horizon,
            workers=args.parallel,
            device=args.device,
            size=args.size,
            language=language,
        )
        found = summarise(results)
        path.write_text(json.dumps({name: found[name] for name in KEPT}))
    return json.loads(path.read_text())


def pooled(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success and obedience of each arm over its seeds, with 95 % intervals."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        for language in LANGUAGES:
            own = [r[language] for r in runs if r["arm"] == arm]
            count, good, wrong = (sum(r[name] for r in own) for name in KEPT)
            if count:
                found[f"{arm}, {language}"] = {
                    "success": [good / count, *wilson_interval(good, count)],
                    "obeyed": [1 - wrong / count, *wilson_interval(count - wrong, count)],
                }
    return found


if __name__ == "__main__":
    main()
