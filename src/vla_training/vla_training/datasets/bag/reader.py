"""Reads rosbag2 and ROS 1 bags as a dataset, with one or several episodes per bag."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.episodes.estimates import ESTIMATE
from vla_inference.episodes.interventions import INTERVENTION
from vla_inference.errors import DataError, VlaError
from vla_inference.types import ActionSpec, Episode, Observation, Step
from vla_training.datasets.action_form import (
    convert_rotation,
    is_eef_delta,
    with_rotation,
)
from vla_training.datasets.bag.actions import Chunk
from vla_training.datasets.bag.episodes import BagEpisode, BagReading, read_bag
from vla_training.datasets.bag.files.message_types import TASK_ESTIMATE
from vla_training.datasets.bag.files.paths import find_bags
from vla_training.datasets.bag.files.storage import BagFile
from vla_training.datasets.bag.options import BagOptions
from vla_training.datasets.bag.roles import CONTINUOUS
from vla_training.datasets.bag.streams import decode_image, header_stamp
from vla_training.datasets.bag.topics import read_about, says_who_acted
from vla_training.datasets.base import CARRIED, EpisodeSet, name_of
from vla_training.datasets.images import StoredImages

MOST_READ = 64  # bags of one episode whose messages, without images, are kept


class BagSet(EpisodeSet):
    """The episodes of one bag or of all bags in a folder, in order of name.

    A bag whose metadata says that it is one episode is read when that episode is; another one at
    once. What was left out or assumed is in `notes`. Raises DataError.
    """

    def __init__(self, path: str | os.PathLike, **options: Any):
        self.path = Path(path)
        self.options = BagOptions(**options)
        self.name = name_of(self.path)
        self.notes: list[str] = []
        paths = find_bags(self.path)
        if not paths:
            raise DataError(
                f"{self.path} has no bag",
                "a bag is a folder with metadata.yaml, a .mcap or .db3, or a .bag of ROS 1",
            )
        self._files: list[BagFile] = []
        self._readings: list[BagReading | None] = []
        self._recent: deque[int] = deque()
        self._first_names: tuple[str, ...] = ()  # joints of the state
        self._where: list[tuple[int, int]] = []  # by episode: bag, episode in it
        troubles: list[VlaError] = []
        for bag in paths:
            try:
                self._take(bag)
            except DataError as error:
                troubles.append(error)
        if not self._where:
            raise troubles[0] if troubles else DataError(f"{self.path} has no episode")
        self.notes += [f"left out: {error.problem}" for error in troubles]
        self._first: ActionSpec | None = None  # of all bags alike, once one was read
        self._stored = self.spec = self._reading(self._where[0][0]).spec
        self.name = self._files[0].custom.get("dataset", self.name)

    def past_stride(self, interval: float) -> int:
        raise DataError(
            f"{self.path}: a bag's steps are its images, at times of their own, and past images "
            "are found by steps",
            "use episodes of another format, or a model without past images",
        )

    def _take(self, path: Path) -> None:
        file = BagFile(path)
        whole = read_about(file).get("episodes") == 1 and not file.lost
        reading = None if whole else self._read(file)
        number = len(self._files)
        self._files.append(file)
        self._readings.append(reading)
        self._where += [(number, i) for i in range(1 if reading is None else len(reading))]

    def _read(self, file: BagFile) -> BagReading:
        reading = read_bag(file, self.options)
        prefix = "" if file.path == self.path else f"{file.path.name}: "
        self.notes += [n for note in reading.notes if (n := prefix + note) not in self.notes]
        return reading

    def _reading(self, number: int) -> BagReading:
        reading = self._readings[number]
        if reading is None:
            reading = self._readings[number] = self._read(self._files[number])
            self._recent.append(number)
            if len(self._recent) > MOST_READ:  # can be read again
                self._readings[self._recent.popleft()] = None
        kind = self._first = self._first or reading.spec
        if not _alike(reading.spec, kind):
            raise DataError(
                f"{self._files[number].path}: its actions are of another kind than those of "
                f"{self._files[self._where[0][0]].path} ({reading.spec} and {kind})",
                "read bags of one kind at a time",
            )
        first = self._first_names = self._first_names or reading.state_names
        if reading.state_names != first:
            raise DataError(
                f"{self._files[number].path}: its state is of the joints "
                f"{', '.join(reading.state_names)}, that of the bags before {', '.join(first)}",
                "name them and their order with --state-joints",
            )
        return reading

    def read_as(self, spec: ActionSpec) -> None:
        """Give actions as a model of this spec does: with its convention of rotations, and, where
        they are velocities or poses, over its length of a step."""
        kind = self._files[0].topics[self._reading(self._where[0][0]).topics.action].type
        if kind in CONTINUOUS and abs(self.spec.dt - spec.dt) > 1e-3 * spec.dt:
            self.options = replace(self.options, step_length=spec.dt)
            self._readings = [None] * len(self._readings)
            self._recent.clear()
            self.notes.clear()
            self._first = None
            self._stored = self._reading(self._where[0][0]).spec
        self.spec = self._stored
        if is_eef_delta(self.spec) and is_eef_delta(spec):
            self.spec = with_rotation(self.spec, spec.rotation)

    def read_all(self) -> None:
        """Reads every bag, so that `notes` are complete; leaves out those without a step."""
        for number in {n for n, _ in self._where}:
            try:
                self._reading(number)
            except DataError as error:
                self.notes.append(f"left out: {error.problem}")
                self._where = [w for w in self._where if w[0] != number]
        if not self._where:
            raise DataError(f"{self.path} has no step that could be used", "; ".join(self.notes))

    def __len__(self) -> int:
        return len(self._where)

    def episode(self, index: int) -> BagEpisode:
        """Everything but the images."""
        number, inner = self._where[self.check_index(index)]
        return self._reading(number).episodes[inner]

    def bag_path(self, index: int) -> Path:
        return self._files[self._where[self.check_index(index)][0]].path

    def actions(self, index: int) -> np.ndarray:
        return convert_rotation(self.episode(index).actions, self._stored, self.spec)

    def chunks(self, index: int) -> list[Chunk] | None:
        """The recorded chunk of each step, if chunks were recorded."""
        return self.episode(index).chunks

    def left_out(self) -> list[str]:
        return sorted(
            {
                topic
                for file, reading in zip(self._files, self._readings, strict=True)
                if reading is not None
                for topic in set(file.topics)
                - {*reading.topics.cameras.values(), *reading.topics.small}
            }
        )

    def cameras(self) -> list[str]:
        return list(self._reading(self._where[0][0]).topics.cameras)

    def __getitem__(self, index: int) -> Episode:
        number, inner = self._where[self.check_index(index)]
        file, reading = self._files[number], self._reading(number)
        found, actions = reading.episodes[inner], self.actions(index)
        encoded = {
            camera: file.reading(partial(_images, file, topic, found.images[camera]))
            for camera, topic in reading.topics.cameras.items()
            if camera in found.images
        }
        last, texts = len(found) - 1, self.said(found.instructions)
        steps = [
            Step(
                Observation(
                    BagStepImages(
                        file, reading.topics.cameras, {c: encoded[c][t] for c in encoded}, t
                    ),
                    texts[t],
                    None if found.states is None else found.states[t].astype(np.float32),
                    float(found.stamps[t]) / 1e9,
                ),
                actions[t].astype(np.float32),
                float(found.rewards[t]),
                bool(found.flags[t] & 1) if found.flags is not None else t == 0,
                bool(found.flags[t] & 2) if found.flags is not None else t == last,
                bool(found.flags[t] & 4)
                if found.flags is not None
                else found.terminal and t == last,
            )
            for t in range(len(found))
        ]
        columns = {INTERVENTION: found.acted, ESTIMATE: found.estimates}
        kept = {name: values for name, values in columns.items() if values is not None}
        return Episode(steps, self.spec, dict(found.metadata), kept)

    def carried(self) -> frozenset[str]:
        found: set[str] = set()
        for file in self._files:
            about = read_about(file).get("metadata")
            found |= CARRIED & set(about if isinstance(about, dict) else ())
            if says_who_acted(file):
                found.add(INTERVENTION)
            if any(t.type == TASK_ESTIMATE and t.count for t in file.topics.values()):
                found.add(ESTIMATE)
        return frozenset(found)


def _alike(one: ActionSpec, other: ActionSpec) -> bool:
    """The usual time between images differs a little from bag to bag."""
    return replace(one, dt=other.dt) == other and abs(one.dt - other.dt) <= 0.05 * other.dt


def _images(file: BagFile, topic: str, keys: np.ndarray) -> list[Any]:
    """The messages of a topic with (stamp, log) in keys [T, 2], in that order."""
    wanted = {(int(s), int(log)) for s, log in keys}
    low, high = int(keys[:, 1].min()), int(keys[:, 1].max())
    found = {}
    for message in file.messages({topic}, low, high + 1):
        stamp = header_stamp(message.data)
        for key in ((stamp, message.log), (message.log, message.log)):
            if key in wanted:
                found[key] = message
    missing = len(wanted) - len(found)
    if missing:
        raise DataError(f"{file.path}: {missing} images of {topic} are gone", "copy it again")
    return [found[int(s), int(log)] for s, log in keys]


class BagStepImages(StoredImages):
    """Camera -> image of one step, decoded on each access as the inference node does it."""

    __slots__ = ("_file", "_step", "_topics")

    def __init__(self, file: BagFile, topics: Mapping[str, str], encoded: dict, step: int):
        super().__init__(encoded)
        self._file, self._topics, self._step = file, topics, step

    def __getitem__(self, camera: str) -> np.ndarray:
        topic = self._topics[camera]
        message = self._file.decode(self._stored[camera])
        where = f"{self._file.path}, {topic}, step {self._step}"
        return decode_image(self._file.topics[topic].type, message, where)
