#!/usr/bin/env python3
"""Generates demonstrations in LIBERO's suites on all cores, and their rate.

    python bench/data/libero_generation.py FOLDER libero_spatial_any:80 libero_object_any:80
        [--workers 16] [--size 160] [--seed 1] [--noise 0.15] [--output FILE]

SUITE:N makes N episodes of each of its tasks, from both cameras, one dataset a task in
FOLDER/SUITE_TASK: what `vla generate --task SUITE/TASK` makes, one process each, so that no
environment is made twice. A second call takes up where the first was stopped. The rate is that of
all episodes by the wall, environments' making included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

from vla_inference.errors import VlaError
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.generate import GenerationProgress, generate
from vla_sim_bridge.libero.world import CAMERAS
from vla_sim_bridge.tasks.libero_suites import split_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("suites", nargs="+", metavar="SUITE:N")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.15)
    add_output(parser)
    args = parser.parse_args()
    jobs = [job for text in args.suites for job in tasks_of(text)]
    begun, rows = time.perf_counter(), []
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        running = [
            pool.submit(make, *job, str(args.folder), args.size, args.seed, args.noise)
            for job in sorted(jobs, key=lambda job: -job[2])
        ]
        for done in as_completed(running):
            rows.append(done.result())
            print(json.dumps(rows[-1]), flush=True)
    seconds = time.perf_counter() - begun
    episodes = sum(row["episodes"] for row in rows)
    report = {
        "size": args.size,
        "seed": args.seed,
        "noise": args.noise,
        "workers": args.workers,
        "episodes": episodes,
        "attempts": sum(row["attempts"] for row in rows),
        "seconds": round(seconds, 1),
        "episodes_per_s": round(episodes / seconds, 2),
        "tasks": sorted(rows, key=lambda row: row["task"]),
    }
    keep(report, args.output)


def tasks_of(text: str) -> list[tuple[str, int, int]]:
    """SUITE:N -> suite, task and episodes of each task."""
    name, _, count = text.partition(":")
    if not count.isdecimal() or not int(count):
        raise VlaError(f"{text!r} does not say how many episodes", "give SUITE:N")
    suite, only = split_name(name)
    numbers = range(suite.tasks) if only is None else [only]
    return [(suite.name, number, int(count)) for number in numbers]


def make(
    suite: str, task: int, episodes: int, folder: str, size: int, seed: int, noise: float
) -> dict:
    """One task's dataset."""
    config = GenerateConfig(
        task=f"{suite}/{task}",
        episodes=episodes,
        cameras=CAMERAS,
        camera_width=size,
        camera_height=size,
        seed=seed,
        noise=noise,
        compression="none",
    )
    told = [GenerationProgress(0, 0, episodes, 0.0)]
    begun = time.perf_counter()
    generate(config, Path(folder) / f"{suite}_{task}", parallel=1, report=told.append)
    return {
        "task": config.task,
        "episodes": episodes,
        "attempts": told[-1].attempts,
        "seconds": round(time.perf_counter() - begun, 1),
    }


if __name__ == "__main__":
    main()
