#!/usr/bin/env python3
"""How fast demonstrations are made, and that kill -9 loses none.

    python bench/generation.py [--episodes 16] [--parallel 2]

Stack_D2 (colours, positions and sentence drawn anew for each episode), one camera at 224 x 224.
The same episodes are generated twice: undisturbed, timed without the workers' start; and killed
with SIGKILL again and again, each time resumed. Both data sets must be equal, number by number.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from vla_sim_bridge.generate import GenerateConfig, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    config = GenerateConfig(task="Stack_D2", episodes=args.episodes, seed=11)
    with tempfile.TemporaryDirectory() as folder:
        figures = timed(config, Path(folder) / "whole", args.parallel)
        figures |= killed(config, Path(folder), args.parallel, args.kills)
    print(json.dumps(figures, indent=2))


def timed(config: GenerateConfig, output: Path, parallel: int) -> dict:
    times: list[float] = []
    begun = time.perf_counter()
    generate(config, output, parallel, lambda _: times.append(time.perf_counter()))
    total = time.perf_counter() - begun
    statistics = json.loads((output / "statistics.json").read_text())
    # The first episodes wait for the workers to import robosuite; count from the first one on.
    steady = (times[-1] - times[0]) / max(1, len(times) - 1)
    return {
        "episodes": config.episodes,
        "processes": parallel,
        "pictures": f"{config.width}x{config.height}, 1 camera",
        "seconds_in_all": round(total, 1),
        "seconds_per_episode_in_all": round(total / config.episodes, 2),
        "seconds_per_episode_steady": round(steady, 2),
        "frames_per_s": round(statistics["frames"] / config.episodes / steady, 1),
        "attempts": statistics["attempts"],
        "mean_length": round(statistics["length_mean"], 1),
    }


def killed(config: GenerateConfig, folder: Path, parallel: int, kills: int) -> dict:
    """Kill a generation `kills` times at random moments; compare with the undisturbed one."""
    output, chance = folder / "killed", random.Random(0)
    command = [
        sys.executable, "-m", "vla_inference.cli", "generate", "--task", config.task,
        "--episodes", str(config.episodes), "--seed", str(config.seed),
        "--parallel", str(parallel), "--output", str(output),
    ]  # fmt: skip
    seen: set[str] = set()
    lost = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(6, 14))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {p.name for p in (output / "parts").glob("*.hdf5")}
        lost += len(seen - now) if not (output / "demo.hdf5").exists() else 0
        seen |= now
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    equal = same(folder / "whole" / "demo.hdf5", output / "demo.hdf5")
    return {"kills": kills, "successes_lost": lost, "equal_to_undisturbed": equal}


def same(one: Path, two: Path) -> bool:
    def read(path: Path) -> dict:
        found = {}
        with h5py.File(path, "r") as file:
            file.visititems(
                lambda name, item: (
                    found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
        return found

    a, b = read(one), read(two)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


if __name__ == "__main__":
    main()
