#!/usr/bin/env python3
"""Training on fresh episodes against training on a fixed set, at equal frames.

    python bench/training/online.py --output work/online --device cuda --parallel 14 --page

Five runs of `vla finetune` from the same checkpoint, with as many updates of as many samples: all
episodes from the beginning ("fixed"); rounds of new ones as they are made ("online"); the same
rounds with what calms their gradients ("warm-up": the rate rises again in each round, "mix": a
fixed share of the samples is of the newest round), each by itself and both. All see the same
episodes in the end. Reported are the norms of gradients at the turns of rounds and beside them,
how many were clipped or skipped, the loss, and success in closed loop. The same command continues
a killed one, and may leave out all options but --output. --page keeps bench/results/online.json
and writes docs/explanation/online.md.

Budget, as it stands: 800 updates of 64 samples in each of the five runs, minutes of a GPU and
hours of two CPU cores; 200 demonstrations and 500 test episodes of the CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from common import RESULTS, ROOT, finish, keep, settled, spelled
from pages import fill_tables

from vla_inference.system import charts
from vla_inference.system.files import write_whole
from vla_sim_bridge.cli.rollout import find_model
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.rollout import rollout
from vla_sim_bridge.tasks import get_task
from vla_training.finetune.config import FinetuneConfig, Online
from vla_training.finetune.finetune import can_resume, train
from vla_training.loader.frame_index import DatasetSource

FIGURES = RESULTS / "online.json"
IMAGE = ROOT / "docs" / "images" / "online.webp"
TARGET = ROOT / "docs" / "explanation" / "online.md"
FREE = ("output", "workers", "parallel", "page")  # options that change no result
TURN = 0.1  # of a round, from its beginning on, counts as its turn
COLOURS = ("#6a737d", "#d6604d", "#c98a1b", "#4caf6e", "#2f6fdf")

PAGE = """# Episodes as they are made

OpenVLA's tutorial also trained on episodes fresh from the simulator, and found the gradients less
stable than on a fixed set. Here both are done at equal frames, from the same checkpoint: {rounds}
rounds of {episodes} episodes of `{task}`, {steps} updates a round, {batch} samples an update. All
runs have seen the same episodes at the end.

```
python bench/training/online.py --output FOLDER --page {options}
```

Gradients are clipped to norm 1, and one ten times the usual norm is skipped, in all runs. Two more
things can be asked for: `--online-warmup` has the learning rate rise again in each round,
`--online-fresh` fixes the share of the newest round among the samples.

![Loss and gradient norm by update](../images/online.webp)

<!-- online -->
<!-- /online -->

At the turn: median norm in the first tenth of the rounds after the first, beside it that of the
rest. Success: {eval} episodes, the same for all, with Wilson's 95 % interval.

(figures: `bench/results/online.json`)
"""


@dataclass(frozen=True)
class Arm:
    name: str
    online: bool = True
    fresh: float | None = None
    warmup: float = 0.0  # of a round


ARMS = (
    Arm("online"),  # the first, for it makes the episodes
    Arm("online, warm-up", warmup=0.2),
    Arm("online, mix", fresh=0.5),
    Arm("online, warm-up and mix", fresh=0.5, warmup=0.2),
    Arm("fixed", online=False),
)


def run_arm(args: argparse.Namespace, arm: Arm) -> dict[str, Any]:
    folder = args.output / arm.name.replace(", ", "-").replace(" ", "-")
    told = folder / "told.json"
    if told.is_file():
        return json.loads(told.read_text())
    made = args.output / "online" / "online"  # rounds of the first arm
    if arm.online and folder.name != "online" and not (folder / "online").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "online").symlink_to(made.resolve(), target_is_directory=True)
    online = Online(
        tasks=(args.task,) if arm.online else (),
        episodes=args.episodes,
        steps=args.steps,
        parallel=args.parallel,
        seed=args.seed,
        fresh=arm.fresh,
        warmup=round(arm.warmup * args.steps),
    )
    fixed = sorted(made.glob(f"round-*/{args.task}/demo.hdf5")) if not arm.online else []
    config = FinetuneConfig(
        vla_path=args.model,
        folder=str(folder),
        sources=tuple(DatasetSource(str(path)) for path in fixed),
        online=online,
        lora_rank=0,
        action_space="online",
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        max_steps=args.rounds * args.steps,
        val_split=0.0,
        log_steps=max(1, args.steps // 50),
        save_minutes=2.0,
        workers=args.workers,
        device=args.device,
        tensorboard=False,
        seed=args.seed,
    )
    finish(folder, lambda: train(config, resume=can_resume(folder))[1])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [line for line in lines if line["kind"] == "train"]
    keys = ("step", "loss", "gradient_norm", "gradient_norm_max", "clipped", "skipped")
    results = rollout(
        str(folder / "checkpoint"),
        args.task,
        args.eval_episodes,
        args.seed + 1000,
        horizon=get_task(args.task).horizon,
        workers=max(1, args.parallel),
        device="cpu",
    )
    found = {
        "arm": arm.name,
        "curve": [{k: line[k] for k in keys} for line in curve],
        "outcomes": [r.outcome for r in results],
    }
    write_whole(told, json.dumps(found))
    return found


def row(found: dict[str, Any], steps: int) -> str:
    after = [line for line in found["curve"] if line["step"] > steps]
    turns = [ln["gradient_norm_max"] for ln in after if (ln["step"] - 1) % steps < TURN * steps]
    rest = [ln["gradient_norm_max"] for ln in after if (ln["step"] - 1) % steps >= TURN * steps]
    norms = [f"{median(part):.2f}" if part else "-" for part in (turns, rest)]
    clipped = sum(line["clipped"] for line in found["curve"]) / max(1, len(found["curve"]))
    last = found["curve"][-len(found["curve"]) // 10 :]
    loss = sum(line["loss"] for line in last) / len(last)
    good, tried = found["outcomes"].count("success"), len(found["outcomes"])
    low, high = (100 * v for v in wilson_interval(good, tried))
    return (
        f"| {found['arm']} | {norms[0]} | {norms[1]} | {100 * clipped:.0f} % | "
        f"{found['curve'][-1]['skipped']} | {loss:.4f} | {good} of {tried} = "
        f"{100 * good / tried:.0f} % ({low:.0f} to {high:.0f}) |"
    )


def table(runs: list[dict[str, Any]], steps: int) -> list[str]:
    head = ("run", "norm at the turn", "beside it", "clipped", "skipped", "last loss", "success")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *(row(found, steps) for found in runs)]


def draw(runs: list[dict[str, Any]], steps: int) -> bytes:
    """PNG: loss above, the largest gradient norm below; a line for each turn of a round."""
    figure = charts.new_figure(720, 520)
    above, below = figure.subplots(2, 1, sharex=True)
    for found, colour in zip(runs, COLOURS, strict=True):
        at = [line["step"] for line in found["curve"]]
        how: dict[str, Any] = {"color": colour, "linewidth": 1}
        above.plot(at, [line["loss"] for line in found["curve"]], label=found["arm"], **how)
        below.plot(at, [line["gradient_norm_max"] for line in found["curve"]], **how)
    for axes, label in ((above, "loss"), (below, "largest gradient norm")):
        axes.set_yscale("log")
        axes.set_ylabel(label, color=charts.PALE, fontsize=9)
        for turn in range(steps, max(at), steps):
            axes.axvline(turn, color=charts.LINE)
        charts.style(axes)
    below.set_xlabel("updates; lines: a new round", color=charts.PALE, fontsize=9)
    above.legend(frameon=False, fontsize=8)
    return charts.png(figure)


def write_page(args: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(draw(runs, args.steps))).save(buffer, "WEBP", lossless=True, method=6)
    write_whole(IMAGE, buffer.getvalue())
    made = PAGE.format(
        rounds=args.rounds,
        episodes=args.episodes,
        task=args.task,
        steps=args.steps,
        batch=args.batch_size,
        eval=args.eval_episodes,
        options=spelled(args.options),
    )
    page = fill_tables(made, {"online": table(runs, args.steps)})
    TARGET.write_text(page, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", help="checkpoint; the small model that ships, if left out")
    parser.add_argument("--task", default="Lift_D1")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=50, help="of each round")
    parser.add_argument("--steps", type=int, default=200, help="updates of each round")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=4, help="that read frames")
    parser.add_argument("--parallel", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--page", action="store_true", help="keep the figures, write the page")
    args = settled(
        parser, lambda a: a.output, FREE, lambda a: (find_model(a.model), get_task(a.task))
    )
    args.model, args.task = find_model(args.model), get_task(args.task).name
    args.output = args.output.absolute()
    runs = [run_arm(args, arm) for arm in ARMS]
    print("\n".join(table(runs, args.steps)))
    if args.page:
        keep({"settings": args.options, "runs": runs}, FIGURES, show=False)
        write_page(args, runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
