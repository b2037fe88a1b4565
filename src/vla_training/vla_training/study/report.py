"""Writes a study's report: results.json, tables (report.md) and a plot (success.png)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.confidence_intervals import mean_interval, wilson_interval
from vla_sim_bridge.evaluation.report import versions
from vla_training.evaluation.report import INK, LINE, PALE, write_statistics
from vla_training.study.config import Cell, StudyConfig

COLOURS = ("#2f6fdf", "#d6604d", "#4caf6e", "#8a63c9", "#c98a1b")


def summarise_cells(results: Mapping[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number of episodes and passes, over all seeds that are there.

    The interval is Wilson's, of all episodes together: it tells of the episodes played, and what
    each seed reached stands beside it, in the order of `seed_numbers`.
    """
    rows = []
    for episodes, passes in sorted(
        {(c.episodes, c.passes) for c in results}, key=lambda k: k[::-1]
    ):
        mine = [c for c in results if (c.episodes, c.passes) == (episodes, passes)]
        mine.sort(key=lambda c: c.seed)
        same = [results[c] for c in mine]
        good, tried = (sum(r[k] for r in same) for k in ("successes", "episodes"))
        training = [r["training"] for r in same]
        l1 = [t["held_out_l1"] for t in training if t["held_out_l1"] is not None]
        rows.append(
            {
                "episodes": episodes,
                "passes": passes,
                "seeds": len(same),
                "epochs": sum(t["epochs"] for t in training) / len(same),
                "frames_seen": training[0]["frames_seen"],
                "successes": good,
                "tried": tried,
                "success_rate": good / tried,
                "success_rate_wilson95": list(wilson_interval(good, tried)),
                "seed_numbers": [c.seed for c in mine],
                "seed_rates": [r["success_rate"] for r in same],
                "mean_frames_all": sum(r["mean_frames_all"] for r in same) / len(same),
                "held_out_l1": sum(l1) / len(l1) if l1 else None,
            }
        )
    return rows


def compare(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each row against the one of fewest episodes and equal passes, paired by seed.

    Seeds are what is drawn anew here, so the interval is Student's over their differences: models
    of one seed begin alike, the smaller one's episodes are among the larger one's, and both play
    the same ones.
    """
    found = []
    for row in rows:
        base = min((r for r in rows if r["passes"] == row["passes"]), key=lambda r: r["episodes"])
        ours, theirs = (_by_seed(r) for r in (row, base))
        gains = [ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys())]
        if row is base or len(gains) < 2:
            continue
        found.append(
            {
                "episodes": row["episodes"],
                "against": base["episodes"],
                "passes": row["passes"],
                "seed_gains": gains,
                "gain": sum(gains) / len(gains),
                "gain_t95": list(mean_interval(gains)),
            }
        )
    return found


def _by_seed(row: Mapping[str, Any]) -> dict[int, float]:
    rates = row["seed_rates"]
    return dict(zip(row.get("seed_numbers", range(len(rates))), rates, strict=True))


def write_report(
    folder: Path, config: StudyConfig, plan: Mapping[str, Any], results: Mapping[Cell, Any]
) -> dict[str, Any]:
    rows = summarise_cells(results)
    cells = len(config.cells([int(p) for p in plan["steps"]]))
    found = {
        "complete": len(results) == cells,
        "cells": cells,
        "finished": len(results),
        **plan,
        "rows": rows,
        "comparisons": compare(rows),
        "versions": versions(),
    }
    if rows:
        write_whole(folder / "success.png", draw(rows))
        write_whole(folder / "report.md", table(config, found).encode())
    write_statistics(folder / "results.json", found)
    return found


def table(config: StudyConfig, found: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Episodes or epochs",
        "",
        f"The small model on `{config.task}`, {config.batch_size} frames a step, "
        f"{'from ' + config.start if config.start else 'from scratch'}; "
        f"{config.eval_episodes} episodes of seed {config.eval_seed} for each model, settled.",
        "",
    ]
    if not found["complete"]:
        lines += [f"Incomplete: {found['finished']} of {found['cells']} cells.", ""]
    lines += rate_lines(found["rows"])
    lines += [
        "",
        "Wilson's intervals are of all episodes of a row together, as if one model had played "
        "them; deviation: of the seeds' rates, and what playing so few episodes alone would give. "
        "Held-out L1: normalised, on episodes that no model saw.",
        "",
    ]
    if gains := gain_lines(compare(found["rows"])):
        lines += ["Paired by seed, points of success:", "", *gains, ""]
    lines.append("![success by number of episodes](success.png)")
    return "\n".join(lines) + "\n"


def rate_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _head(
        "episodes",
        "epochs",
        "frames seen",
        "success",
        "Wilson 95 %",
        "each seed",
        "deviation (chance)",
        "mean frames, all",
        "held-out L1",
    )
    for r in rows:
        low, high = (100 * v for v in r["success_rate_wilson95"])
        rates, rate, n = r["seed_rates"], r["success_rate"], len(r["seed_rates"])
        spread = "-"
        if n > 1:
            chance = math.sqrt(rate * (1 - rate) * n / r["tried"])
            spread = f"{100 * stdev(rates):.1f} ({100 * chance:.1f})"
        l1 = "-" if r["held_out_l1"] is None else f"{r['held_out_l1']:.4f}"
        values = (
            f"{r['episodes']}",
            f"{r['epochs']:.1f}",
            f"{r['frames_seen']:,}",
            f"{r['successes']} of {r['tried']} = {100 * rate:.1f} %",
            f"{low:.1f} to {high:.1f} %",
            ", ".join(f"{100 * v:.0f}" for v in rates) + " %",
            spread,
            f"{r['mean_frames_all']:.1f}",
            l1,
        )
        lines.append("| " + " | ".join(values) + " |")
    return lines


def gain_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of what `compare` found; nothing where it found nothing."""
    lines = _head("episodes", "against", "each seed", "mean", "95 % (Student's t)")
    for c in comparisons:
        low, high = (100 * v for v in c["gain_t95"])
        each = ", ".join(f"{100 * v:+.0f}" for v in c["seed_gains"])
        lines.append(
            f"| {c['episodes']} | {c['against']} | {each} | {100 * c['gain']:+.1f} | "
            f"{low:+.1f} to {high:+.1f} |"
        )
    return lines if comparisons else []


def _head(*names: str) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


# -- the plot ---------------------------------------------------------------------------------


def draw(rows: Sequence[Mapping[str, Any]], width: int = 720, height: int = 420) -> bytes:
    """PNG: success over the number of episodes, a line for each cost; rings are seeds."""
    scale, left, right, top, bottom = 2, 64, 24, 40, 72  # drawn twice as large for sharp lines
    image = Image.new("RGB", (width * scale, height * scale), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(12 * scale)
    counts = sorted({r["episodes"] for r in rows})
    low, high = math.log(counts[0]), math.log(counts[-1])

    def x(episodes: float) -> float:
        inner, share = width - left - right - 60, 0.5
        if high > low:
            share = (math.log(episodes) - low) / (high - low)
        return left + 30 + inner * share

    def y(rate: float) -> float:
        return top + (height - top - bottom) * (1 - rate)

    def text(at, words, colour=INK, anchor="mm"):
        pen.text((at[0] * scale, at[1] * scale), words, colour, font, anchor)

    def line(points, colour, thick=1.0):
        pen.line([(a * scale, b * scale) for a, b in points], colour, round(thick * scale))

    def ring(at, radius, **how):
        box = [(at[0] - radius) * scale, (at[1] - radius) * scale]
        pen.ellipse([*box, box[0] + 2 * radius * scale, box[1] + 2 * radius * scale], **how)

    for percent in range(0, 101, 20):
        line([(left, y(percent / 100)), (width - right, y(percent / 100))], LINE)
        text((left - 8, y(percent / 100)), f"{percent} %", PALE, "rm")
    costs = sorted({r["passes"] for r in rows})
    for count in counts:
        (first, *_) = (r for r in rows if r["episodes"] == count)
        epochs = f"{first['epochs']:.1f} epochs" if len(costs) == 1 else ""
        words = f"{count:,} episodes" if len(counts) <= 5 else f"{count:,}"
        text((x(count), height - bottom + 14), words)
        text((x(count), height - bottom + 30), epochs, PALE)
    about = "success at equal frames seen; bars: Wilson 95 %; rings: models, joined by seed"
    text(((left + width - right) / 2, height - 14), about, PALE)
    for i, passes in enumerate(costs):
        colour = COLOURS[i % len(COLOURS)]
        own = [r for r in rows if r["passes"] == passes]
        text((left + 10 + 190 * i, 16), f"episodes x epochs = {passes:,}", colour, "lm")
        for seed in sorted({s for r in own for s in _by_seed(r)}):
            there = [(r["episodes"], _by_seed(r)[seed]) for r in own if seed in _by_seed(r)]
            line([(x(count) + 14, y(rate)) for count, rate in there], _tint(colour), 1.5)
        line([(x(r["episodes"]), y(r["success_rate"])) for r in own], colour, 1.5)
        for r in own:
            at, (bottom_rate, top_rate) = x(r["episodes"]), r["success_rate_wilson95"]
            line([(at, y(bottom_rate)), (at, y(top_rate))], colour, 1.5)
            for end in (bottom_rate, top_rate):
                line([(at - 5, y(end)), (at + 5, y(end))], colour, 1.5)
            ring((at, y(r["success_rate"])), 3, fill=colour)
            for rate in r["seed_rates"]:
                ring((at + 14, y(rate)), 3, fill="white", outline=colour, width=scale)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tint(colour: str, share: float = 0.35) -> tuple[int, ...]:
    return tuple(round(255 + share * (v - 255)) for v in ImageColor.getrgb(colour))
