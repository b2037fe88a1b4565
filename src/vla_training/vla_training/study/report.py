"""Writes a study's report: results.json, tables (report.md) and a plot (success.png)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from vla_inference.system import charts
from vla_inference.system.charts import LINE, PALE
from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.confidence_intervals import mean_interval, wilson_interval
from vla_sim_bridge.evaluation.report import versions, write_json
from vla_training.study.config import Cell, StudyConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#2f6fdf", "#d6604d", "#4caf6e", "#8a63c9", "#c98a1b")


def summarise_cells(results: Mapping[Cell, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each number of episodes, passes and image size, over all available seeds.

    The interval is Wilson's, of all episodes together: it tells of the episodes played, and what
    each seed reached stands beside it, in the order of `seed_numbers`.
    """
    rows = []
    for passes, episodes, size in sorted({_row_of(c) for c in results}):
        mine = [c for c in results if _row_of(c) == (passes, episodes, size)]
        mine.sort(key=lambda c: c.seed)
        same = [results[c] for c in mine]
        good, tried = (sum(r[k] for r in same) for k in ("successes", "episodes"))
        training = [r["training"] for r in same]
        l1 = [t["held_out_l1"] for t in training if t["held_out_l1"] is not None]
        rows.append(
            {
                "episodes": episodes,
                "passes": passes,
                **(_of_size(size, training) if size else {}),
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


def _row_of(cell: Cell) -> tuple[int, int, int]:
    return cell.passes, cell.episodes, cell.image_size


def _of_size(size: int, training: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    speeds = [t["samples_per_s"] for t in training]
    return {"image_size": size, "samples_per_s": sum(speeds) / len(speeds)}


def _at(row: Mapping[str, Any]) -> int:
    """What a row is compared and plotted by: its image size where there are several, or its
    number of episodes."""
    return row.get("image_size") or row["episodes"]


def compare(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares each row with the fewest episodes (or pixels) at equal passes, paired by seed.

    Seeds are the random draws here, so the interval is Student's over their differences: models
    of one seed start with the same weights, the smaller one's episodes are among the larger
    one's, and both are tested on the same ones.
    """
    found = []
    for row in rows:
        base = min((r for r in rows if r["passes"] == row["passes"]), key=_at)
        ours, theirs = (_by_seed(r) for r in (row, base))
        gains = [ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys())]
        if row is base or len(gains) < 2:
            continue
        found.append(
            {
                "episodes": row["episodes"],
                "of": _at(row),
                "against": _at(base),
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
    write_json(folder / "results.json", found)
    return found


def table(config: StudyConfig, found: Mapping[str, Any]) -> str:
    """Markdown."""
    sizes = config.image_sizes
    lines = [
        "# Image sizes" if sizes else "# Episodes or epochs",
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
        "Held-out L1: normalised, on episodes that no model saw."
        + (" Samples per second: of training, on one device." if sizes else ""),
        "",
    ]
    if gains := gain_lines(compare(found["rows"])):
        lines += ["Paired by seed, points of success:", "", *gains, ""]
    by = "image size" if sizes else "number of episodes"
    lines.append(f"![success by {by}](success.png)")
    return "\n".join(lines) + "\n"


def rate_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    sized = any("image_size" in r for r in rows)
    lines = _head(
        *(("pixels", "samples/s") if sized else ()),
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
            *((f"{r['image_size']}", f"{r['samples_per_s']:.0f}") if sized else ()),
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
    """The result of `compare` as lines; empty if there is none."""
    sized = any(c.get("of", c["episodes"]) != c["episodes"] for c in comparisons)
    kind = "pixels" if sized else "episodes"
    lines = _head(kind, "against", "each seed", "mean", "95 % (Student's t)")
    for c in comparisons:
        low, high = (100 * v for v in c["gain_t95"])
        each = ", ".join(f"{100 * v:+.0f}" for v in c["seed_gains"])
        lines.append(
            f"| {c.get('of', c['episodes'])} | {c['against']} | {each} | {100 * c['gain']:+.1f} | "
            f"{low:+.1f} to {high:+.1f} |"
        )
    return lines if comparisons else []


def _head(*names: str) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


# -- the plot ---------------------------------------------------------------------------------


def draw(rows: Sequence[Mapping[str, Any]], width: int = 720, height: int = 420) -> bytes:
    """PNG: success over the number of episodes, or the image size, a line for each number of
    passes; rings are seeds."""
    figure = charts.new_figure(width, height)
    axes = figure.subplots()
    costs = sorted({r["passes"] for r in rows})
    for passes, colour in zip(costs, itertools.cycle(COLOURS), strict=False):
        _draw_cost(axes, [r for r in rows if r["passes"] == passes], passes, colour)
    ticks = {_at(r): r["epochs"] for r in reversed(rows)}
    unit = "pixels" if any("image_size" in r for r in rows) else "episodes"
    words = [
        f"{n:,} {unit}" + (f"\n{epochs:.1f} epochs" if len(costs) == 1 else "")
        for n, epochs in ticks.items()
    ]
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), words if len(ticks) <= 5 else [f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(ticks) / 1.3, max(ticks) * 1.3)
    percents = range(0, 101, 20)
    axes.set_yticks([p / 100 for p in percents], [f"{p} %" for p in percents])
    axes.set_ylim(0, 1)
    axes.grid(axis="y", color=LINE)
    about = "success at equal frames seen; bars: Wilson 95 %; rings: models, joined by seed"
    axes.set_xlabel(about, color=PALE, fontsize=9)
    charts.style(axes, ())
    figure.legend(loc="outside upper left", ncols=len(costs), frameon=False, fontsize=9)
    return charts.png(figure)


def _draw_cost(axes: Axes, rows: Sequence[Mapping[str, Any]], passes: int, colour: str) -> None:
    aside = 1.04  # the seeds stand beside the mean
    by_seed = [(_at(r) * aside, _by_seed(r)) for r in rows]
    for seed in sorted({seed for _, rates in by_seed for seed in rates}):
        there = [(at, rates[seed]) for at, rates in by_seed if seed in rates]
        ring: dict[str, Any] = {"marker": "o", "markersize": 5, "markerfacecolor": "white"}
        axes.plot(*zip(*there, strict=True), color=colour, alpha=0.35, **ring)
    counts, means = [_at(r) for r in rows], [r["success_rate"] for r in rows]
    intervals = [r["success_rate_wilson95"] for r in rows]
    below = [mean - low for mean, (low, _) in zip(means, intervals, strict=True)]
    above = [high - mean for mean, (_, high) in zip(means, intervals, strict=True)]
    label = f"episodes x epochs = {passes:,}"
    bars: dict[str, Any] = {"yerr": [below, above], "capsize": 4, "marker": "o", "markersize": 5}
    axes.errorbar(counts, means, color=colour, label=label, **bars)
