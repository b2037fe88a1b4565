"""Writes a validation's report: an evaluation's report plus the motion over time."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_inference.system import charts
from vla_training.evaluation.report import Extra, summary_rows
from vla_training.evaluation.report import write_report as write_evaluation
from vla_training.evaluation.validation import Validation

Rows = list[tuple[str, str]]


def motion_rows(v: Mapping[str, Any]) -> Rows:
    """Names and values that a validation has in addition to an evaluation."""
    joins = v["joins"]
    rows = [
        ("stamps belong together", f"within {1e3 * v['tolerance_s']:g} ms"),
        ("images answered", f"{100 * v['coverage']:.1f} % ({v['unanswered']} were not)"),
        ("direction of translation", _direction(v["direction"]["translation"])),
        ("direction of rotation", _direction(v["direction"]["rotation"])),
        (
            "gripper changes",
            f"{v['gripper_changes']['predicted']} predicted, "
            f"{v['gripper_changes']['recorded']} recorded",
        ),
        ("latency", _spread(v["latency_ms"], "ms")),
        ("input age", _spread(v["input_age_ms"], "ms")),
        ("recorded latency", _spread(v["recorded"]["latency_ms"], "ms")),
        ("recorded input age", _spread(v["recorded"]["input_age_ms"], "ms")),
        *_clips(v),
        ("steps outside q01 to q99", f"{100 * v['beyond_statistics']:.2f} %"),
        (f"jump at {joins['count']} joins", _spread(joins["jump_translation_mm"], "mm")),
        ("change within chunks", _spread(joins["within_translation_mm"], "mm")),
        ("jump, rotation", _spread(joins["jump_rotation_mrad"], "mrad")),
        ("change within, rotation", _spread(joins["within_rotation_mrad"], "mrad")),
    ]
    if v["chunk_accuracy"]:
        c = v["chunk_accuracy"]
        rows.append(
            (
                "accuracy of whole chunks",
                f"{100 * c['clipped']:.2f} % clipped, "
                f"{100 * c['raw']:.2f} % raw ({c['steps']} steps)",
            )
        )
    return [r for r in rows if r[1] != "-"]


def _direction(found: Mapping[str, Any]) -> str:
    if found["cosine"] is None:
        return "-"
    return (
        f"cosine {found['cosine']:.4f} over {found['frames']} moving frames, "
        f"{100 * found['opposite']:.1f} % opposite"
    )


def _clips(v: Mapping[str, Any]) -> Rows:
    """What the command node would clip by default, by which limit, and how to avoid it."""
    remedy = " (its `stretch` slows steps down, its `scale` shortens them)" if v["clips"] else ""
    rows = [("steps over the command limits", f"{100 * v['clip_rate']:.2f} %{remedy}")]
    units = {
        "translation_per_step": "m",
        "rotation_per_step": "rad",
        "linear_velocity": "m/s",
        "angular_velocity": "rad/s",
    }
    for name, found in v["clips"].items():
        unit = units[name]
        rows.append(
            (
                f"  {name} {found['limit']:g} {unit}",
                f"{100 * found['share']:.2f} %, up to {found['largest']:.3g} {unit}",
            )
        )
    return rows


def _spread(found: Mapping[str, float] | None, unit: str) -> str:
    if found is None:
        return "-"
    return (
        f"median {found['median']:.3g} {unit}, 95 % {found['p95']:.3g}, largest {found['max']:.3g}"
    )


def episode_rows(episodes: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Cells of the table by episode, below its heading."""
    heading = (
        "episode",
        "frames",
        "clipped",
        "raw",
        "direction",
        "flips",
        "latency",
        "outcome",
        "instruction",
    )
    rows: list[tuple[str, ...]] = [heading]
    for e in episodes:
        direction = "-" if e["direction"] is None else f"{e['direction']:.3f}"
        rows.append(
            (
                str(e["episode"]),
                str(e["frames"]),
                f"{100 * e['accuracy_clipped']:.2f} %",
                f"{100 * e['accuracy']:.2f} %",
                direction,
                "-" if e["flips"] is None else str(e["flips"]),
                f"{e['latency_ms']:.1f} ms",
                e["outcome"] or "-",
                e["instruction"],
            )
        )
    return rows


def accuracy_bars(episodes: Sequence[Mapping[str, Any]], width: int = 700) -> str:
    """Inline SVG: clipped accuracy by episode, from 0 to 1."""
    figure = charts.new_figure(width, 150)
    axes = figure.subplots()
    values = [max(0.0, e["accuracy_clipped"]) for e in episodes]
    axes.bar([e["episode"] for e in episodes], values, color=charts.BAR)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.grid(axis="y", color=charts.LINE)
    axes.set_axisbelow(True)
    locator: Any = axes.xaxis.get_major_locator()  # of numbers: it takes `integer`
    locator.set_params(integer=True)
    axes.set_xlabel("accuracy by episode", fontsize=9, color=charts.PALE)
    charts.style(axes, ())
    return charts.svg(figure)


def extra(statistics: Mapping[str, Any]) -> Extra:
    v = statistics["validation"]
    heading, *rows = episode_rows(v["episodes"])
    table = "<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in heading) + "</tr>"
    for row in rows:
        table += "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
    sections = f"<h2>Episodes</h2>{accuracy_bars(v['episodes'])}<table>{table}</table>\n"
    return Extra("validation on recorded bags", motion_rows(v), sections)


def write_report(folder: Path, validation: Validation, statistics: dict[str, Any]) -> Path:
    """Writes report.html, actions.png, evaluation.json. statistics: with "failures", if any."""
    return write_evaluation(folder, validation.evaluation, statistics, extra(statistics))


def text(statistics: dict[str, Any]) -> str:
    """The tables for a terminal."""
    rows = [*summary_rows(statistics), *motion_rows(statistics["validation"])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows] + [""]
    table = episode_rows(statistics["validation"]["episodes"])
    widths = [max(len(r[i]) for r in table) for i in range(len(table[0]) - 1)]
    for row in table:
        cells = [f"{c:>{w}}" for c, w in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join(lines)
