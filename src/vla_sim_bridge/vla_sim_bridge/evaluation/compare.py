"""Compares two runs of `vla rollout` on the episodes that both have played."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_inference.errors import DataError
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.evaluation.report import RESULTS

Key = tuple[str, int, int]  # task or instruction's task, seed, index
SAME = ("task", "language", "horizon")  # of two runs whose episodes are the same ones


@dataclass(frozen=True)
class Flip:
    """An episode that one run succeeded in and the other did not."""

    index: int
    seed: int
    instruction: str
    first: str
    second: str


@dataclass(frozen=True)
class Comparison:
    """Of the episodes that both runs played. Shares are of success, 0 to 1.

    better, worse: episodes in which the second run alone, or the first alone, succeeded.
    interval: 95 % of the difference of both shares (Newcombe's for pairs). p_value: of so uneven
    flips or worse, were either way as likely (McNemar's exact test, two-sided).
    left_out: episodes that one run alone has.
    """

    names: tuple[str, str]
    episodes: int
    successes: tuple[int, int]
    better: int
    worse: int
    interval: tuple[float, float]
    p_value: float
    flips: tuple[Flip, ...]
    left_out: int

    @property
    def difference(self) -> float:
        return (self.successes[1] - self.successes[0]) / self.episodes


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    """first, second: results.json of two runs; DataError where their episodes are others."""
    for name in SAME:
        one, two = (r.get(name) for r in (first, second))
        if one != two:
            raise DataError(
                f"the runs have different episodes: {name} {one!r} and {two!r}",
                f"evaluate both models with the same --{name}",
            )
    played = [_episodes(r) for r in (first, second)]
    common = sorted(played[0].keys() & played[1].keys())
    if not common:
        raise DataError("the runs have no episode in common", "evaluate both with the same --seed")
    pairs = [(played[0][k], played[1][k]) for k in common]
    good = [tuple(e["outcome"] == "success" for e in pair) for pair in pairs]
    flips = tuple(
        Flip(a["index"], a["seed"], a["instruction"], a["outcome"], b["outcome"])
        for (a, b), (one, two) in zip(pairs, good, strict=True)
        if one != two
    )
    both = sum(one and two for one, two in good)
    worse = sum(one and not two for one, two in good)
    better = len(flips) - worse
    return Comparison(
        names=(first.get("model") or "first", second.get("model") or "second"),
        episodes=len(common),
        successes=(both + worse, both + better),
        better=better,
        worse=worse,
        interval=paired_interval(both, better, worse, len(common)),
        p_value=sign_test(better, worse),
        flips=flips,
        left_out=len(played[0].keys() ^ played[1].keys()),
    )


def _episodes(results: Mapping[str, Any]) -> dict[Key, Mapping[str, Any]]:
    """The episodes that count, by what makes them the same in two runs."""
    counted = (e for e in results["per_episode"] if e["outcome"] != "aborted")
    return {(str(e.get("task", "")), e["seed"], e["index"]): e for e in counted}


def paired_interval(both: int, better: int, worse: int, episodes: int) -> tuple[float, float]:
    """95 % interval of the second share minus the first (Newcombe 1998, his method 10).

    both: pairs with two successes; better, worse: with one of the second, of the first run.
    """
    n, neither = episodes, episodes - both - better - worse
    first, second = both + worse, both + better
    (l1, u1), (l2, u2) = wilson_interval(first, n), wilson_interval(second, n)
    product = first * (n - first) * second * (n - second)
    excess = both * neither - better * worse
    phi = 0.0
    if product:
        phi = (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(product)
    p1, p2 = first / n, second / n
    low = _length(p2 - l2, u1 - p1, phi)
    high = _length(u2 - p2, p1 - l1, phi)
    return p2 - p1 - low, p2 - p1 + high


def _length(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def sign_test(better: int, worse: int) -> float:
    """Two-sided p-value of these flips where both ways are as likely."""
    n, least = better + worse, min(better, worse)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    return min(1.0, 2 * tail)


def read_results(path: Path) -> dict[str, Any]:
    """results.json of a run: its folder, or the file."""
    file = path / RESULTS if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found["per_episode"], Sequence):
            raise ValueError("per_episode is no list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} has no results of a rollout ({error})", "give the --output of vla rollout"
        ) from error
    return dict(found)
