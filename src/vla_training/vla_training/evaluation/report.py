"""Writes an evaluation's report: statistics, a plot (PNG) and a page (HTML)."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from vla_inference.system import charts
from vla_inference.system.charts import INK, LINE, PALE, PREDICTED, TRUE
from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.page import histogram, number, page, table_rows
from vla_sim_bridge.evaluation.report import write_json
from vla_training.evaluation.result import Evaluation

PLOT, PAGE_NAME, STATISTICS = "actions.png", "report.html", "evaluation.json"
MOST_FRAMES = 2000  # a plot shows the first ones


@dataclass(frozen=True)
class Extra:
    """Additional content of a page besides an evaluation's metrics.

    rows: name and value, in the table of metrics. sections: HTML, at the end.
    """

    title: str = "offline evaluation"
    rows: Sequence[tuple[str, str]] = ()
    sections: str = ""


def write_report(
    folder: Path, evaluation: Evaluation, statistics: dict[str, Any], extra: Extra = Extra()
) -> Path:
    """Writes evaluation.json, actions.png and report.html, which is self-contained."""
    plot = draw_actions(evaluation)
    write_json(folder / STATISTICS, statistics)
    write_whole(folder / PLOT, plot)
    return write_whole(folder / PAGE_NAME, evaluation_page(evaluation, statistics, plot, extra))


# -- the plot ---------------------------------------------------------------------------------


def draw_actions(evaluation: Evaluation, width: int = 1100, height: int = 150) -> bytes:
    """PNG: a strip for each dimension, true and predicted action over the frames."""
    frames, dims = evaluation.frames[:MOST_FRAMES], evaluation.spec.dims
    figure = charts.new_figure(width, height * len(dims) + 40)
    strips = figure.subplots(len(dims), 1, sharex=True, squeeze=False)[:, 0]
    starts = [i for i in range(1, len(frames)) if frames[i].episode != frames[i - 1].episode]
    marker = "o" if len(frames) == 1 else None
    for row, (strip, dim) in enumerate(zip(strips, dims, strict=True)):
        factor = 1e3 if dim.unit in ("m", "rad") else 1.0
        unit = {"m": " [mm]", "rad": " [mrad]"}.get(dim.unit, "")
        # The true one broad and pale: where both agree it is still to be seen.
        truth, predicted = [f.truth[row] for f in frames], [f.predicted[row] for f in frames]
        for curve, color, thick in ((truth, TRUE, 4.5), (predicted, PREDICTED, 1.2)):
            strip.plot(factor * np.asarray(curve), color=color, linewidth=thick, marker=marker)
        for start in starts:
            strip.axvline(start - 0.5, color=LINE, linewidth=1, zorder=0)
        if min(truth + predicted) < 0 < max(truth + predicted):
            strip.axhline(0, color=LINE, linewidth=1, zorder=0)
        strip.set_ylabel(dim.name + unit, color=INK, fontsize=9)
        strip.margins(x=0.005)
        charts.style(strip)
    shown = "" if len(frames) == len(evaluation.frames) else f"the first {len(frames)} of "
    told = f"{shown}{len(evaluation.frames)} frames; vertical lines: a new episode"
    strips[0].set_title(told, loc="right", color=PALE, fontsize=9)
    strips[0].set_title("pale: true, blue: predicted", loc="left", color=PREDICTED, fontsize=9)
    return charts.png(figure)


# -- the page ---------------------------------------------------------------------------------

BODY = Template("""<p class="big">$headline</p>
<p class="pale">accuracy (1 - NRMSE): truth clipped to q01/q99, and raw</p>
<h2>Figures</h2><table>$summary</table>
<h2>Absolute error by dimension</h2>
<table><tr><th>dimension</th><th class="n">mean</th><th class="n">median</th>
<th class="n">95 %</th><th class="n">largest</th><th>unit</th></tr>$dimensions</table>
<h2>True and predicted actions</h2><img src="data:image/png;base64,$plot" alt="actions">
<h2>Latency</h2>$latency
$sections""")


def summary_rows(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the summary on page and terminal."""
    mean = statistics["mean"]
    rows = [
        ("frames, episodes", f"{mean['timesteps']}, {mean['episodes']}"),
        ("accuracy, clipped", number(100 * mean["accuracy_clipped"], 2, " %")),
        ("accuracy, raw", number(100 * mean["accuracy"], 2, " %")),
        ("latency, rate", f"{1e3 * mean['latency']:.1f} ms, {mean['fps']:.1f} Hz"),
    ]
    if statistics["gripper"]:
        g = statistics["gripper"]
        rows.append(
            (
                "gripper flips",
                f"{g['flips']} of {g['frames']} "
                f"({g['opened']} wrongly open, {g['closed']} wrongly closed)",
            )
        )
    if statistics["reference_model"]:
        rows += [
            ("reference model", str(statistics["reference_model"])),
            (
                "its accuracy, clipped / raw",
                f"{100 * mean['eval_accuracy_clipped']:.2f} % / "
                f"{100 * mean['eval_accuracy']:.2f} %",
            ),
            (
                "its latency, rate",
                f"{1e3 * mean['eval_latency']:.1f} ms, {mean['eval_fps']:.1f} Hz",
            ),
            ("NRMSE between the two", f"{mean['quant_error']:.5f}"),
        ]
        equal = "- (not both models answer in tokens)"
        if tokens := statistics["tokens"]:
            equal = (
                f"{100 * tokens['tokens']:.2f} %, all of a frame {100 * tokens['frames']:.2f} %"
            )
            equal += f", largest distance {tokens['largest_step']} bins"
        rows.append(("equal tokens", equal))
    return rows


def evaluation_page(
    evaluation: Evaluation, statistics: dict[str, Any], plot: bytes, extra: Extra = Extra()
) -> str:
    escape, mean = html.escape, statistics["mean"]
    failures = statistics.get("failures", ())
    warnings = [*(f"not reached: {f}" for f in failures), *statistics["notes"]]
    if not statistics["complete"]:
        warnings.insert(0, "Incomplete: the evaluation was stopped")
    body = BODY.substitute(
        headline=f"{100 * mean['accuracy_clipped']:.1f} % · {100 * mean['accuracy']:.1f} %",
        summary=table_rows([*summary_rows(statistics), *extra.rows]),
        dimensions="".join(
            f"<tr><td>{escape(d['name'])}</td>"
            + "".join(f'<td class="n">{d[k]:.3g}</td>' for k in ("mean", "median", "p95", "max"))
            + f"<td>{escape(d['unit'])}</td></tr>"
            for d in statistics["dimensions"]
        ),
        plot=base64.b64encode(plot).decode(),
        latency=histogram([1e3 * v for v in statistics["latency"]]),
        sections=extra.sections,
    )
    title = f"{evaluation.model} on {evaluation.dataset}: {extra.title}"
    parts = "; ".join(map(str, evaluation.spec.parts))
    return page(title, f"action space {evaluation.action_space}; {parts}", warnings, body)
