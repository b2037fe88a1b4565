"""`vla compare`: two runs of `vla rollout` on the same episodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.output import JsonOption, print_json
from vla_sim_bridge.evaluation.compare import Comparison, read_results
from vla_sim_bridge.evaluation.compare import compare as run

Run = typer.Argument(help="Results folder of a rollout.")


def compare(
    first: Annotated[Path, Run],
    second: Annotated[Path, Run],
    as_json: JsonOption = False,
) -> int:
    """Compare two rollouts on the same episodes: the difference, its interval, what flipped."""
    found = [read_results(path) for path in (first, second)]
    result = run(*found)
    for path, results in zip((first, second), found, strict=True):
        if not results.get("complete", True):
            print(f"note: {path} is of a run that was stopped", file=sys.stderr)
    if as_json:
        print_json({**vars(result), "difference": result.difference})
    else:
        print("\n".join(lines(result, (str(first), str(second)))))
    return 0


def lines(c: Comparison, paths: tuple[str, str]) -> list[str]:
    width = max(map(len, paths))
    low, high = (100 * v for v in c.interval)
    told = [
        f"{path:<{width}}  {name}: {n} of {c.episodes} = {100 * n / c.episodes:.1f} %"
        for path, name, n in zip(paths, c.names, c.successes, strict=True)
    ]
    told += [
        f"difference {100 * c.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}",
        f"flips: {c.better} to success, {c.worse} to failure (p = {c.p_value:.2g}, exact "
        "McNemar test)",
    ]
    if c.left_out:
        told.append(f"{c.left_out} episodes of one run alone are left out")
    for flip in c.flips:
        told.append(
            f"  episode {flip.index} of seed {flip.seed}: {flip.first} -> {flip.second}  "
            f"{flip.instruction}"
        )
    return told
