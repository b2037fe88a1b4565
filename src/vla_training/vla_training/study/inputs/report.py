"""What a study of inputs found, as tables and as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla_sim_bridge.evaluation.confidence_intervals import mean_interval, wilson_interval
from vla_training.study.inputs.config import VARIANTS, Condition

Model = Mapping[str, Any]  # of `InputsStudy.results`

PAGE = """# Which inputs help?

One camera image is the least that a policy needs. It may also see past images, the robot's state,
and a camera at the wrist. What each buys is measured here at equal cost: the small model, trained
from scratch on demonstrations of {tasks}, {cost}, by the same recipe. `Stack_H` looks straight
down: once the hand is over the block, neither that nor the fingers are to be seen.

```
{command}
```

The same command continues a study that was killed, and writes this page. Budget: {budget}.

## Success
{episodes} episodes of each model in each column, the same for all; {seeds} seeds. In brackets:
Wilson's 95 % interval of all episodes of a row together, as if one model had played them.

<!-- success -->
<!-- /success -->

## Against one frame
Differences of success paired by seed, in points, with Student's 95 % interval of their mean:
models of a seed saw the same batches of frames.

<!-- gains -->
<!-- /gains -->

## What it cost
<!-- cost -->
<!-- /cost -->

(figures: `bench/results/inputs.json`)
"""


def conditions_of(models: Sequence[Model]) -> list[Condition]:
    played = (e for m in models for e in m["played"])
    return list(dict.fromkeys(sorted((Condition(e["task"], e["delay"]) for e in played), key=_by)))


def _by(condition: Condition) -> tuple[str, int]:
    return condition.task, condition.delay


def rate(models: Sequence[Model], condition: Condition) -> tuple[int, int]:
    """Successes and episodes of these models together."""
    key = (condition.task, condition.delay)
    outcomes = [
        e["outcome"] for m in models for e in m["played"] if (e["task"], e["delay"]) == key
    ]
    return outcomes.count("success"), len(outcomes)


def variants_of(models: Sequence[Model]) -> dict[str, list[Model]]:
    """Models by the name of their variant, each list by seed."""
    names = [v.name for v in VARIANTS]
    found = {n: [m for m in models if m["variant"]["name"] == n] for n in names}
    return {n: sorted(ms, key=lambda m: m["seed"]) for n, ms in found.items() if ms}


def success_lines(models: Sequence[Model]) -> list[str]:
    conditions = conditions_of(models)
    lines = _head("inputs", *(c.name for c in conditions))
    for name, mine in variants_of(models).items():
        cells = [_share(*rate(mine, c)) for c in conditions]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def _share(good: int, tried: int) -> str:
    if not tried:
        return "-"
    low, high = (100 * v for v in wilson_interval(good, tried))
    return f"{good} of {tried} = {100 * good / tried:.1f} % ({low:.1f} to {high:.1f})"


def gain_lines(models: Sequence[Model]) -> list[str]:
    """Each variant less the first one, over the seeds that both have been tested with."""
    conditions, variants = conditions_of(models), variants_of(models)
    first, *others = variants
    lines = _head("inputs", *(c.name for c in conditions))
    for name in others:
        cells = [_gain(variants[name], variants[first], c) for c in conditions]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def _gain(mine: Sequence[Model], theirs: Sequence[Model], condition: Condition) -> str:
    gains = []
    for model in mine:
        for base in theirs:
            (a, n), (b, m) = rate([model], condition), rate([base], condition)
            if model["seed"] == base["seed"] and n and m:
                gains.append(100 * (a / n - b / m))
    if len(gains) < 2:
        return "-"
    low, high = mean_interval(gains)
    each = ", ".join(f"{g:+.0f}" for g in gains)
    return f"{sum(gains) / len(gains):+.1f} ({low:+.1f} to {high:+.1f}; {each})"


def cost_lines(models: Sequence[Model]) -> list[str]:
    lines = _head("inputs", "weights", "samples seen", "training", "held-out L1")
    for name, mine in variants_of(models).items():
        samples, seconds = (sum(m[k] for m in mine) / len(mine) for k in ("samples", "seconds"))
        l1 = [m["held_out_l1"] for m in mine if m["held_out_l1"] is not None]
        error = f"{sum(l1) / len(l1):.4f}" if l1 else "-"
        weights = f"{mine[0]['parameters'] / 1e6:.2f} M"
        lines.append(f"| {name} | {weights} | {samples:,.0f} | {seconds:.0f} s | {error} |")
    return lines


def tables(models: Sequence[Model]) -> dict[str, list[str]]:
    return {
        "success": success_lines(models),
        "gains": gain_lines(models),
        "cost": cost_lines(models),
    }


def _head(*names: str) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
