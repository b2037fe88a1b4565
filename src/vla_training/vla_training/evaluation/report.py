"""Writes an evaluation's report: statistics, a plot (PNG) and a page (HTML)."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from vla_inference.cli.output import plain
from vla_inference.system import charts
from vla_inference.system.charts import INK, LINE, PALE, PREDICTED, TRUE
from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.report import histogram, number
from vla_training.evaluation.result import Evaluation

PLOT, PAGE_NAME, STATISTICS = "actions.png", "report.html", "evaluation.json"
MOST_FRAMES = 2000  # a plot shows the first ones


def write_statistics(path: Path, statistics: dict[str, Any]) -> Path:
    text = json.dumps(plain(statistics), indent=2, ensure_ascii=False) + "\n"
    return write_whole(path, text.encode())


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
    write_statistics(folder / STATISTICS, statistics)
    write_whole(folder / PLOT, plot)
    return write_whole(folder / PAGE_NAME, page(evaluation, statistics, plot, extra).encode())


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

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { --ink: #1f2328; --pale: #6a737d; --line: #e3e6ea; --bad: #d6604d; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; } .pale { color: var(--pale); } .warn { color: var(--bad); }
.big { font-size: 2.6rem; font-weight: 600; line-height: 1.2; margin-top: 1rem; }
img { max-width: 100%; } svg text { font: 11px system-ui, sans-serif; fill: var(--pale); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--line);
  font-weight: normal; } th { color: var(--pale); } td.n, th.n { text-align: right; }
</style></head><body>
<h1>$title</h1><p class="pale">$subtitle</p>$warnings
<p class="big">$headline</p><p class="pale">accuracy (1 - NRMSE): truth clipped to q01/q99, and
raw</p>
<h2>Figures</h2><table>$summary</table>
<h2>Absolute error by dimension</h2>
<table><tr><th>dimension</th><th class="n">mean</th><th class="n">median</th>
<th class="n">95 %</th><th class="n">largest</th><th>unit</th></tr>$dimensions</table>
<h2>True and predicted actions</h2><img src="data:image/png;base64,$plot" alt="actions">
<h2>Latency</h2>$latency
$sections</body></html>
""")


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


def page(
    evaluation: Evaluation, statistics: dict[str, Any], plot: bytes, extra: Extra = Extra()
) -> str:
    escape, mean = html.escape, statistics["mean"]
    failures = statistics.get("failures", ())
    warnings = [*(f"not reached: {f}" for f in failures), *statistics["notes"]]
    if not statistics["complete"]:
        warnings.insert(0, "Incomplete: the evaluation was stopped")
    return PAGE.substitute(
        title=escape(f"{evaluation.model} on {evaluation.dataset}: {extra.title}"),
        subtitle=escape(
            f"action space {evaluation.action_space}; {'; '.join(map(str, evaluation.spec.parts))}"
        ),
        warnings="".join(f'<p class="warn">{escape(w)}</p>' for w in warnings),
        headline=f"{100 * mean['accuracy_clipped']:.1f} % · {100 * mean['accuracy']:.1f} %",
        summary="".join(
            f"<tr><th>{escape(n)}</th><td>{escape(v)}</td></tr>"
            for n, v in [*summary_rows(statistics), *extra.rows]
        ),
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
