#!/usr/bin/env python3
"""Writes the table of demonstration success rates from the results of task_rates.py.

    python tools/task_rates_table.py FILE FILE ... [--into docs/reference.md]

--into puts it between the marks that a document has for it. A row that is in two files with
different seeds is added up; with the same one, or none, the larger run stands.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from pages import fill_tables

from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.tasks import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="of bench/data/task_rates.py --json")
    parser.add_argument("--into", type=Path, help="document that gets the table")
    args = parser.parse_args()
    made = table(merge([json.loads(f.read_text())["rows"] for f in args.files]))
    print("\n".join(made))
    if args.into:
        args.into.write_text(fill_tables(args.into.read_text(), {"task rates": made}))


def merge(files: list[list[dict]]) -> list[dict]:
    """Rows of several runs, each task and method once."""
    found: dict[tuple[str, str], dict] = {}
    for row in (row for rows in files for row in rows):
        key = row["task"], row["method"]
        known = found.get(key)
        if known is None:
            found[key] = row
        elif not set(known.get("seeds", ())).isdisjoint(row.get("seeds", ())) or not (
            known.get("seeds") and row.get("seeds")
        ):
            found[key] = max(known, row, key=lambda r: r["attempts"])
        else:
            found[key] = added(known, row)
    return list(found.values())


def added(a: dict, b: dict) -> dict:
    attempts, successes = (a[k] + b[k] for k in ("attempts", "successes"))
    lengths = sum((r["length_mean"] or 0) * r["successes"] for r in (a, b))
    seconds = sum(r["seconds_per_attempt"] * r["attempts"] for r in (a, b))
    return {
        **a,
        "seeds": a["seeds"] + b["seeds"],
        "attempts": attempts,
        "successes": successes,
        "wilson95": [round(v, 4) for v in wilson_interval(successes, attempts)],
        "length_mean": round(lengths / successes, 1) if successes else None,
        "seconds_per_attempt": round(seconds / attempts, 2),
        "failures": dict((Counter(a["failures"]) + Counter(b["failures"])).most_common()),
    }


def table(found: list[dict]) -> list[str]:
    lines = [
        "| task | method | success | Wilson 95 % | steps | failures |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda r: (list(TASKS).index(r["task"]), r["method"])):
        low, high = (100 * v for v in row["wilson95"])
        share = 100 * row["successes"] / row["attempts"]
        failures = ", ".join(f"{n} {reason}" for reason, n in row["failures"].items())
        lines.append(
            f"| {row['task']} | {row['method']} | {share:.0f} % of {row['attempts']} | "
            f"{low:.1f} to {high:.1f} % | {row['length_mean'] or ''} | {failures or 'none'} |"
        )
    return lines


if __name__ == "__main__":
    main()
