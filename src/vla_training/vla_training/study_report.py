"""What a study found: results.json, a table (report.md) and a plot (success.png)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vla_sim_bridge.report import versions
from vla_sim_bridge.statistics import wilson_interval
from vla_training.eval_report import INK, LINE, PALE, write_statistics, write_whole
from vla_training.study_config import Cell, StudyConfig

COLOURS = ("#2f6fdf", "#d6604d", "#4caf6e", "#8a63c9", "#c98a1b")


def summarise_cells(results: Mapping[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number of episodes and passes, over all seeds that are there.

    The interval is Wilson's, of all episodes together: it tells of the episodes played, and how
    far seeds differ stands beside it.
    """
    rows = []
    for episodes, passes in sorted(
        {(c.episodes, c.passes) for c in results}, key=lambda k: k[::-1]
    ):
        same = [r for c, r in results.items() if (c.episodes, c.passes) == (episodes, passes)]
        good, tried = (sum(r[k] for r in same) for k in ("successes", "episodes"))
        training = [r["training"] for r in same]
        l1 = [t["held_out_l1"] for t in training if t["held_out_l1"] is not None]
        rows.append(
            {
                "episodes": episodes, "passes": passes, "seeds": len(same),
                "epochs": sum(t["epochs"] for t in training) / len(same),
                "frames_seen": training[0]["frames_seen"],
                "successes": good, "tried": tried, "success_rate": good / tried,
                "success_rate_wilson95": list(wilson_interval(good, tried)),
                "seed_rates": [r["success_rate"] for r in same],
                "mean_frames_all": sum(r["mean_frames_all"] for r in same) / len(same),
                "held_out_l1": sum(l1) / len(l1) if l1 else None,
            }
        )  # fmt: skip
    return rows


def write_report(
    folder: Path, config: StudyConfig, plan: Mapping[str, Any], results: Mapping[Cell, Any]
) -> dict[str, Any]:
    rows = summarise_cells(results)
    cells = len(config.cells([int(p) for p in plan["steps"]]))
    found = {
        "complete": len(results) == cells, "cells": cells, "finished": len(results),
        **plan, "rows": rows, "versions": versions(),
    }  # fmt: skip
    if rows:
        write_whole(folder / "success.png", draw(rows))
        write_whole(folder / "report.md", table(config, found).encode())
    write_statistics(folder / "results.json", found)
    return found


def table(config: StudyConfig, found: Mapping[str, Any]) -> str:
    """Markdown."""
    head = ("episodes", "epochs", "frames seen", "success", "Wilson 95 %", "seeds, low to high",
            "mean frames, all", "held-out L1")  # fmt: skip
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
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in found["rows"]:
        low, high = (100 * v for v in r["success_rate_wilson95"])
        seeds = [100 * v for v in r["seed_rates"]]
        l1 = "-" if r["held_out_l1"] is None else f"{r['held_out_l1']:.4f}"
        values = (
            f"{r['episodes']}", f"{r['epochs']:.1f}", f"{r['frames_seen']:,}",
            f"{r['successes']} of {r['tried']} = {100 * r['success_rate']:.1f} %",
            f"{low:.1f} to {high:.1f} %", f"{min(seeds):.0f} to {max(seeds):.0f} % ({len(seeds)})",
            f"{r['mean_frames_all']:.1f}", l1,
        )  # fmt: skip
        lines.append("| " + " | ".join(values) + " |")
    lines += [
        "",
        "Intervals are of all episodes of a row together; how far training differs from seed to "
        "seed stands beside them. Held-out L1: normalised, on episodes that no model saw.",
        "",
        "![success by number of episodes](success.png)",
    ]
    return "\n".join(lines) + "\n"


# -- the plot ---------------------------------------------------------------------------------


def draw(rows: Sequence[Mapping[str, Any]], width: int = 720, height: int = 420) -> bytes:
    """PNG: success over the number of episodes, a line for each cost; dots are seeds."""
    scale, left, right, top, bottom = 2, 64, 24, 40, 56  # drawn twice as large for sharp lines
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
    for count in counts:
        text((x(count), height - bottom + 14), str(count), PALE)
    about = "episodes, at equal frames seen; bars: Wilson 95 %, rings: single seeds"
    text(((left + width - right) / 2, height - 16), about, PALE)
    for i, passes in enumerate(sorted({r["passes"] for r in rows})):
        colour = COLOURS[i % len(COLOURS)]
        own = [r for r in rows if r["passes"] == passes]
        text((left + 10 + 190 * i, 16), f"episodes x epochs = {passes}", colour, "lm")
        line([(x(r["episodes"]), y(r["success_rate"])) for r in own], colour, 1.5)
        for r in own:
            at, (bottom_rate, top_rate) = x(r["episodes"]), r["success_rate_wilson95"]
            line([(at, y(bottom_rate)), (at, y(top_rate))], colour, 1.5)
            for end in (bottom_rate, top_rate):
                line([(at - 5, y(end)), (at + 5, y(end))], colour, 1.5)
            ring((at, y(r["success_rate"])), 3, fill=colour)
            for rate in r["seed_rates"]:
                ring((at + 11, y(rate)), 2.5, outline=colour, width=scale)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
