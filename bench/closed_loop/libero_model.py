#!/usr/bin/env python3
"""Makes a small model for LIBERO from nothing, and its success by suite.

    python bench/closed_loop/libero_model.py FOLDER [--rounds 2] [--minutes 12] [--workers 16]
        [--start CHECKPOINT] [--checkpoint FOLDER] [--episodes 200] [--suites NAME ...]
        [--formats int8 int4-g32] [--output FILE]

Demonstrations by the scripted expert (`bench/data/libero_generation.py`, 600 a round, in scenes
that are drawn: never the benchmark's states), a training on one GPU, then episodes from the
benchmark's first initial states, tasks in turn, success by the benchmark's rule. Suites on _lan
and _task are LIBERO-PRO's, told by the sentence of their BDDL files; in those on _any, our own
scenes, the sentence alone says what is asked for. --formats: the plain suites again with weights
of these formats, on the same episodes. A second call takes up where the first was stopped;
--checkpoint skips the training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, add_output, keep

from vla_inference.policies.base import LoadOptions
from vla_sim_bridge.evaluation.report import RESULTS
from vla_sim_bridge.libero.command import run
from vla_sim_bridge.libero.world import CAMERAS
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.train import train

SIZE = 160  # pixels, of the images that it is trained with and sees
PLAIN = ("libero_spatial", "libero_object")
SUITES = (*PLAIN, *(name + end for end in ("_lan", "_task", "_any") for name in PLAIN))
ROUND = ("libero_spatial_any:24", "libero_object_any:24", "libero_spatial:6", "libero_object:6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2, help="of 600 demonstrations")
    parser.add_argument("--minutes", type=float, default=12.0, help="of training")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--start", type=Path, default=ROOT / "models" / "stack-small")
    parser.add_argument("--checkpoint", type=Path, help="trained before: no training")
    parser.add_argument("--episodes", type=int, default=200, help="of each suite")
    parser.add_argument("--suites", nargs="*", default=SUITES)
    parser.add_argument("--formats", nargs="*", default=[])
    parser.add_argument("--device", default="")
    add_output(parser)
    args = parser.parse_args()
    checkpoint = args.checkpoint or made(args)
    report: dict = {"checkpoint": checkpoint.name, "size": SIZE, "suites": {}, "formats": {}}
    for suite in args.suites:
        report["suites"][suite] = played(args, checkpoint, suite, "")
        keep(report, args.output, show=False)  # a run that is stopped leaves what it has
    for form in args.formats:
        suites = {suite: played(args, checkpoint, suite, form) for suite in PLAIN}
        report["formats"][form] = suites
    keep(report, args.output)


def made(args: argparse.Namespace) -> Path:
    """The checkpoint, with what it takes to train it."""
    script, folder = ROOT / "bench" / "data" / "libero_generation.py", args.folder
    for number in range(1, args.rounds + 1):
        told = ["--workers", str(args.workers), "--size", str(SIZE), "--seed", str(number)]
        where = folder / "demonstrations" / str(number)
        subprocess.run([sys.executable, str(script), str(where), *ROUND, *told], check=True)
    config = TrainConfig(
        name="libero-small",
        start=str(args.start),
        cameras=CAMERAS,
        state=True,
        image_size=SIZE,
        layers=6,
        minutes=args.minutes,
        learning_rate=1.2e-3,
        compile=args.device != "cpu",
    )
    sets = sorted(str(path.parent) for path in folder.glob("demonstrations/*/*/demo.hdf5"))
    return train(sets, folder / "run", config, resume=True, report=tell)


def tell(report: dict) -> None:
    print(json.dumps(report), flush=True)


def played(args: argparse.Namespace, checkpoint: Path, suite: str, form: str) -> dict:
    """What a suite's results are, without its single episodes."""
    folder = args.folder / "results" / "_".join(filter(None, (suite, form)))
    if (folder / RESULTS).exists():
        found = json.loads((folder / RESULTS).read_text())
    else:
        found, _ = run(
            suite,
            str(checkpoint),
            LoadOptions.given(device=args.device or None, quantization=form or None),
            episodes=args.episodes,
            seed=7,
            width=SIZE,
            height=SIZE,
            parallel=args.workers,
            films=0,
            output=folder,
        )
    names = ("episodes", "successes", "ever_successes", "ever_success_wilson95", "wrong_object")
    kept = {name: found[name] for name in names}
    kept["latency_ms"] = found["latency_ms"]
    kept["by_task"] = {row["task"]: row["ever_successes"] for row in found["tasks"]}
    kept["reached"] = [e["index"] for e in found["per_episode"] if e["ever_success"]]
    tell({"suite": suite, "format": form, **{n: kept[n] for n in names}})
    return kept


if __name__ == "__main__":
    main()
