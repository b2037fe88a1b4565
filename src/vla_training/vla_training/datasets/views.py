"""Datasets made of others: several as one, and some episodes of one."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.episodes.interventions import INTERVENTION
from vla_inference.errors import DataError
from vla_inference.types import Episode
from vla_training.datasets.base import EpisodeSet, open_dataset


class JoinedEpisodes(EpisodeSet):
    """The episodes of several datasets, one after the other.

    Raises DataError where they differ in actions or cameras.
    """

    def __init__(self, parts: Sequence[EpisodeSet]):
        self.parts, first = list(parts), parts[0]
        self.path, self.name, self.spec = first.path, first.name, first.spec
        for part in parts[1:]:
            if part.spec != first.spec:
                raise DataError(
                    f"the actions of {part.path} are not those of {first.path}: "
                    f"{_differing(part, first)}",
                    "convert one of them to the form of the other first",
                )
            if set(part.cameras()) != set(first.cameras()):
                raise DataError(
                    f"{part.path} has the cameras {', '.join(part.cameras()) or 'none'}, "
                    f"{first.path} {', '.join(first.cameras()) or 'none'}",
                    "convert one of them with --remap-keys first",
                )
        self.notes = list(dict.fromkeys(note for part in parts for note in part.notes))
        told = [INTERVENTION in part.carried() for part in parts]
        self.notes += [
            f"{part.path} does not say who acted: taken for the model, as others do say"
            for part, known in zip(parts, told, strict=True)
            if any(told) and not known
        ]
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[EpisodeSet, int]:
        index = self.check_index(index)
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)

    def __getitem__(self, index: int) -> Episode:
        part, inner = self._find(index)
        return part[inner]

    def actions(self, index: int) -> np.ndarray:
        part, inner = self._find(index)
        return part.actions(inner)

    def where(self, index: int) -> str:
        part, inner = self._find(index)
        return part.where(inner)

    def cameras(self) -> list[str]:
        return self.parts[0].cameras()

    def left_out(self) -> list[str]:
        return list(dict.fromkeys(name for part in self.parts for name in part.left_out()))

    def carried(self) -> frozenset[str]:
        return frozenset().union(*(part.carried() for part in self.parts))


def _differing(a: EpisodeSet, b: EpisodeSet) -> str:
    """What two action specs differ in, in words."""
    if a.spec.dt != b.spec.dt:
        return f"{a.spec.dt:g} s a step and {b.spec.dt:g}"
    told = ["; ".join(str(part) for part in s.spec.parts) for s in (a, b)]
    return f"{told[0]} and {told[1]}"


class ChosenEpisodes(EpisodeSet):
    """Some episodes of a dataset, by their numbers."""

    def __init__(self, data: EpisodeSet, chosen: Sequence[int]):
        self.data, self.chosen = data, list(chosen)
        self.path, self.name, self.spec = data.path, data.name, data.spec
        self.notes = data.notes

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Episode:
        return self.data[self.chosen[self.check_index(index)]]

    def actions(self, index: int) -> np.ndarray:
        return self.data.actions(self.chosen[self.check_index(index)])

    def where(self, index: int) -> str:
        return self.data.where(self.chosen[self.check_index(index)])

    def cameras(self) -> list[str]:
        return self.data.cameras()

    def left_out(self) -> list[str]:
        return self.data.left_out()

    def carried(self) -> frozenset[str]:
        return self.data.carried()


def open_datasets(
    paths: Sequence[Path],
    kind: str | None = None,
    chosen: Sequence[int] | None = None,
    **options: Any,
) -> EpisodeSet:
    """Datasets as one (`open_dataset`), or the episodes `chosen` of them."""
    parts = [open_dataset(path, kind, **options) for path in paths]
    data = parts[0] if len(parts) == 1 else JoinedEpisodes(parts)
    return data if chosen is None else ChosenEpisodes(data, chosen)


# -- which episodes ---------------------------------------------------------------------------


def parse_numbers(text: str, count: int) -> list[int]:
    """ "0-99,150" -> these numbers, below `count`; VlaError for any other text."""
    found: list[int] = []
    for word in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise DataError(
                f"--episodes has {word!r}", "give numbers and ranges, such as 0-99,150"
            )
        if last >= count:
            raise DataError(
                f"--episodes asks for {last}", f"there are {count} episodes, from 0 to {count - 1}"
            )
        found += range(first, last + 1)
    return list(dict.fromkeys(found))


def parse_share(text: str) -> tuple[float, float]:
    """ "0-0.9" -> (0.0, 0.9)."""
    match = re.fullmatch(r"([\d.]+)-([\d.]+)", text)
    try:
        low, high = (float(match[1]), float(match[2])) if match else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise DataError(f"--share is {text!r}", "give a part of 0 to 1, such as 0-0.9")
    return low, high


def draw_share(numbers: Sequence[int], share: str, seed: int) -> list[int]:
    """The part of these numbers that falls to `share`, in their order.

    Shares that meet, of one seed, divide them: 0-0.9 and 0.9-1 have none in common, and all.
    """
    low, high = parse_share(share)
    order = np.random.default_rng(seed).permutation(len(numbers))
    kept = order[round(low * len(numbers)) : round(high * len(numbers))]
    return [numbers[i] for i in sorted(kept)]
