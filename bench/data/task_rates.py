#!/usr/bin/env python3
"""Success rate of demonstration attempts, for every task and method.

    python bench/data/task_rates.py [--attempts 200] [--workers 2] [--only Stack_D1] [--json FILE]

Scripted experts (noise up to 0.2 of a full action) for every task; MimicGen's method from the
human's one demonstration where it ships, and from 10 scripted ones (of another seed). Success is
settled, as everywhere. No images. A row is printed as it is done: success with
Wilson's 95 % interval, mean length of a success, and why the others failed.
`--reach 0` adds MimicGen's rows again without its limit on how far the arm is stretched.

`tools/task_rates_table.py` makes the table of what several runs left with --json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import h5py
import numpy as np
from common import keep

from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.generation.generate import GenerateConfig
from vla_sim_bridge.tasks import TASKS

SLOW = 250  # a task with a longer horizon has half the attempts
HUMAN, SCRIPTED = "1 human", "10 scripted"


@dataclass(frozen=True)
class Row:
    """method: of generation; source: of MimicGen's method; reach: another than its default."""

    task: str
    method: str
    source: str = ""
    reach: float | None = None

    @property
    def name(self) -> str:
        parts = [self.method, f"from {self.source}" if self.source else ""]
        parts.append("" if self.reach is None else f"reach {self.reach:g}")
        return ", ".join(p for p in parts if p)


def rows(reach: float | None) -> list[Row]:
    """Those with a figure to reach first, among them the ones most at risk."""
    mimicgen = [Row(f"Stack_D{d}", "mimicgen", s) for s in (HUMAN, SCRIPTED) for d in (1, 0)]
    again = [] if reach is None else [Row(r.task, r.method, r.source, reach) for r in mimicgen]
    lift = [Row(f"Lift_D{d}", "mimicgen", HUMAN) for d in (1, 0)]
    hard = sorted(TASKS.values(), key=lambda t: -t.horizon)
    return [*mimicgen, *again, *lift, *(Row(t.name, "scripted") for t in hard if t.expert)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=200)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", help="tasks; all if left out")
    parser.add_argument("--method", default="", help="part of the method's name, such as human")
    parser.add_argument("--reach", type=float, help="MimicGen's rows again with this reach, m")
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args()
    chosen = [r for r in rows(args.reach) if not args.only or r.task in args.only]
    chosen = [r for r in chosen if args.method in r.name]
    found = []
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.workers, context) as pool,
    ):
        source = partial(Path(folder).joinpath)
        wanted = {r.task for r in chosen if r.source == SCRIPTED}
        made = {t: pool.submit(make_sources, t, args.seed + 1, str(source(t))) for t in wanted}
        jobs: dict[Row, list[Future]] = {}
        # What needs no sources of ours goes to the workers first, while these are made.
        for row in sorted(chosen, key=lambda r: r.source == SCRIPTED):
            if row.source == SCRIPTED:
                made[row.task].result()
            count = args.attempts // 2 if TASKS[row.task].horizon > SLOW else args.attempts
            path = str(source(row.task)) if row.source == SCRIPTED else None
            jobs[row] = [pool.submit(attempt, row, args.seed, i, path) for i in range(count)]
        for row in chosen:
            found.append(figures(row, [job.result() for job in jobs[row]], args.seed))
            print(json.dumps(found[-1]), flush=True)
            if args.json:
                temporary = args.json.with_suffix(".tmp")
                keep({"rows": found}, temporary, show=False)
                os.replace(temporary, args.json)


MOST = 6  # simulations that a worker keeps
_simulations: dict[str, object] = {}
_sources: dict[tuple, list] = {}


def simulation(task: str):
    """Kept by the worker: making one takes seconds."""
    if task not in _simulations:
        from vla_sim_bridge.envs.robosuite_sim import Simulation

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if len(_simulations) == MOST:
            _simulations.pop(next(iter(_simulations)))
        _simulations[task] = Simulation(task, cameras=())
    return _simulations[task]


def attempt(row: Row, seed: int, index: int, path: str | None) -> tuple[str, int, float]:
    """(outcome, control steps, seconds)"""
    from vla_sim_bridge.generation.attempt import make_attempt
    from vla_sim_bridge.mimicgen import method as mimicgen

    sim, demonstrations = simulation(row.task), None
    config = GenerateConfig(
        task=row.task,
        seed=seed,
        method=row.method,
        source=path,
        images=False,
        horizon=TASKS[row.task].horizon,
    )
    plain = mimicgen.MimicGenConfig
    if row.method == "mimicgen":
        key = (row.task, path)
        if key not in _sources:
            from vla_sim_bridge.mimicgen.source_demos import load_sources

            _sources[key] = load_sources(sim, path)
        demonstrations = _sources[key]
        if row.reach is not None:
            mimicgen.MimicGenConfig = partial(plain, reach=row.reach)
    begun = time.perf_counter()
    try:
        made = make_attempt(sim, config, index, demonstrations)
    finally:
        mimicgen.MimicGenConfig = plain
    return made.outcome, len(made.episode), time.perf_counter() - begun


def make_sources(task: str, seed: int, path: str, count: int = 10) -> None:
    """The first scripted successes of a seed, as a file that MimicGen's method reads."""
    from vla_inference.episodes.hdf5 import write_episode, write_header
    from vla_sim_bridge.generation.attempt import make_attempt

    config = GenerateConfig(task=task, seed=seed, images=False, horizon=TASKS[task].horizon)
    sim, kept, index = simulation(task), 0, 0
    with h5py.File(path, "w") as file:
        write_header(file, task, 0, {})
        while kept < count:
            made = make_attempt(sim, config, index)
            index += 1
            if made.success:
                write_episode(file["data"].create_group(f"demo_{kept}"), made.episode)
                kept += 1


def figures(row: Row, results: list[tuple[str, int, float]], seed: int) -> dict:
    good = [steps for outcome, steps, _ in results if outcome == "success"]
    low, high = wilson_interval(len(good), len(results))
    return {
        "task": row.task,
        "method": row.name,
        "seeds": [seed],
        "attempts": len(results),
        "successes": len(good),
        "wilson95": [round(low, 4), round(high, 4)],
        "length_mean": round(float(np.mean(good)), 1) if good else None,
        "seconds_per_attempt": round(float(np.mean([s for *_, s in results])), 2),
        "failures": dict(Counter(o for o, *_ in results if o != "success").most_common()),
    }


if __name__ == "__main__":
    main()
