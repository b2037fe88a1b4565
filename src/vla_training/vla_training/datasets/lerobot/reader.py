"""Reads LeRobotDataset, versions 2.0 to 3.0, with pyarrow and PyAV."""

from __future__ import annotations

import bisect
import os
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_inference.episodes.estimates import ESTIMATE, read_estimates
from vla_inference.episodes.interventions import INTERVENTION, read_interventions
from vla_inference.episodes.language import COLUMNS, PERSISTENT, SUBTASK
from vla_inference.episodes.robocasa import from_robocasa, robocasa_spec
from vla_inference.errors import DataError
from vla_inference.policies.action_specs import unknown_spec
from vla_inference.types import ActionSpec, Episode, make_steps
from vla_training.datasets.action_form import SPEC_FILE, read_spec
from vla_training.datasets.base import EpisodeSet, check_finite
from vla_training.datasets.images import StoredImages, decode_image
from vla_training.datasets.lerobot import layout as layout
from vla_training.datasets.lerobot.folder import COPY_AGAIN, LerobotFolder, readable
from vla_training.datasets.lerobot.language import metadata_of
from vla_training.datasets.lerobot.robocasa import robocasa_order
from vla_training.datasets.lerobot.video import VideoColumn
from vla_training.datasets.rlds.transforms import Conventions, get_conventions

READ = (layout.REWARD, layout.DONE, layout.TERMINAL, *layout.INDICES)


class LerobotSet(EpisodeSet):
    """The episodes of a LeRobotDataset folder.

    What its actions mean stands in meta/action_spec.json where we wrote it. LeRobot itself knows
    their names alone: then they are taken as they are, in unknown units, with a note. RoboCasa's
    are known by its meta/modality.json.
    tolerance: s, how far in time an image of a film may be from its step; a quarter of a step if
        left out.
    conventions: name of an entry of RLDS's `CONVENTIONS` that says what the actions mean, such as
        "libero", where no file of ours does.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        tolerance: float | None = None,
        conventions: str | None = None,
    ):
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.notes: list[str] = []
        folder = LerobotFolder(self.path)
        self.info, self.features, self.fps = folder.info, folder.features, folder.fps
        if not self.fps > 0:
            raise DataError(f"{self.path}/{layout.INFO} has fps {self.fps:g}", COPY_AGAIN)
        self._tolerance = 0.25 / self.fps if tolerance is None else float(tolerance)
        self._places, self._tasks, self._subtasks = folder.places, folder.tasks, folder.subtasks
        action = folder.one_of(layout.ACTIONS)
        if action is None:
            raise DataError(
                f"{self.path} has no feature {' or '.join(layout.ACTIONS)}; there is "
                f"{', '.join(n for n in self.features if n not in layout.INDICES)}",
                "give the actions one of these names",
            )
        self._action, self._states = action, folder.one_of(layout.STATES)
        self._acted = folder.one_of(layout.INTERVENTIONS)
        self._estimated = list(self.features.get(ESTIMATE, {}).get("shape", ())) == [2]
        self._language = [name for name in COLUMNS if name in self.features]
        with readable(self.path / layout.INFO):
            size = int(self.features[action]["shape"][0])
        self._conventions = None if conventions is None else _conventions(conventions, size)
        self._order: list[int] | None = None  # RoboCasa's columns, in its environments' order
        if conventions is None:
            self._order = robocasa_order(self.path, size)
        self.spec = self._spec(size) if self._conventions is None else self._conventions.spec
        self._size = size
        if self._conventions is not None and self._conventions.note:
            self.notes.append(self._conventions.note)
        self._tables: tuple[Path, _Table] | None = None
        if not self.cameras():
            self.notes.append(f"{self.path} has no images")
        if not any(t.strip() for t in self._tasks.values()):
            self.notes.append(f"{self.path} has no sentences: give one with --instruction")

    def _spec(self, size: int) -> ActionSpec:
        given = self.path / "meta" / SPEC_FILE
        if given.is_file():
            spec = read_spec(given)
            if len(spec) != size:
                raise DataError(
                    f"{given} names {len(spec)} dimensions, the actions have {size}", COPY_AGAIN
                )
            return spec
        if self._order is not None:
            return robocasa_spec(1 / self.fps)
        self.notes.append(
            "nothing states what the actions mean: they are taken as stored, in unknown units"
        )
        names = self.features[self._action].get("names")
        if isinstance(names, Mapping):
            names = next(iter(names.values()), None)
        if not isinstance(names, list) or len(names) != size:
            names = [f"action_{i}" for i in range(size)]
        return unknown_spec([str(n) for n in names], 1 / self.fps)

    def __len__(self) -> int:
        return len(self._places)

    def cameras(self) -> list[str]:
        return [
            name.removeprefix(layout.IMAGES)
            for name, feature in self.features.items()
            if feature["dtype"] in ("video", "image") and not _is_depth(feature)
        ]

    def left_out(self) -> list[str]:
        used = {self._action, self._states, *READ, *(self._key(c) for c in self.cameras())}
        used |= {self._acted, *self._language, layout.SUBTASK_INDEX}
        used |= {ESTIMATE} if self._estimated else set()
        return [n for n in self.features if n not in used]

    def carried(self) -> frozenset[str]:
        found = {*self._language, *([INTERVENTION] if self._acted else ())}
        found |= {ESTIMATE} if self._estimated else set()
        return frozenset(found | ({PERSISTENT} if self._subtasks else set()))

    def _key(self, camera: str) -> str:
        key = layout.IMAGES + camera
        return key if key in self.features else camera

    # -- episodes -----------------------------------------------------------------------------

    def _columns(self, index: int, names: list[str]) -> dict[str, pa.ChunkedArray]:
        place = self._places[index]
        file = place.table
        if self._tables is None or self._tables[0] != file:
            with readable(file):
                self._tables = (file, _Table(file))
        with readable(file):
            table = self._tables[1].rows(place.first, place.length, names)
        if set(table.column("episode_index").to_pylist()) - {index}:
            raise DataError(f"{file} contains other frames than episode {index}'s", COPY_AGAIN)
        return {n: table.column(n) for n in table.column_names}

    def actions(self, index: int) -> np.ndarray:
        index = self.check_index(index)
        return self._actions(self._columns(index, [self._action]), index).astype(np.float64)

    def _actions(self, columns: Mapping[str, pa.ChunkedArray], index: int) -> np.ndarray:
        actions = _vectors(columns[self._action])
        if actions.ndim != 2 or actions.shape[1] != self._size:
            raise DataError(
                f"{self.path}: episode {index} has actions of shape {actions.shape}, "
                f"[T, {self._size}] is expected",
                COPY_AGAIN,
            )
        if self._order is not None:
            actions = from_robocasa(actions[:, self._order])
        check_finite(actions, self.spec, f"{self.path}, episode {index}")
        if self._conventions is not None:
            actions, _ = self._conventions.transform({"action": actions})
        return actions.astype(np.float32)

    def __getitem__(self, index: int) -> Episode:
        index = self.check_index(index)
        place = self._places[index]
        length = place.length
        cameras = {c: self._key(c) for c in self.cameras()}
        stored = {k for k in cameras.values() if self.features[k]["dtype"] == "image"}
        others = (*READ, self._states, self._acted, layout.SUBTASK_INDEX, *self._language)
        others += (ESTIMATE,) if self._estimated else ()
        names = [self._action, *(n for n in others if n in self.features), *sorted(stored)]
        columns = self._columns(index, names)
        actions = self._actions(columns, index)
        state = None
        if self._states is not None:
            state = _vectors(columns[self._states]).astype(np.float32)

        def scalars(name: str, default: list) -> list:
            return _vectors(columns[name]).reshape(-1).tolist() if name in columns else default

        texts = self.said([self._task(n, index) for n in scalars("task_index", [0] * length)])
        rewards = scalars(layout.REWARD, [0.0] * length)
        ended = scalars(layout.TERMINAL, scalars(layout.DONE, [False] * length))
        times = np.array(scalars("timestamp", (np.arange(length) / self.fps).tolist()))
        images: dict[str, list[bytes] | VideoColumn] = {}
        for camera, key in cameras.items():
            if key in stored:
                images[camera] = [p["bytes"] for p in columns[key].to_pylist()]
            else:
                film, begins = place.videos[key]
                images[camera] = VideoColumn(film, begins + times, self._tolerance, index)
        where = f"{self.path}, episode {index}"
        shown = [LerobotStepImages(images, t, where) for t in range(length)]
        steps = make_steps(shown, texts, state, actions, rewards, ended)
        with readable(place.table):
            language = metadata_of(columns, times.tolist())
        metadata = {"source": where, **place.metadata, **language}
        kept = {}
        if self._subtasks:
            numbers = scalars(layout.SUBTASK_INDEX, [])
            kept[SUBTASK] = np.array([self._subtasks.get(n, "") for n in numbers], object)
        if self._acted is not None:
            acted = _vectors(columns[self._acted])
            kept[INTERVENTION] = read_interventions(acted, length, where)
        if self._estimated:
            kept[ESTIMATE] = read_estimates(_vectors(columns[ESTIMATE]), length, where)
        return Episode(steps, self.spec, metadata, kept)

    def _task(self, number: int, index: int) -> str:
        if number not in self._tasks:
            raise DataError(
                f"{self.path}: episode {index} has task {number}, the tasks' file none"
            )
        return self._tasks[number]


def _conventions(name: str, size: int) -> Conventions:
    """Those that read an action of this many numbers, and nothing else, and leave out no step."""
    found = get_conventions(name)
    if found.actions != ("action",) or found.needs or len(found.spec) != size:
        raise DataError(
            f"conventions {name} are not for a LeRobot dataset with actions of {size} numbers",
            "give libero or bridge_raw, or leave them out",
        )
    return found


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of numbers -> [T, D], numbers -> [T]."""
    return np.array(column.to_pylist())


class _Table:
    """A parquet file's rows by frame index; reads only the row groups needed."""

    def __init__(self, file: Path):
        self.file = pq.ParquetFile(file)
        meta = self.file.metadata
        counts = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._ends = list(accumulate(counts))
        self._first = self.file.read_row_group(0, ["index"]).column("index")[0].as_py()

    def rows(self, begin: int | None, length: int, names: list[str]) -> pa.Table:
        """begin: frame index of the first; None: these are all rows of the file."""
        total = self._ends[-1] if self._ends else 0
        if begin is None and total != length:
            raise ValueError(f"{total} rows, the episode has {length}")
        begin = 0 if begin is None else begin - self._first
        end = begin + length
        if not self._ends or begin < 0 or end > total:
            raise ValueError(f"rows {begin} to {end} of {total}")
        first = bisect.bisect_right(self._ends, begin)
        last = bisect.bisect_left(self._ends, end)
        names = list(dict.fromkeys([*names, "episode_index"]))
        table = self.file.read_row_groups(list(range(first, last + 1)), names)
        offset = self._ends[first - 1] if first else 0
        return table.slice(begin - offset, length)


class LerobotStepImages(StoredImages):
    """Camera name -> image of one step, from a table or a video, decoded on each access."""

    __slots__ = ("_step", "_where")

    def __init__(self, columns: Mapping[str, list[bytes] | VideoColumn], step: int, where: str):
        super().__init__(columns)
        self._step, self._where = step, where

    def __getitem__(self, camera: str) -> np.ndarray:
        column = self._stored[camera]
        if isinstance(column, VideoColumn):
            return column.read(self._step)
        what = f"{self._where}, step {self._step}, image {camera!r}"
        if column[self._step] is None:
            raise DataError(f"{what} is not in the table", COPY_AGAIN)
        return decode_image(column[self._step], what)

    def encoded(self, camera: str) -> bytes | None:
        """The stored JPEG or PNG; None for a video."""
        column = self._stored[camera]
        return None if isinstance(column, VideoColumn) else column[self._step]


def _is_depth(feature: Mapping) -> bool:
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
