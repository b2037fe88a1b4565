#!/usr/bin/env python3
"""The same episodes in process and through `vla serve`: they must be equal, one by one.

    python bench/closed_loop/served.py [--episodes 100] [--task Stack_D0] [--seed 7]

The server answers one observation at a time (--max-batch 1) with one thread, as the process does:
other shapes and threads add up in another order. Exit status 1 where an episode differs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep, serving

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process has one core

from vla_sim_bridge.cli.rollout import find_model
from vla_sim_bridge.evaluation.rollout import rollout, summarise
from vla_sim_bridge.tasks import get_task

SERVE = ("-m", "vla_inference.cli.main", "serve")
LIKE_A_PROCESS = ("--device", "cpu", "--engine", "plain", "--num-threads", 1, "--max-batch", 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint; the small model that ships, if left out")
    parser.add_argument("--task", default="Stack_D0")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=1)
    add_output(parser)
    args = parser.parse_args()
    model, task = find_model(args.model), get_task(args.task)
    found, seconds = {}, {}
    with serving(*SERVE, model, "--port", 0, *LIKE_A_PROCESS) as line:
        address = f"openpi:{line.split()[3]}?timeout=60"
        for name, path, device in (("in_process", model, "cpu"), ("served", address, None)):
            begun = time.perf_counter()
            found[name] = rollout(
                path,
                task.name,
                args.episodes,
                args.seed,
                horizon=task.horizon,
                workers=args.workers,
                device=device,
            )
            seconds[name] = round(time.perf_counter() - begun, 1)
    pairs = zip(found["in_process"], found["served"], strict=True)
    different = [a.index for a, b in pairs if a != b]
    report = {
        **summarise(found["served"]),
        "successes_in_process": summarise(found["in_process"])["successes"],
        "equal_episodes": args.episodes - len(different),
        "different_episodes": different,
        "seconds": seconds,
    }
    keep(report, args.output)
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
