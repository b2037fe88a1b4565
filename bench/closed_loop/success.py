#!/usr/bin/env python3
"""Closed-loop success over tasks and languages, without ROS, in several processes.

    python bench/closed_loop/success.py Stack_D2:200 Stack_L:200 Stack_L:200:held-out
        [--seed 7] [--workers 2]

Each argument is TASK:EPISODES[:LANGUAGE]. The episodes and the settle rule are those of
`vla rollout` in lock step, in about half the time. Single episodes may end otherwise: one thread
a process rounds differently than several, and contact makes much of little. One JSON line each;
--ros plays them by `vla rollout`. --output FOLDER keeps every episode as TASK_LANGUAGE_seedN.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import keep, over_ros

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process has one core

from vla_sim_bridge.cli.rollout import find_model
from vla_sim_bridge.evaluation.rollout import rollout, summarise
from vla_sim_bridge.tasks import LANGUAGES, get_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="+", metavar="TASK:EPISODES[:LANGUAGE]")
    parser.add_argument("--model", help="checkpoint; the small model that ships, if left out")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--execute-steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--ros", action="store_true", help="in the ROS graph (vla rollout)")
    args = parser.parse_args()
    model = find_model(args.model)
    for task, episodes, language in [parsed(e) for e in args.entries]:
        if args.ros:
            found, more = over_ros(task, episodes, args.seed, language), {}
        else:
            results = rollout(
                model,
                task,
                episodes,
                args.seed,
                horizon=get_task(task).horizon,
                execute_steps=args.execute_steps,
                workers=args.workers,
                device="cpu",
                language=language,
            )
            found = {"language": language, **summarise(results)}
            more = {"results": [asdict(r) for r in results]}
        print(json.dumps({k: v for k, v in found.items() if k != "per_episode"}), flush=True)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            path = args.output / f"{task}_{language}_seed{args.seed}.json"
            keep({**found, **more}, path, show=False)


def parsed(entry: str) -> tuple[str, int, str]:
    """Task, episodes, language; all are looked at before the first episode is played."""
    task, _, rest = entry.partition(":")
    episodes, _, language = rest.partition(":")
    language = language or "train"
    if not episodes.isdigit() or not int(episodes) or language not in LANGUAGES:
        sys.exit(f"{entry!r} is not TASK:EPISODES[:{'|'.join(LANGUAGES)}]")
    return get_task(task).name, int(episodes), language


if __name__ == "__main__":
    main()
