#!/usr/bin/env python3
"""Success of the scripted expert in LIBERO's suites, from the benchmark's initial states.

    python bench/data/libero_expert.py libero_spatial libero_object libero_goal
        [--states 20] [--first 0] [--sampled] [--noise 0] [--seed 7] [--workers 2] [--output FILE]

Success is settled: it lasts ten steps while the hand draws back, and ten more without motion.
`ever` counts episodes that reached it at any moment, as published evaluations do. --sampled: in
scenes drawn as for demonstrations instead. No images. A line per task as it is done; tasks that
the expert cannot do are listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import add_output, keep

from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.libero.world import LiberoWorld
from vla_sim_bridge.tasks import get_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--states", type=int, default=20, help="of a task")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sampled", action="store_true")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    add_output(parser)
    args = parser.parse_args()
    report: dict = {"states": args.states, "first": args.first, "sampled": args.sampled}
    report |= {"noise": args.noise, "seed": args.seed, "suites": {}}
    names, versions = {}, {}
    for suite in args.suites:
        world = LiberoWorld(get_task(suite), cameras=())
        names[suite], told_why = world.demonstrated(), enumerate(world.sentences)
        cannot = {str(task): about["no_expert"] for task, about in told_why if about["no_expert"]}
        report["suites"][suite] = {"cannot": cannot}
        versions = {n: v for n, v in world.versions.items() if n != "libero_python"}
        world.close()
    report["versions"] = versions
    play = partial(play_task, states=args.states, first=args.first, seed=args.seed)
    play = partial(play, sampled=args.sampled, noise=args.noise)
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        jobs = {s: [pool.submit(play, s, task) for task in able] for s, able in names.items()}
        for suite, tasks in jobs.items():
            rows: list[dict] = []
            for job in tasks:
                rows.append(job.result())
                print(json.dumps(rows[-1]), flush=True)
                report["suites"][suite] |= {"tasks": rows, **total(rows)}
                keep(report, args.output, show=False)  # a run that is stopped leaves what it has


def play_task(
    suite: str, task: int, states: int, first: int, seed: int, sampled: bool, noise: float
) -> dict:
    """One task's figures."""
    known = get_task(f"{suite}/{task}")
    world, found = LiberoWorld(known, cameras=()), []
    begun = time.perf_counter()
    for k in range(first, first + states):
        scene = (seed * 1000 + k, None) if sampled else (seed, k)
        made = world.attempt(task, *scene, known.horizon, SETTLE_STEPS, noise)
        found.append((made.outcome, made.first, len(made.columns["success"])))
    seconds = time.perf_counter() - begun
    world.close()
    good = [steps for outcome, _, steps in found if outcome == "success"]
    return {
        "task": task,
        "instruction": world.instruction,
        "attempts": len(found),
        "successes": len(good),
        "ever": sum(at > 0 for _, at, _ in found),
        "steps_mean": round(float(np.mean(good)), 1) if good else None,
        "seconds_per_attempt": round(seconds / len(found), 2),
        "failures": dict(Counter(o for o, *_ in found if o != "success")),
        "failed": [first + i for i, (o, *_) in enumerate(found) if o != "success"],
    }


def total(rows: list[dict]) -> dict:
    attempts, good = (sum(row[n] for row in rows) for n in ("attempts", "successes"))
    low, high = wilson_interval(good, attempts)
    return {
        "attempts": attempts,
        "successes": good,
        "ever": sum(row["ever"] for row in rows),
        "success_rate": round(good / attempts, 4),
        "wilson95": [round(low, 4), round(high, 4)],
    }


if __name__ == "__main__":
    main()
