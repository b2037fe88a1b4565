#!/usr/bin/env python3
"""Success and time to finish by executed steps of a chunk and by the delay of answers.

    python bench/closed_loop/executed_steps.py [--episodes 20] [--steps 1,2,4,8] [--delays 0,2,4]

One process, no ROS, simulated time: a delay is a number of control steps (0.05 s) between an image
and its answer, in which the robot goes on with the chunk before. A model is asked again once it
has answered, so fewer executed steps than the delay are as many as the delay. The same episodes
for all points, in turn. Writes bench/results/executed_steps.json after each episode (the same
command goes on, `--fresh` begins anew), docs/images/executed_steps.webp and the table of
docs/explanation/executed_steps.md (which tools/figures.py --check compares).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from common import RESULTS, ROOT, keep
from pages import fill_tables

os.environ.setdefault("OMP_NUM_THREADS", "1")  # so that episodes end alike on any machine

from vla_inference.system import charts
from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.confidence_intervals import mean_interval, wilson_interval

PERIOD = 0.05  # s
FIGURES = RESULTS / "executed_steps.json"
IMAGE = ROOT / "docs" / "images" / "executed_steps.webp"
PAGE = ROOT / "docs" / "explanation" / "executed_steps.md"
COLOURS = ("#2f6fdf", "#d6604d", "#4caf6e", "#8a63c9")


@dataclass(frozen=True)
class Point:
    """Control steps: executed of a chunk, and until an answer is there."""

    steps: int
    delay: int

    @property
    def name(self) -> str:
        return f"steps {self.steps}, delay {self.delay}"


def points(steps: Sequence[int], delays: Sequence[int]) -> list[Point]:
    """Those that differ: fewer steps than the delay are as many as the delay."""
    return list(dict.fromkeys(Point(max(n, d), d) for d in delays for n in steps))


def play(args: argparse.Namespace, found: dict[str, Any], output: Path) -> None:
    """The episodes that are missing, all points of one after the other."""
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy
    from vla_sim_bridge.cli.rollout import find_model
    from vla_sim_bridge.envs.protocol import make_world
    from vla_sim_bridge.evaluation.rollout import run_episode

    policy = load_policy(find_model(args.model), LoadOptions(device="cpu"))
    world = make_world(args.task)
    horizon = world.task.horizon
    for index in range(args.episodes):
        for point in points(args.steps, args.delays):
            rows = found["points"].setdefault(point.name, [])
            if len(rows) > index:
                continue
            how = (args.seed, index, horizon, point.steps, point.delay)
            result = run_episode(world, policy.act, *how)
            rows.append([result.outcome, result.frames])
            keep(found, output, show=False)
            print(f"episode {index}, {point.name}: {result.outcome}, {result.frames}", flush=True)
    world.close()


def table_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per point: successes of how many, frames until success."""
    rows = []
    for name, episodes in found["points"].items():
        steps, delay = (int(part.split()[1]) for part in name.split(", "))
        frames = [frames for outcome, frames in episodes if outcome == "success"]
        rows.append(
            {
                "steps": steps,
                "delay": delay,
                "episodes": len(episodes),
                "successes": len(frames),
                "wilson95": wilson_interval(len(frames), len(episodes)),
                "seconds": PERIOD * sum(frames) / len(frames) if frames else None,
                "seconds_t95": [PERIOD * v for v in mean_interval(frames)] if frames else None,
            }
        )
    return sorted(rows, key=lambda r: (r["delay"], r["steps"]))


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    head = ("delay of answers", "executed steps", "success", "Wilson 95 %", "time to success")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in table_rows(found):
        low, high = (100 * v for v in r["wilson95"])
        rate, time = 100 * r["successes"] / r["episodes"], "-"
        if r["seconds"] is not None:
            spread = r["seconds_t95"][1] - r["seconds"]
            time = f"{r['seconds']:.2f} ± {spread:.2f} s" if r["successes"] > 1 else "one run"
        lines.append(
            f"| {PERIOD * r['delay']:g} s | {r['steps']} | {r['successes']} of {r['episodes']} = "
            f"{rate:.0f} % | {low:.0f} to {high:.0f} % | {time} |"
        )
    return lines


def draw(found: dict[str, Any]) -> bytes:
    """PNG: success above, time to success below, a line for each delay."""
    rows = table_rows(found)
    figure = charts.new_figure(720, 520)
    above, below = figure.subplots(2, 1, sharex=True)
    delays = sorted({r["delay"] for r in rows})
    for number, delay in enumerate(delays):
        mine = [r for r in rows if r["delay"] == delay]
        at = [r["steps"] * 1.03 ** (number - 1) for r in mine]
        how: dict[str, Any] = {"color": COLOURS[number], "capsize": 3, "marker": "o"}
        rates = [r["successes"] / r["episodes"] for r in mine]
        bars = [
            [max(0.0, rate - r["wilson95"][0]) for rate, r in zip(rates, mine, strict=True)],
            [max(0.0, r["wilson95"][1] - rate) for rate, r in zip(rates, mine, strict=True)],
        ]
        above.errorbar(at, rates, yerr=bars, label=f"delay {PERIOD * delay:g} s", **how)
        timed = [(x, r) for x, r in zip(at, mine, strict=True) if r["successes"] > 1]
        spreads = [r["seconds_t95"][1] - r["seconds"] for _, r in timed]
        times = [r["seconds"] for _, r in timed]
        below.errorbar([x for x, _ in timed], times, yerr=spreads, **how)
    ticks = sorted({r["steps"] for r in rows})
    for axes in (above, below):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.grid(axis="y", color=charts.LINE)
        charts.style(axes, ())
    above.set_ylim(0, 1.02)
    above.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    above.set_ylabel("success", color=charts.PALE, fontsize=9)
    below.set_ylim(bottom=0)
    below.set_ylabel("time to success [s]", color=charts.PALE, fontsize=9)
    below.set_xlabel("executed steps of each chunk; bars: 95 %", color=charts.PALE, fontsize=9)
    above.legend(frameon=False, fontsize=9)
    return charts.png(figure)


def write_page(found: dict[str, Any]) -> None:
    from PIL import Image

    page = fill_tables(PAGE.read_text(encoding="utf-8"), {"steps": table(found)})
    PAGE.write_text(page, encoding="utf-8")
    buffer = io.BytesIO()
    Image.open(io.BytesIO(draw(found))).save(buffer, "WEBP", lossless=True, method=6)
    write_whole(IMAGE, buffer.getvalue())


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="Stack_D2")
    parser.add_argument("--model", help="checkpoint; the small model that ships, if left out")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--steps", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--delays", type=numbers, default=[0, 2, 4], help="control steps")
    parser.add_argument("--output", type=Path, default=FIGURES)
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    args = parser.parse_args()
    asked = {"task": args.task, "model": args.model or "stack-small", "seed": args.seed}
    found: dict[str, Any] = {**asked, "points": {}}
    if args.output.is_file() and not args.fresh:
        there = json.loads(args.output.read_text())
        if any(there.get(key) != value for key, value in asked.items()):
            sys.exit(f"{args.output} is of another task, model or seed: give --fresh or --output")
        found = there
        found.pop("provenance")
    play(args, found, args.output)
    if args.output.resolve() == FIGURES:
        write_page(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
