"""Converts a dataset from one format to another: `vla convert`.

Each episode is read, changed and encoded in a worker process and written in order by this one, so
memory does not grow with the number of episodes. Whatever of the source has no place in an
`Episode` is named in the result.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vla_inference.episodes.interventions import INTERVENTION, interventions
from vla_inference.errors import DataError, VlaError
from vla_inference.system.worker_pool import WorkerPool
from vla_inference.types import Episode
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.transform import EpisodeTransform
from vla_training.datasets.base import EpisodeSet
from vla_training.datasets.views import (
    ChosenEpisodes,
    draw_share,
    open_datasets,
    parse_numbers,
)
from vla_training.datasets.writers import check_target, open_writer

EPISODES_A_WORKER = 4  # fewer are not worth another process
AHEAD = 2  # episodes each worker may be ahead of the writing


@dataclass
class Converted:
    """The result of a conversion. left_out: names in the source that the result does not
    contain."""

    path: Path
    kind: str
    episodes: int
    frames: int
    seconds: float
    left_out: list[str]
    notes: list[str]


def convert(
    dataset: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    kind: str,
    config: ConvertConfig = ConvertConfig(),
    *,
    dataset_type: str | None = None,
    reading: Mapping[str, Any] | None = None,
    writing: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    report: Callable[[int, int, int], None] = lambda *_: None,
) -> Converted:
    """Converts a dataset, or several into one, to the format `kind` (`writers.WRITERS`).

    reading, writing: options of the reader and of the writer. workers: None or -1 for one per
    core. report: called with episodes done, of how many, and frames done.
    Raises VlaError; nothing half-written is left then.
    """
    begun = time.perf_counter()
    output = Path(output).expanduser()
    check_target(output, overwrite)
    several = [dataset] if isinstance(dataset, (str, os.PathLike)) else dataset
    paths = [Path(path).expanduser() for path in several]
    source = partial(open_datasets, paths, dataset_type, **(reading or {}))
    data = source()
    for path in paths:
        _keep_apart(path, output)
    if (chosen := choose(data, config)) is not None:
        data, source = ChosenEpisodes(data, chosen), partial(source, chosen=chosen)
    change = EpisodeTransform.of(data, config, output.stem)
    total = len(data) if config.max_episodes is None else min(len(data), config.max_episodes)
    left_out = [*data.left_out(), *change.dropped]
    notes = list(data.notes)
    frames = done = 0
    with open_writer(output, kind, change.form, overwrite, **(writing or {})) as writer:
        work = Work(source, change, writer.encoder())
        for encoded, length in _encoded(work, total, _count(workers, total)):
            if length:  # an empty episode has no place in any format
                writer.put(encoded)
            else:
                notes.append(f"episode {done} has no step: left out")
            frames, done = frames + length, done + 1
            report(done, total, frames)
    left_out = [name for name in left_out if name not in writer.columns]
    notes += [n for n in writer.notes if n not in notes]
    seconds = time.perf_counter() - begun
    return Converted(output, kind, writer.count, frames, seconds, left_out, notes)


def choose(data: EpisodeSet, config: ConvertConfig) -> list[int] | None:
    """The numbers of the episodes that are asked for; None: all."""
    asked = (
        config.episodes,
        config.matching,
        config.successful,
        config.interventions,
        config.share,
    )
    if not any(asked):
        return None
    numbers = list(range(len(data)))
    if config.episodes:
        numbers = parse_numbers(config.episodes, len(data))
    if config.matching:
        try:
            wanted = re.compile(config.matching)
        except re.error as error:
            raise VlaError(
                f"--matching {config.matching!r} is no regular expression ({error})", "correct it"
            ) from error
        numbers = [i for i in numbers if any(map(wanted.search, data[i].instructions[:1]))]
    if config.successful:
        numbers = [i for i in numbers if len(data[i]) and data[i].rewards[-1] > 0]
    if config.interventions:
        if INTERVENTION not in data.carried():
            raise DataError(f"{data.path} does not say who acted", "leave out --interventions")
        acted = {i: interventions(data[i]) for i in numbers}
        numbers = [i for i, steps in acted.items() if steps is not None and steps.any()]
    if config.share:
        numbers = draw_share(numbers, config.share, config.seed)
    if not numbers:
        raise DataError(f"no episode of {data.path} is left", "ask for others")
    return numbers


def _keep_apart(source: Path, output: Path) -> None:
    a, b = source.resolve(), output.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise DataError(f"{output} and {source} overlap", "choose an output elsewhere")


# -- the work, in processes -------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """All that a worker needs. source: opens the dataset, in any process."""

    source: Callable[[], EpisodeSet]
    change: EpisodeTransform
    encode: Callable[[Episode], Any]

    def episode(self, data: EpisodeSet, index: int) -> tuple[Any, int]:
        """The encoded episode and its length; None if it has no step."""
        episode = self.change(data[index], data.where(index))
        return (self.encode(episode) if len(episode) else None), len(episode)


_work: Work
_data: EpisodeSet


def _start_worker(work: Work) -> None:
    global _work, _data
    _work, _data = work, work.source()


def _work_on(index: int) -> tuple[Any, int]:
    return _work.episode(_data, index)


def _count(workers: int | None, episodes: int) -> int:
    if workers is not None and workers < 1 and workers != -1:
        raise VlaError(f"--workers is {workers}", "give at least 1, or -1 for one per core")
    if workers in (None, -1):
        workers = min(os.cpu_count() or 1, max(1, episodes // EPISODES_A_WORKER))
    return min(workers, max(1, episodes))


def _encoded(work: Work, total: int, workers: int) -> Iterator[tuple[Any, int]]:
    """Encoded episodes in order, with only a few in memory at a time."""
    if workers == 1:
        data = work.source()
        for index in range(total):
            yield work.episode(data, index)
        return
    pool = WorkerPool(workers, _start_worker, work)
    waiting: deque[Future] = deque()
    try:
        for index in range(total):
            waiting.append(pool.submit(_work_on, index))
            if len(waiting) > AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise VlaError(
            "a worker process died before it finished an episode",
            "use fewer with --workers: memory may be short",
        ) from error
    finally:
        pool.close()
