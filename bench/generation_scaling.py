#!/usr/bin/env python3
"""Whether an episode costs the same in a data set of 10,000 as in one of 100.

    python bench/generation_scaling.py [--episodes 100 1000 10000] [--parallel 2] [--ray-address A]

Stack_D2 without pictures, each size into a folder of its own. The workers' start (until the first
episode is there) is left out; resuming reads the folder again before the merge, and is timed
apart. Cost per episode is that of one worker: seconds times workers, over episodes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from vla_sim_bridge.generate import GenerateConfig, generate
from vla_sim_bridge.parts import recall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--parallel", type=int, default=os.cpu_count())
    parser.add_argument("--task", default="Stack_D2")
    parser.add_argument("--ray-address")
    parser.add_argument("--output", help="folder for the data sets; a temporary one if left out")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.output) as folder:
        for episodes in args.episodes:
            config = GenerateConfig(task=args.task, episodes=episodes, seed=11, pictures=False)
            rows.append(timed(config, Path(folder) / str(episodes), args))
            print(json.dumps(rows[-1]), flush=True)
    first = rows[0]["seconds_per_episode_and_worker"]
    for row in rows[1:]:
        ratio = row["seconds_per_episode_and_worker"] / first
        print(f"{row['episodes']} against {rows[0]['episodes']} episodes: cost x {ratio:.3f}")


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
    return {
        "episodes": config.episodes,
        "attempts": statistics["attempts"],
        "workers": args.parallel,
        "seconds_from_first_episode": round(spent, 2),
        "seconds_merging": round(end - times[-1] - (scans[-1] if scans else 0), 2),
        "seconds_scanning_to_resume": round(scans[0], 3) if scans else None,
        "seconds_per_episode_and_worker": round(spent * args.parallel / (config.episodes - 1), 4),
        "steps_per_s_and_worker": round(statistics["frames"] / spent / args.parallel, 1),
        "peak_memory_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "MB_per_episode": round(path.stat().st_size / config.episodes / 1e6, 3),
    }


if __name__ == "__main__":
    main()
