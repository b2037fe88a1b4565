#!/usr/bin/env python3
"""Cost of an episode by dataset size, from 100 to 10,000 episodes.

    python bench/data/generation_scaling.py [--episodes 100 1000 10000] [--parallel 2]
        [--ray-address A]

Stack_D2 without images, each size into a folder of its own. The cost of an episode is that of
one worker: seconds times workers, over attempts. It is taken in windows of attempts, so that the
same workers are at work all the time: their start is left out (the first two attempts of each),
and the end, when some have nothing to do any more. Merging, and reading the folder again as
resuming does, are timed apart.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep

from vla_sim_bridge.generation.generate import GenerateConfig, generate
from vla_sim_bridge.generation.shards import recall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--parallel", type=int, default=os.cpu_count())
    parser.add_argument("--task", default="Stack_D2")
    parser.add_argument("--ray-address")
    parser.add_argument("--folder", help="for the datasets; default: a temporary one")
    add_output(parser)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for episodes in args.episodes:
            config = GenerateConfig(task=args.task, episodes=episodes, seed=11, images=False)
            rows.append(timed(config, Path(folder) / str(episodes), args))
            print(json.dumps(rows[-1]), flush=True)
    keep({"task": args.task, "rows": rows}, args.output, show=False)
    merged = [1000 * row["seconds_merging"] / row["episodes"] for row in rows]
    for row, ms in zip(rows[1:], merged[1:], strict=True):
        print(f"merging {row['episodes']}: {ms:.2f} ms an episode, x {ms / merged[0]:.3f}")
    windows = rows[-1]["seconds_per_attempt_and_worker_by_window"]
    first = next(iter(windows.values()), None)
    for at, cost in windows.items():
        print(f"attempts {at}: {cost:.3f} s, x {cost / first:.3f}")


def window_costs(times: list[float], workers: int, sizes: list[int]) -> dict[str, float]:
    """Cost of an attempt around each size, by when each attempt was done."""
    begin, end = 2 * workers, len(times) - workers
    width = max(4 * workers, 100)
    costs = {}
    for size in sizes:
        last = min(max(size, begin + width), end)
        start = last - width
        if start >= begin and last < len(times):
            seconds = times[last] - times[start]
            costs[f"{start} to {last}"] = round(seconds * workers / width, 4)
    return costs


def timed(config: GenerateConfig, output: Path, args) -> dict:
    times: list[float] = []
    scans: list[float] = []

    def told(progress) -> None:
        times.append(time.perf_counter())
        if progress.successes == progress.wanted:
            begun = time.perf_counter()
            recall(output / "parts")
            scans.append(time.perf_counter() - begun)

    path = generate(config, output, args.parallel, told, args.ray_address)
    end = time.perf_counter()
    statistics = json.loads((output / "statistics.json").read_text())
    spent = end - times[0] - sum(scans)
    sizes = [n for n in args.episodes if n <= config.episodes]
    return {
        "episodes": config.episodes,
        "attempts": statistics["attempts"],
        "workers": args.parallel,
        "seconds_from_first_attempt": round(spent, 2),
        "seconds_merging": round(end - times[-1] - (scans[-1] if scans else 0), 2),
        "seconds_scanning_to_resume": round(scans[0], 3) if scans else None,
        "seconds_per_attempt_and_worker_by_window": window_costs(times, args.parallel, sizes),
        "steps_per_s_and_worker": round(statistics["frames"] / spent / args.parallel, 1),
        "peak_memory_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "MB_per_episode": round(path.stat().st_size / config.episodes / 1e6, 3),
    }


if __name__ == "__main__":
    main()
