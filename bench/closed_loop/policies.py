#!/usr/bin/env python3
"""Policy families from the same demonstrations at the same cost of training, in closed loop.

    python bench/closed_loop/policies.py WORK --device cuda --minutes 1.5 --workers 14
    python bench/closed_loop/policies.py WORK --stages train --device cuda --part 0/4 ...
    python bench/closed_loop/policies.py WORK --stages evaluate,page

Every model (`RECIPES` of bench/training/from_scratch.py) is trained from scratch for as many
minutes on one device, on demonstrations of Stack_D2 and Stack_L, of which `--shares` name the part
that it sees, with several seeds. Then it plays both tasks, tells how long an answer takes, and
plays Stack_D2 once more with answers that come late (`delays.py` says how). The same command goes
on where it was stopped, also in pieces: --stages are data, train, evaluate and page, and --part
I/N takes every N-th model. WORK holds all that is needed to go on, so it may move to another
machine. Its first call settles the options, of all stages: later ones may leave them out, and are
refused where they give others.

`page` writes docs/explanation/policies.md and bench/results/policies.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process has one core
sys.path += [str(Path(__file__).resolve().parents[1] / "training")]
import from_scratch as scratch
from common import ROOT, is_done, keep, settled

from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.chunking import GUIDED
from vla_inference.policies.registry import load_policy
from vla_inference.system.files import write_whole
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.rollout import rollout, run_episode, summarise
from vla_sim_bridge.tasks import get_task

STAGES = ("data", "train", "evaluate", "page")
FREE = ("work", "stages", "workers", "part", "page", "output")  # options that change no result
TASKS = ("Stack_D2", "Stack_L")
DATA_SEEDS = {"Stack_D2": 61, "Stack_L": 62}
WAYS = {"blend": ["--blend", "0.1"], "rtc": ["--blend", "0", "--chunking", GUIDED]}
NAMES = {
    "tokens": "tokens, one after the other (as OpenVLA)",
    "l1": "a chunk in one pass, L1 (as OpenVLA-OFT)",
    "flow": "flow matching (as SmolVLA)",
    "act": "ACT, which reads no sentence",
    "octo": "readout and diffusion head (as Octo)",
}


@dataclass(frozen=True)
class Cell:
    """One model. share: of the demonstrations that it is trained on."""

    recipe: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe}_share-{self.share:g}_seed-{self.seed}"


def main() -> int:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    if "data" in args.stages:
        generate(args)
    for cell in mine(args):
        if "train" in args.stages:
            train(cell, args)
        if "evaluate" in args.stages:
            evaluate(cell, args)
    if "page" in args.stages:
        write(args)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of data, models and results")
    parser.add_argument("--stages", type=words, default=STAGES, help=", ".join(STAGES))
    parser.add_argument("--models", type=words, default=tuple(scratch.RECIPES))
    parser.add_argument("--minutes", type=float, default=1.5, help="of training, each model")
    parser.add_argument("--steps", type=int, default=0, help="updates instead of --minutes")
    parser.add_argument("--demonstrations", type=int, default=1000, help="of each task")
    parser.add_argument("--shares", type=floats, default=(1.0, 0.25))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=100, help="of each task and model")
    parser.add_argument("--delays", type=floats, default=(0.0, 0.1, 0.3), help="s")
    parser.add_argument("--late-episodes", type=int, default=30, help="of each delay, seed 0")
    parser.add_argument("--horizon", type=int, default=0, help="steps; 0: the task's")
    parser.add_argument("--eval-seed", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="that models are trained on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part", type=part, default=(0, 1), help="I/N: every N-th model")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/explanation/policies.md")
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/policies.json")
    return settled(parser, lambda args: args.work, FREE, check)


def check(args: argparse.Namespace) -> None:
    for known, given in ((STAGES, args.stages), (tuple(scratch.RECIPES), args.models)):
        if strange := [name for name in given if name not in known]:
            raise VlaError(f"{strange[0]!r} is none of {', '.join(known)}")


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def floats(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def part(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not 0 <= int(first) < int(count):
        raise ValueError
    return int(first), int(count)


def cells(args: argparse.Namespace) -> list[Cell]:
    """Whole data first; every seed of one before the next."""
    return [
        Cell(recipe, share, seed)
        for share in args.shares
        for seed in range(args.seeds)
        for recipe in args.models
    ]


def mine(args: argparse.Namespace) -> list[Cell]:
    first, count = args.part
    return cells(args)[first::count]


# -- the stages ---------------------------------------------------------------------------------


def data_of(args: argparse.Namespace, share: float) -> list[Path]:
    return [args.work / "data" / f"{task}_{share:g}" for task in TASKS]


def generate(args: argparse.Namespace) -> None:
    """Demonstrations of both tasks; of a share, the first ones, as generation is repeatable."""
    from vla_sim_bridge.generation.config import GenerateConfig
    from vla_sim_bridge.generation.generate import generate as make

    for share in args.shares:
        for task, folder in zip(TASKS, data_of(args, share), strict=True):
            count = max(1, round(share * args.demonstrations))
            config = GenerateConfig(
                task=task, episodes=count, seed=DATA_SEEDS[task], compression="lzf"
            )
            make(config, folder, args.workers, lambda _: None, None)
            progress(f"{count} demonstrations of {task}")


def checkpoint_of(cell: Cell, args: argparse.Namespace) -> Path:
    return args.work / "models" / cell.name / "run" / "checkpoint"


def is_trained(cell: Cell, args: argparse.Namespace) -> bool:
    return is_done(args.work / "models" / cell.name)


def train(cell: Cell, args: argparse.Namespace) -> None:
    if is_trained(cell, args):
        return
    begun = time.perf_counter()
    scratch.train(
        scratch.RECIPES[cell.recipe],
        data_of(args, cell.share),
        args.work / "models" / cell.name,
        steps=args.steps,
        minutes=args.minutes,
        seed=cell.seed,
        device=args.device,
        workers=args.workers,
        val_split=0.02,
        quiet=True,
    )
    progress(f"{cell.name}: trained in {time.perf_counter() - begun:.0f} s")


def evaluate(cell: Cell, args: argparse.Namespace) -> None:
    kept, model = result_path(cell, args), checkpoint_of(cell, args)
    if kept.is_file():
        return
    if not is_trained(cell, args):
        progress(f"{cell.name}: not trained yet")
        return
    found: dict[str, Any] = {**asdict(cell), **trained_by(model.parent)}
    found["size_mb"] = round((model / "model.safetensors").stat().st_size / 1e6, 1)
    for task in TASKS:
        found[task] = play(model, task, args)
        progress(f"{cell.name}: {found[task]['successes']} of {args.episodes} in {task}")
    found["answer_ms"] = answer_ms(model)
    if cell.seed == 0 and cell.share == max(args.shares):
        found["late"] = play_late(model, args)
    kept.parent.mkdir(exist_ok=True)
    write_whole(kept, json.dumps(found, indent=1))


def result_path(cell: Cell, args: argparse.Namespace) -> Path:
    return args.work / "results" / f"{cell.name}.json"


def trained_by(run: Path) -> dict[str, Any]:
    rows = scratch.metrics(run)
    settings = json.loads((run / "finetune.json").read_text())
    return {
        "updates": rows[-1]["step"],
        "samples": rows[-1]["step"] * settings["batch_size"],
        "samples_per_s": round(statistics.median(row["samples_per_s"] for row in rows)),
        "loss": round(rows[-1]["loss"], 4),
    }


def play(model: Path, task: str, args: argparse.Namespace) -> dict[str, Any]:
    horizon = args.horizon or get_task(task).horizon
    if args.workers > 1:
        how = {"horizon": horizon, "workers": args.workers, "device": "cpu"}
        results = rollout(str(model), task, args.episodes, args.eval_seed, **how)
    else:
        act = load_policy(model, LoadOptions(device="cpu", engine="plain")).act
        sim, seed = world(task), args.eval_seed
        results = [run_episode(sim, act, seed, i, horizon, 4) for i in range(args.episodes)]
    found = summarise(results)
    kept = ("episodes", "successes", "wrong_order", "mean_frames_all")
    return {name: found[name] for name in kept}


@cache
def world(task: str) -> Simulation:
    """Of this process."""
    return Simulation(task)


def answer_ms(model: Path, answers: int = 9) -> dict[str, float]:
    """Medians of one observation, by the engine that is usual on each device that is here."""
    import torch

    found = {}
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        policy = load_policy(model, LoadOptions(device=device))
        policy.warm_up()
        times = [policy.act(policy.needs.grey()).timing["total"] for _ in range(answers)]
        found[device] = round(statistics.median(times), 1)
    return found


def play_late(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Stack_D2 with answers that come late, in each way to join chunks that the model has."""
    from delays import Episode, make_parser, open_model, settings_of

    policy, rows = open_model(str(model)), []
    horizon = args.horizon or get_task("Stack_D2").horizon
    for (way, options), delay in product(WAYS.items(), args.delays):
        if way == "rtc" and GUIDED not in policy.chunking:
            continue
        given = ["--delay", str(delay), "--horizon", str(horizon), *options]
        how = make_parser().parse_args([*given, "--seed", str(args.eval_seed)])
        settings, sim = settings_of(how), world("Stack_D2")
        won = [
            Episode(how, settings, sim, policy, index).play()["success"]
            for index in range(args.late_episodes)
        ]
        row = {"way": way, "delay_s": delay, "episodes": len(won), "successes": sum(won)}
        rows.append(row)
        progress(f"{policy.name}: {row}")
    return rows


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# -- the page -----------------------------------------------------------------------------------


def write(args: argparse.Namespace) -> None:
    found = [
        json.loads(path.read_text())
        for path in (result_path(cell, args) for cell in cells(args))
        if path.is_file()
    ]
    if not found:
        sys.exit(f"{args.work} holds no result yet; add evaluate to --stages")
    if lacking := len(cells(args)) - len(found):
        progress(f"{lacking} of {len(cells(args))} models are still to be played")
    report = {"options": args.options, "cells": found}
    keep(report, args.output, show=False)
    write_whole(args.page, "\n".join(page(report)) + "\n")
    progress(f"{args.page}, {args.output}")


def page(report: dict[str, Any]) -> Iterator[str]:
    o, rows = report["options"], report["cells"]
    cost = f"{o['steps']} updates" if o["steps"] else f"{o['minutes']:g} minutes ({o['device']})"
    yield from [
        "# VLA or not?",
        "<!-- written by bench/closed_loop/policies.py -->",
        f"Policies of five kinds, each trained from scratch for {cost} on the same",
        f"{o['demonstrations']} demonstrations of `Stack_D2` and as many of `Stack_L`, with "
        f"{o['seeds']} seeds.",
        "All have 7 to 10 million parameters, see `agentview` and the sentence, and no state of",
        "the robot. `python bench/closed_loop/policies.py WORK` made this page and",
        "`bench/results/policies.json`. In brackets: Wilson's 95 % intervals, as if one model had",
        "played all episodes of its seeds.",
        "",
        "## All demonstrations",
        "",
    ]
    whole = max(o["shares"])
    yield from results(select(rows, whole))
    yield from [
        "",
        "`Stack_L` has two blocks of one size: only the sentence says which goes on which, so a",
        "policy that cannot read is right half of the time.",
    ]
    for share in (s for s in o["shares"] if s != whole):
        count = max(1, round(share * o["demonstrations"]))
        yield from ["", f"## {count} demonstrations of each task", ""]
        yield from results(select(rows, share))
    late = [row for row in rows if "late" in row]
    if late:
        yield from ["", "## When answers are late", ""]
        yield from late_table(late)
        yield "\n`Stack_D2`, seed 0, images at 10 Hz. `rtc`: real-time chunking in the model."


def select(rows: Sequence[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["share"] == share]


def results(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| policy | Stack_D2 | Stack_L | wrong order | ms an answer, CPU core | samples seen |"
    yield "|---|---|---|---|---|---|"
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        of = [row for row in rows if row["recipe"] == recipe]
        wrong = rate([row["Stack_L"] for row in of], "wrong_order")
        yield (
            f"| {NAMES[recipe]} | {rate([row['Stack_D2'] for row in of])} "
            f"| {rate([row['Stack_L'] for row in of])} | {wrong} "
            f"| {statistics.median(row['answer_ms']['cpu'] for row in of):.0f} "
            f"| {round(statistics.median(row['samples'] for row in of)):,} |"
        )


def late_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    delays = list(dict.fromkeys(late["delay_s"] for row in rows for late in row["late"]))
    yield "| policy | chunks joined by | " + " | ".join(f"{d:g} s" for d in delays) + " |"
    yield "|---|---|" + "---|" * len(delays)
    for row in rows:
        for way in dict.fromkeys(late["way"] for late in row["late"]):
            of = {late["delay_s"]: late for late in row["late"] if late["way"] == way}
            shown = " | ".join(rate([of[delay]]) for delay in delays)
            yield f"| {NAMES[row['recipe']]} | `{way}` | {shown} |"


def rate(of: Sequence[dict[str, Any]], what: str = "successes") -> str:
    """Such as "54 % (44.3 to 63.4)"."""
    good, all_ = (sum(row[name] for row in of) for name in (what, "episodes"))
    low, high = wilson_interval(good, all_)
    return f"{100 * good / all_:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    raise SystemExit(main())
