#!/usr/bin/env python3
"""Make the small model that ships: generate, train, evaluate, each taken up where it stopped.

    python tools/train_small_model.py WORKDIR --data Stack_D0:500:1 --data Stack_D2:2800:2 \
        --data Stack_D2:500:9 --minutes 11 --evaluate Stack_D0:100 --evaluate Stack_D2:100

Runs on any machine with a GPU (or several) and robosuite; a stage that is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for package in ("vla_inference", "vla_sim_bridge", "vla_training"):
    sys.path.insert(0, str(ROOT / "src" / package))
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")])


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("workdir", type=Path)
    p.add_argument("--data", action="append", default=[], help="TASK:EPISODES:SEED")
    p.add_argument("--noise", type=float, default=0.2)
    p.add_argument("--minutes", type=float, default=11, help="length of the schedule")
    p.add_argument("--devices", type=int, help="GPUs; all by default, 0 for the CPU")
    p.add_argument("--batch-size", type=int, default=1024)
    p.add_argument("--learning-rate", type=float, default=1.5e-3)
    p.add_argument("--ema", type=float, default=0.999)
    p.add_argument("--evaluate", action="append", default=[], help="TASK:EPISODES")
    p.add_argument("--eval-seed", type=int, default=1000)
    p.add_argument("--execute-steps", type=int, default=4)
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--parallel", type=int, help="generating processes; all cores by default")
    p.add_argument("--generate-only", action="store_true")
    return p.parse_args()


BEGUN = time.perf_counter()


def say(values: dict) -> None:
    print(json.dumps({"t": round(time.perf_counter() - BEGUN, 1), **values}), flush=True)


def main() -> None:
    args = parse()
    from vla_sim_bridge.generate import GenerateConfig, generate

    paths = []
    for entry in args.data:
        task, episodes, seed = entry.split(":")
        config = GenerateConfig(
            task=task, episodes=int(episodes), seed=int(seed), noise=args.noise, compression=None
        )
        folder = args.workdir / entry.replace(":", "_")

        def tell(p, task=task):
            if p.attempts % 400 == 0:
                say({"task": task, "successes": p.successes, "rate": round(p.rate, 2)})

        paths.append(str(generate(config, folder, args.parallel, tell)))
        say({"generated": entry, **json.loads((folder / "statistics.json").read_text())})

    if args.generate_only:
        return
    from vla_training.train import TrainConfig, train

    config = TrainConfig(
        batch_size=args.batch_size,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        ema=args.ema,
        compile=not args.no_compile,
    )
    output = args.workdir / "model"
    checkpoint = train(paths, output, config, args.devices, resume=True, report=say)
    from vla_sim_bridge.rollout import rollout, summarise

    for entry in args.evaluate:
        task, episodes = entry.split(":")
        results = rollout(
            str(checkpoint), task, int(episodes), args.eval_seed, workers=os.cpu_count(),
            execute_steps=args.execute_steps,
        )  # fmt: skip
        say({"evaluated": entry, **summarise(results)})


if __name__ == "__main__":
    main()
