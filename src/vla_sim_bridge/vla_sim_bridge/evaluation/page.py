"""What the pages of all evaluations share: style, tables, numbers, a histogram."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from string import Template

import numpy as np

from vla_inference.system import charts

PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { --ink: #1f2328; --pale: #6a737d; --line: #e3e6ea; --good: #4caf6e; --bad: #d6604d; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 60rem;
  margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
p { margin: .3rem 0; } .pale { color: var(--pale); } .warn { color: var(--bad); }
.big { font-size: 2.6rem; font-weight: 600; line-height: 1.2; margin-top: 1rem; }
img { max-width: 100%; } svg text { font: 11px system-ui, sans-serif; fill: var(--pale); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: middle; font-weight: normal; } th { color: var(--pale); }
td.n, th.n { text-align: right; }
$style</style></head><body>
<h1>$title</h1><p class="pale">$subtitle</p>$warnings
$body
</body></html>
""")


def page(title: str, subtitle: str, warnings: Iterable[str], body: str, style: str = "") -> str:
    """A page of text, and a body of HTML."""
    escape = html.escape
    told = "".join(f'<p class="warn">{escape(w)}</p>' for w in warnings)
    return PAGE.substitute(
        title=escape(title), subtitle=escape(subtitle), warnings=told, body=body, style=style
    )


def table_rows(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values as rows of an HTML table."""
    return "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in rows)


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def histogram(values: Sequence[float], width: int = 560, height: int = 130) -> str:
    """Inline SVG of a distribution in milliseconds; the slowest 1 % is in the last bar."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        return '<p class="pale">Too few answers for a histogram.</p>'
    low, high = float(finite.min()), float(np.percentile(finite, 99))
    if high <= low:
        high = low + 1.0
    median = float(np.median(finite))
    figure = charts.new_figure(width, height)
    axes = figure.subplots()
    axes.hist(np.clip(finite, low, high), bins=40, range=(low, high), color=charts.BAR, rwidth=0.9)
    axes.axvline(min(median, high), color=charts.INK, linewidth=1)
    axes.set_title(f"median {median:.1f} ms", fontsize=9, color=charts.PALE)
    axes.set_xticks([low, high], [f"{low:.1f} ms", f"{high:.1f} ms (99 %)"])
    axes.set_yticks([])
    charts.style(axes, ("bottom",))
    return charts.svg(figure)
