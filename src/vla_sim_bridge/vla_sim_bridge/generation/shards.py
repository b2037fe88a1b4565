"""The output folder of a generation: one file per attempt, merged into one dataset at the end.

generate.json              what was asked for; another request is refused
parts/attempt_0000012.hdf5   a success, renamed into place when whole
parts/attempt_0000013.failed why it failed, as JSON; with --keep-failures a .failure.hdf5 too
demo.hdf5, statistics.json   at the end; failed.hdf5 with the failures kept
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from vla_inference.episodes.hdf5 import CONVENTION, is_arm, write_episode, write_header
from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.errors import DataError
from vla_inference.policies.action_specs import spec_to_json
from vla_inference.system.files import LOCK, Staged, remove_leftovers, write_whole
from vla_inference.types import ActionSpec, Episode
from vla_sim_bridge.evaluation.confidence_intervals import wilson_interval
from vla_sim_bridge.tasks import get_task

GOOD, BAD, NOTE = ".hdf5", ".failure.hdf5", ".failed"


class AttemptShards:
    """Outcomes by attempt number, with progress in constant time.

    The episodes kept are the first successes by number, so an attempt counts only once every
    earlier one is known: `through` is that frontier, `kept` the successes before it.
    """

    def __init__(self, outcomes: Mapping[int, str] = {}):
        self.outcomes: dict[int, str] = {}
        self.good = self.through = self.kept = 0
        self._next = 0
        self._started: set[int] = set()
        for index, outcome in outcomes.items():
            self.add(index, outcome)

    def __len__(self) -> int:
        return len(self.outcomes)

    def add(self, index: int, outcome: str) -> None:
        self.outcomes[index] = outcome
        self._started.discard(index)
        self.good += outcome == "success"
        while self.through in self.outcomes:
            self.kept += self.outcomes[self.through] == "success"
            self.through += 1

    def enough(self, wanted: int) -> bool:
        """Whether the first `wanted` successes by attempt number are all known."""
        return self.kept >= wanted

    def take(self) -> int:
        """Takes the lowest attempt that is neither known nor running."""
        while self._next in self.outcomes or self._next in self._started:
            self._next += 1
        self._started.add(self._next)
        return self._next


def to_bytes(episode: Episode, compression: str | None) -> bytes:
    """An episode as an HDF5 file in memory, so that writing is one plain write."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write_episode(file.create_group("demo"), episode, compression)
    return buffer.getvalue()


def store(parts: Path, index: int, outcome: str, content: bytes | None) -> None:
    """Stores an attempt's result atomically.

    Raises OSError where it cannot be written, and leaves nothing behind.
    """
    name = parts / f"attempt_{index:07d}"
    if outcome == "success" and content is not None:
        _put(name.with_suffix(GOOD), content)
        return
    if content is not None:
        _put(name.with_suffix(BAD), content)
    _put(name.with_suffix(NOTE), json.dumps({"outcome": outcome}).encode())


def _put(path: Path, content: bytes) -> None:
    write_whole(path, content, clean=False)


def recall(parts: Path) -> AttemptShards:
    """Loads earlier results and removes what a killed call left half-written."""
    outcomes: dict[int, str] = {}
    remove_leftovers(parts)
    for entry in list(os.scandir(parts)):
        name = entry.name
        if name.endswith(NOTE):
            text = Path(entry.path).read_text()
            outcomes[_index(name)] = json.loads(text)["outcome"] if text else "timeout"
        elif name.endswith(GOOD) and not name.endswith(BAD):
            outcomes[_index(name)] = "success"
    return AttemptShards(outcomes)


def _index(name: str) -> int:
    return int(name.split("_")[1].split(".")[0])


class DamagedPartError(Exception):
    """A shard that cannot be read (after a power cut, for example); it is removed and made
    again."""


def merge(config, parts: Path, ledger: AttemptShards, final: Path) -> dict:
    """Merges all shards into `final` in order of attempts; returns the statistics, also stored
    beside it."""
    good = sorted(i for i, outcome in ledger.outcomes.items() if outcome == "success")
    kept = good[: config.episodes]
    attempts = kept[-1] + 1
    failures = [i for i in range(attempts) if ledger.outcomes[i] != "success"]
    with Staged(final) as staged:  # takes its name last of all
        with h5py.File(staged, "w") as file:
            lengths = _copy(config.task, parts, kept, GOOD, file)
            statistics = summarise(config.task, lengths, attempts, ledger.outcomes)
            file["data"].attrs["statistics"] = json.dumps(statistics)
        if config.keep_failures:
            with Staged(final.with_name("failed.hdf5")) as other, h5py.File(other, "w") as file:
                _copy(config.task, parts, failures, BAD, file)
        write_whole(final.with_name("statistics.json"), json.dumps(statistics, indent=2))
    shutil.rmtree(parts)  # with what a worker that was ended in its work left half-written
    return statistics


def _copy(task: str, parts: Path, indices: list[int], suffix: str, file: h5py.File) -> list[int]:
    about = get_task(task)
    kwargs = {"control_freq": int(CONTROL_FREQ), "robots": about.robot}
    write_header(file, task, 0, kwargs, _convention(about.spec))
    lengths = []
    for number, index in enumerate(indices):
        path = (parts / f"attempt_{index:07d}").with_suffix(suffix)
        try:
            with h5py.File(path, "r") as part:
                part.copy("demo", file["data"], f"demo_{number}")
                lengths.append(int(part["demo"].attrs["num_samples"]))
        except (OSError, KeyError) as error:
            if _readable(path):
                raise  # it is the dataset that cannot be written
            path.unlink(missing_ok=True)
            path.with_suffix("").with_suffix(NOTE).unlink(missing_ok=True)
            raise DamagedPartError(str(path)) from error
    file["data"].attrs["total"] = sum(lengths)
    return lengths


def _convention(spec: ActionSpec) -> dict:
    """What a file says of its actions: an arm's are robosuite's, others in SI."""
    if is_arm(spec):
        return CONVENTION
    return {
        "delta": "see spec",
        "scale": [1.0] * (len(spec) - 1),
        "gripper": "1 open, 0 closed",
        "control_freq": 1 / spec.dt,
        "spec": spec_to_json(spec),
    }


def _readable(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as part:
            part["demo"].visititems(lambda _, item: item[()] if hasattr(item, "dtype") else None)
            return "num_samples" in part["demo"].attrs
    except (OSError, KeyError):
        return False


def summarise(task: str, lengths: list[int], attempts: int, outcomes: Mapping[int, str]) -> dict:
    """Statistics of a dataset: success rate with its Wilson interval, lengths, failures."""
    low, high = wilson_interval(len(lengths), attempts)
    reasons = Counter(outcomes[i] for i in range(attempts) if outcomes[i] != "success")
    p5, median, p95 = np.percentile(lengths, [5, 50, 95])
    return {
        "task": task,
        "episodes": len(lengths),
        "attempts": attempts,
        "success_rate": len(lengths) / attempts,
        "success_rate_wilson95": [low, high],
        "failures": dict(sorted(reasons.items())),
        "frames": sum(lengths),
        "length_mean": float(np.mean(lengths)),
        "length_std": float(np.std(lengths)),
        "length_max": max(lengths),
        "length_p5": float(p5),
        "length_median": float(median),
        "length_p95": float(p95),
    }


def claim(output: Path, wanted: Mapping, defaults: Mapping) -> None:
    """Records the request of this folder; refuses to mix two requests in one.

    defaults: what an option means that a note of an earlier version does not have.
    """
    note = output / "generate.json"
    wanted = json.loads(json.dumps(wanted))
    if note.exists():
        try:
            found = {**json.loads(json.dumps(defaults)), **json.loads(note.read_text())}
        except ValueError as error:
            raise DataError(f"{note} is not JSON ({error})", "choose another --output") from error
        differing = [k for k in wanted if found.get(k) != wanted[k]]
        if differing:
            told = [f"{k} {found.get(k)!r}, not {wanted[k]!r}" for k in differing]
            raise DataError(
                f"{output} was started with {'; '.join(told)}",
                "give the same options to resume, or choose another --output: several folders are "
                "trained on together (--data A --data B)",
            )
        return
    if any(entry.name != LOCK for entry in output.iterdir()):
        raise DataError(f"{output} contains other files", "choose another --output")
    write_whole(note, json.dumps(wanted, indent=2))
