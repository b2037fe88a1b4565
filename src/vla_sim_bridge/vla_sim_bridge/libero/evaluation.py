"""Evaluates a policy on LIBERO by the benchmark's rules, in processes or on Ray.

Every finished episode is a line of `episodes.jsonl` in the results folder. What a worker or its
LIBERO process was at when it died is played again. A run that was stopped, or that an error ended,
goes on from there when it is started again: an episode that ended in an error has no line, so it
is neither a failure nor counted twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from PIL import Image

from vla_inference.errors import VlaError
from vla_inference.system.workers import Processes, RayWorkers, WorkerDiedError, Workers
from vla_sim_bridge.envs.other_python.process import ProcessLostError
from vla_sim_bridge.evaluation import report
from vla_sim_bridge.evaluation.recorder import FAILURES, FILM, POSTER, write_failure
from vla_sim_bridge.evaluation.video import Caption, Film
from vla_sim_bridge.libero.episodes import Played, Player, Setting
from vla_sim_bridge.libero.ledger import Ledger
from vla_sim_bridge.libero.results import Work, gather
from vla_sim_bridge.tasks.libero_suites import split_name

BATCH = 5  # episodes of one task that a worker plays before it tells: a task is made only once
MAX_DEATHS = 3  # of workers, without an episode in between

Tell = Callable[[str], None]


def evaluate(setting: Setting, work: Work, tell: Tell) -> dict:
    """Plays what the folder does not hold yet, and writes results.json and report.html."""
    began = time.perf_counter()
    lines = Ledger(work.folder, setting)
    wanted = set(work.indices)
    done = {index: entry for index, entry in lines.read().items() if index in wanted}
    films: dict[int, list] = {}
    of, missing = len(work.indices), [i for i in work.indices if i not in done]
    if len(missing) < of:
        tell(f"{of - len(missing)} of {of} episodes are there already")
    failures = work.failures - len(list(work.folder.glob(f"{FAILURES}/*.mp4")))
    for played in play(setting, work, missing, tell):
        lines.add(played)
        done[played.result.index] = lines.entry(played)
        if played.frames:
            films[played.result.index] = played.frames
        if played.seen and failures > 0:
            failures -= 1
            write_failure(work.folder, played.result.index, played.seen, captions(played, work))
        good = sum(entry["ever_success"] for entry in done.values())
        tell(
            f"episode {len(done)}/{of}  task {played.task} state {played.state}  "
            f"{played.result.outcome}, {played.result.frames} steps  reached so far "
            f"{good}/{len(done)}"
        )
    write_film(work.folder, films, setting)
    entries = [done[i] for i in sorted(done)]
    results = gather(setting, work, entries, lines.versions, time.perf_counter() - began)
    report.write_json(work.folder / report.RESULTS, results)
    latencies = [ms for entry in entries for ms in entry["latency_ms"]]
    report.write_html(work.folder, results, latencies)
    return results


def captions(played: Played, work: Work) -> Callable[[int, bool], Caption]:
    """What stands above an image of a failure's film."""
    result, of = played.result, len(work.indices)
    number = list(work.indices).index(result.index) + 1

    def caption(step: int, last: bool) -> Caption:
        outcome, shown = (result.outcome, result.frames) if last else ("running", step)
        return Caption(result.instruction, number, of, shown, outcome, result.index)

    return caption


def batches(setting: Setting, indices: list[int], parallel: int) -> list[list[int]]:
    """Episodes of one task together, a few at a time, enough for all workers."""
    suite, only = split_name(setting.task)
    by_task: dict[int, list[int]] = {}
    for index in indices:
        by_task.setdefault(index % suite.tasks if only is None else only, []).append(index)
    size = max(1, min(BATCH, len(indices) // max(1, parallel)))
    return [group[i : i + size] for group in by_task.values() for i in range(0, len(group), size)]


def play(setting: Setting, work: Work, indices: list[int], tell: Tell) -> Iterator[Played]:
    """Every episode once, whatever happens to workers on the way."""
    left = dict(enumerate(batches(setting, indices, work.parallel)))
    deaths = 0
    while left:
        threads = max(1, (os.cpu_count() or 1) // work.parallel)
        make = partial(_make_play, setting, work, left, threads)
        count = min(work.parallel, len(left))
        workers: Workers
        workers = RayWorkers(make, count, work.ray) if work.ray else Processes(make, count)
        waiting, running = list(left), 0
        try:
            while waiting or running:
                while waiting and running < workers.count:
                    workers.start(waiting.pop(0))
                    running += 1
                for number, played in workers.finished():
                    running, deaths = running - 1, 0
                    del left[number]
                    yield from played
        except (WorkerDiedError, ProcessLostError) as error:
            deaths += 1
            lost = isinstance(error, ProcessLostError)
            if deaths == MAX_DEATHS:
                if lost:
                    raise
                raise VlaError(
                    "workers die before they finish an episode",
                    "use fewer with --parallel: each takes about 2 GB; the same command resumes",
                ) from error
            tell(f"{error if lost else 'a worker died'}; its episodes are played again")
        finally:
            workers.close()


def _make_play(setting: Setting, work: Work, groups: dict[int, list[int]], threads: int):
    os.environ["OMP_NUM_THREADS"] = str(threads)  # PyTorch reads it when it is imported
    player, filmed = Player(setting), set(work.indices[: work.films])
    place = {index: number + 1 for number, index in enumerate(work.indices)}

    def play_group(number: int) -> list[Played]:
        return [player.play(i, place[i], len(place), i in filmed) for i in groups[number]]

    return play_group


def write_film(folder: Path, films: dict[int, list], setting: Setting) -> None:
    """The frames that the model saw, episode after episode."""
    if not films:
        return
    film = Film(folder / FILM, rate=max(1, round(20 / setting.execute)))
    for index in sorted(films):
        for frame in films[index]:
            film.add(frame)
        film.add(films[index][-1], film.rate)
    film.close()
    Image.fromarray(films[min(films)][-1]).save(folder / POSTER)
