#!/usr/bin/env python3
"""Makes the small ACT and the small flow-matching model that ship, from this repository alone.

    python bench/training/shipped.py act WORK --device cuda --minutes 12 --workers 14
    python bench/training/shipped.py flow WORK --device cuda --minutes 12 --workers 14

Generates demonstrations of Stack_D2, trains from scratch what `RECIPES` of from_scratch.py says,
stored in bfloat16, plays 200 episodes that no training data can be made of, and writes the folder
WORK/stack-act or WORK/stack-flow: the checkpoint and its card. The same command goes on where it
was stopped; --stages data, train and evaluate,card may run on different machines. The first call
settles the options for both models of WORK, later ones may leave them out. The status is 1 where
the model is too large, or succeeds in less than `WANTED`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process has one core
import from_scratch as scratch
from common import is_done, provenance, settled, spelled

from vla_inference.errors import VlaError
from vla_inference.policies.registry import describe_policy
from vla_inference.system.files import Staged, write_whole
from vla_sim_bridge.evaluation.rollout import rollout, summarise
from vla_sim_bridge.tasks import get_task

TASK, DATA_SEED, EVAL_SEED = "Stack_D2", 71, 7
STAGES = ("data", "train", "evaluate", "card")
FREE = ("model", "work", "stages", "device", "workers")  # options that the card does not tell
WANTED, LARGEST = 0.95, 20.0  # success; MB
TITLES = {"act": "ACT", "flow": "A small SmolVLA"}


def main() -> int:
    args = parse()
    data, run = args.work / "data", args.work / args.model
    if "data" in args.stages:
        generate(args, data)
    if "train" in args.stages:
        recipe = scratch.RECIPES[args.model]
        recipe = replace(recipe, batch=args.batch or recipe.batch)
        how = {"steps": args.steps, "minutes": args.minutes, "seed": args.seed}
        how |= {"device": args.device, "workers": args.workers, "image_aug": args.augment}
        scratch.train(recipe, [data], run, stored="bfloat16", **how)
    if "evaluate" in args.stages:
        evaluate(args, run)
    if "card" in args.stages:
        return ship(args, run)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=tuple(TITLES))
    parser.add_argument("work", type=Path, help="folder of data, runs and the model")
    stages = {"type": lambda text: text.split(","), "default": STAGES}
    parser.add_argument("--stages", **stages, help="separated by commas")
    parser.add_argument("--demonstrations", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=12.0, help="of training")
    parser.add_argument("--steps", type=int, default=0, help="updates instead of --minutes")
    parser.add_argument("--batch", type=int, default=0, help="0: the recipe's")
    parser.add_argument("--augment", action="store_true", help="random crops and colours")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--horizon", type=int, default=get_task(TASK).horizon)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    return settled(parser, lambda args: args.work, FREE, check)


def check(args: argparse.Namespace) -> None:
    if strange := [stage for stage in args.stages if stage not in STAGES]:
        raise VlaError(f"{strange[0]!r} is none of {', '.join(STAGES)}")


def generate(args: argparse.Namespace, data: Path) -> None:
    from vla_sim_bridge.generation.config import GenerateConfig
    from vla_sim_bridge.generation.generate import generate as make

    config = GenerateConfig(
        task=TASK, episodes=args.demonstrations, seed=DATA_SEED, compression="lzf"
    )
    make(config, data, args.workers)


def evaluate(args: argparse.Namespace, run: Path) -> None:
    """Keeps every episode in evaluation.json of the run's folder."""
    if not is_done(run):
        sys.exit(f"{run} is not trained to its end; add train to --stages")
    model = run / "run" / "checkpoint"
    results = rollout(
        str(model),
        TASK,
        args.episodes,
        EVAL_SEED,
        horizon=args.horizon,
        workers=args.workers,
        device="cpu",
    )
    found = {"provenance": provenance(), **summarise(results)}
    found["results"] = [asdict(result) for result in results]
    write_whole(run / "evaluation.json", json.dumps(found, indent=1))


def ship(args: argparse.Namespace, run: Path) -> int:
    """Writes the folder that ships; the status says whether it may."""
    found = json.loads((run / "evaluation.json").read_text())
    output = args.work / f"stack-{args.model}"
    shutil.rmtree(output, ignore_errors=True)
    with Staged(output) as staged:
        shutil.copytree(run / "run" / "checkpoint", staged, dirs_exist_ok=True)
        (staged / "evaluation").mkdir()
        shutil.copyfile(
            run / "evaluation.json", staged / "evaluation" / f"{TASK}_train_seed{EVAL_SEED}.json"
        )
        (staged / "README.md").write_text(card(args, run, staged, found))
    size = (output / "model.safetensors").stat().st_size / 1e6
    good = found["success_rate"] >= WANTED and size <= LARGEST
    print(f"{output}: {size:.1f} MB, {found['successes']} of {found['episodes']} in {TASK}")
    return 0 if good else 1


def card(args: argparse.Namespace, run: Path, folder: Path, found: dict[str, Any]) -> str:
    updates = scratch.metrics(run / "run")[-1]["step"]
    settings = json.loads((run / "run" / "finetune.json").read_text())
    low, high = found["success_rate_wilson95"]
    share = f"{100 * low:.1f} to {100 * high:.1f} %"
    lines = "\n".join(f"    {line}" for line in str(describe_policy(folder)).splitlines()[1:])
    return f"""# stack-{args.model}

{TITLES[args.model]} that stacks one named block on another, trained from scratch on generated
demonstrations.

{lines}

**In**: one image of robosuite's `agentview` (224 x 224 RGB), one sentence, no state.

| task | success | 95 % | mean frames, all |
|---|---|---|---|
| {TASK} | {found["successes"]} of {found["episodes"]} | {share} | {found["mean_frames_all"]:.1f} |

Settled success, horizon {found["horizon"]}, 4 steps of each chunk executed, on seed {EVAL_SEED},
of which no training data can be made.

## How it was made
`python bench/training/shipped.py {args.model} WORK {spelled(args.options)}`:
{args.demonstrations} demonstrations of {TASK}
(seed {DATA_SEED}), {updates} updates of {settings["batch_size"]} samples, AdamW, peak
learning rate {settings["learning_rate"]:g}, cosine.
"""


if __name__ == "__main__":
    raise SystemExit(main())
