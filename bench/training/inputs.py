#!/usr/bin/env python3
"""Compares inputs at equal cost: one frame; 2 frames; state; wrist camera; all of them.

    python bench/training/inputs.py --output work/inputs --device cuda --parallel 14

Demonstrations are generated, every model is trained for the same time and tested in closed loop:
success, success with late answers, success where the hand hides the block. The same command
continues a study that was killed, also in the midst of a model. With --page it ends with
bench/results/inputs.json and docs/explanation/inputs.md (all models must be there).

Budget, as it stands: 15 models of 1.2 minutes are 18 minutes of one H200, or 5 of four; 6,000
episodes are 5 to 6 core hours of the CPU beside it, and 800 demonstrations half a core hour.
--device cpu does the same far more slowly: use it with small numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from common import RESULTS, ROOT, keep, provenance
from pages import fill_tables

from vla_training.study.inputs.config import InputsConfig
from vla_training.study.inputs.report import PAGE, tables
from vla_training.study.inputs.study import study

TARGET = ROOT / "docs" / "explanation" / "inputs.md"
FIGURES = RESULTS / "inputs.json"


def names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def read_arguments() -> tuple[InputsConfig, bool]:
    usual = InputsConfig(output="")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder; the same command continues")
    parser.add_argument("--data", type=names, default=(), help="HDF5 files of both cameras")
    parser.add_argument("--tasks", type=names, default=usual.tasks)
    parser.add_argument("--demonstrations", type=int, default=usual.demonstrations, help="a task")
    parser.add_argument("--minutes", type=float, default=usual.minutes, help="of each model")
    parser.add_argument("--steps", type=int, help="of each model, in place of --minutes")
    parser.add_argument("--seeds", type=int, default=usual.seeds)
    parser.add_argument("--batch-size", type=int, default=usual.batch_size)
    parser.add_argument("--eval-episodes", type=int, default=usual.eval_episodes)
    parser.add_argument("--delays", type=numbers, default=usual.delays, help="control steps")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--parallel", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--page", action="store_true", help="keep the figures, write the page")
    given = vars(parser.parse_args())
    page = given.pop("page")
    config = InputsConfig(**given)
    return (replace(config, minutes=None) if config.steps else config), page


def main() -> int:
    config, page = read_arguments()
    models = study(config, lambda text: print(text, flush=True))
    lines = [line for part in tables(models).values() for line in (*part, "")]
    print("\n".join(lines))
    if page:
        keep({"settings": config.identity(), "models": models}, FIGURES, show=False)
        write_page(config, models)
    return 0


def write_page(config: InputsConfig, models: list) -> None:
    each = f"{config.steps:,} steps" if config.steps else f"{config.minutes:g} minutes"
    made = PAGE.format(
        tasks=" and ".join(f"`{task}`" for task in config.tasks),
        cost=f"{each} a model",
        command=provenance()["command"],
        budget=f"{len(config.cells)} models of {each}",
        episodes=config.eval_episodes,
        seeds=config.seeds,
    )
    TARGET.write_text(fill_tables(made, tables(models)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
