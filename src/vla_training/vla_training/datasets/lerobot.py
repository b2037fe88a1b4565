"""LeRobotDataset v3.0 as a data set, read with pyarrow and PyAV."""

from __future__ import annotations

import bisect
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_inference.errors import DataError
from vla_inference.types import ActionSpec, DimSpec, Episode, Observation, Step
from vla_training.datasets import lerobot_layout as layout
from vla_training.datasets.action_form import SPEC_FILE, read_spec
from vla_training.datasets.base import EpisodeSet
from vla_training.datasets.pictures import StoredPictures, decode_picture

COPY_AGAIN = "the data set is incomplete or damaged: copy it again"
READ = (layout.ACTION, layout.STATE, layout.REWARD, layout.DONE, layout.TERMINAL, *layout.INDICES)


class LerobotSet(EpisodeSet):
    """The episodes of a LeRobotDataset folder.

    What its actions mean stands in meta/action_spec.json where we wrote it. LeRobot itself knows
    their names alone: then they are taken as they are, in unknown units, with a note.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.notes: list[str] = []
        with readable(self.path / layout.INFO):
            self.info = dict(json.loads((self.path / layout.INFO).read_text(encoding="utf-8")))
            version = str(self.info.get("codebase_version"))
            if version != layout.VERSION:
                raise DataError(
                    f"{self.path} is a LeRobot data set of version {version}, we read "
                    f"{layout.VERSION}",
                    "convert it with lerobot's own script",
                )
            self.features: dict[str, dict] = dict(self.info["features"])
            self.fps = float(self.info["fps"])
            size = int(self.features[layout.ACTION]["shape"][0])
        self._rows = self._read_episodes()
        self._tasks = self._read_tasks()
        self.spec = self._spec(size)
        self._tables: tuple[Path, _Table] | None = None

    def _spec(self, size: int) -> ActionSpec:
        given = self.path / "meta" / SPEC_FILE
        if given.is_file():
            spec = read_spec(given)
            if len(spec) != size:
                raise DataError(
                    f"{given} names {len(spec)} dimensions, the actions have {size}", COPY_AGAIN
                )
            return spec
        self.notes.append(
            "nothing states what the actions mean: they are taken as stored, in unknown units"
        )
        names = self.features[layout.ACTION].get("names")
        if isinstance(names, Mapping):
            names = next(iter(names.values()), None)
        if not isinstance(names, list) or len(names) != size:
            names = [f"action_{i}" for i in range(size)]
        dims = tuple(DimSpec(str(n), "unknown") for n in names)
        return ActionSpec(dims, "unknown", "unknown", 1 / self.fps)

    def _read_episodes(self) -> list[dict]:
        files = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise DataError(f"{self.path}/meta/episodes is missing", COPY_AGAIN)
        rows: list[dict] = []
        for file in files:
            with readable(file):
                names = pq.read_schema(file).names
                kept = [n for n in names if not n.startswith("stats/")]
                rows += pq.read_table(file, columns=kept).to_pylist()
        rows.sort(key=lambda r: r["episode_index"])
        wanted = self.info.get("total_episodes", len(rows))
        if [r["episode_index"] for r in rows] != list(range(wanted)):
            raise DataError(
                f"{self.path}: meta/episodes lists {len(rows)} episodes, info.json {wanted}",
                COPY_AGAIN,
            )
        return rows

    def _read_tasks(self) -> dict[int, str]:
        file = self.path / layout.TASKS
        with readable(file):
            table = pq.read_table(file).to_pydict()
            texts = table.get("task") or table["__index_level_0__"]
            return dict(zip(table["task_index"], texts, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def cameras(self) -> list[str]:
        return [
            name.removeprefix(layout.PICTURES)
            for name, feature in self.features.items()
            if feature["dtype"] in ("video", "image") and not _is_depth(feature)
        ]

    def left_out(self) -> list[str]:
        cameras = {self._key(c) for c in self.cameras()}
        return [n for n in self.features if n not in READ and n not in cameras]

    def _key(self, camera: str) -> str:
        key = layout.PICTURES + camera
        return key if key in self.features else camera

    # -- episodes -----------------------------------------------------------------------------

    def _columns(self, index: int, names: list[str]) -> dict[str, pa.ChunkedArray]:
        row = self._rows[index]
        place = {k: row[f"data/{k}"] for k in ("chunk_index", "file_index")}
        file = self.path / self.info.get("data_path", layout.DATA).format(**place)
        if self._tables is None or self._tables[0] != file:
            with readable(file):
                self._tables = (file, _Table(file))
        with readable(file):
            table = self._tables[1].rows(row["dataset_from_index"], row["length"], names)
        if set(table.column("episode_index").to_pylist()) - {index}:
            raise DataError(f"{file} holds other frames than episode {index}'s", COPY_AGAIN)
        return {n: table.column(n) for n in table.column_names}

    def actions(self, index: int) -> np.ndarray:
        index = self.check_index(index)
        return self._actions(self._columns(index, [layout.ACTION]), index).astype(np.float64)

    def _actions(self, columns: Mapping[str, pa.ChunkedArray], index: int) -> np.ndarray:
        actions = _vectors(columns[layout.ACTION])
        if actions.ndim != 2 or actions.shape[1] != len(self.spec):
            raise DataError(
                f"{self.path}: episode {index} has actions of shape {actions.shape}, "
                f"[T, {len(self.spec)}] is due",
                COPY_AGAIN,
            )
        if not np.isfinite(actions).all():
            step, column = np.argwhere(~np.isfinite(actions))[0]
            raise DataError(
                f"{self.path}: episode {index}, action {self.spec.names[column]!r} of step {step} "
                "is not finite",
                "mend the data",
            )
        return actions.astype(np.float32)

    def __getitem__(self, index: int) -> Episode:
        index = self.check_index(index)
        row = self._rows[index]
        length = row["length"]
        images = [self._key(c) for c in self.cameras()]
        stored = {k for k in images if self.features[k]["dtype"] == "image"}
        wanted = [n for n in READ if n in self.features] + sorted(stored)
        columns = self._columns(index, wanted)
        actions = self._actions(columns, index)
        state = _vectors(columns[layout.STATE]) if layout.STATE in columns else None

        def scalars(name: str, default: list) -> list:
            return columns[name].to_pylist() if name in columns else default

        texts = [self._task(n, index) for n in columns["task_index"].to_pylist()]
        rewards = scalars(layout.REWARD, [0.0] * length)
        ended = scalars(layout.TERMINAL, scalars(layout.DONE, [False] * length))
        pictures: dict[str, list[bytes] | VideoColumn] = {}
        for camera in self.cameras():
            key = self._key(camera)
            if key in stored:
                pictures[camera] = [p["bytes"] for p in columns[key].to_pylist()]
            else:
                pictures[camera] = VideoColumn(*self._video(row, key), length, self.fps)
        where = f"{self.path}, episode {index}"
        steps = [
            Step(
                Observation(
                    StepPictures(pictures, t, where),
                    texts[t],
                    None if state is None else state[t].astype(np.float32),
                ),
                actions[t], float(rewards[t]), t == 0, t == length - 1, bool(ended[t]),
            )
            for t in range(length)
        ]  # fmt: skip
        metadata: dict[str, Any] = {"source": where}
        with contextlib.suppress(ValueError, TypeError, KeyError):
            metadata |= json.loads(row[layout.METADATA])
        return Episode(steps, self.spec, metadata)

    def _task(self, number: int, index: int) -> str:
        if number not in self._tasks:
            raise DataError(f"{self.path}: episode {index} has task {number}, tasks.parquet none")
        return self._tasks[number]

    def _video(self, row: Mapping, key: str) -> tuple[Path, float]:
        """File and second at which an episode's pictures begin."""
        with readable(self.path / "meta" / "episodes"):
            place = {k: row[f"videos/{key}/{k}"] for k in ("chunk_index", "file_index")}
            begins = float(row[f"videos/{key}/from_timestamp"])
            pattern = self.info.get("video_path") or layout.VIDEO
            return self.path / pattern.format(video_key=key, **place), begins


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """What pyarrow, PyAV and JSON raise on damage, as DataError."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{file} cannot be read ({what:.300})", COPY_AGAIN) from error


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of numbers -> [T, D]."""
    return np.array(column.to_pylist())


class _Table:
    """A parquet file's rows by frame index; only the row groups that hold them are read."""

    def __init__(self, file: Path):
        self.file = pq.ParquetFile(file)
        meta = self.file.metadata
        counts = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._ends = list(accumulate(counts))
        self._first = self.file.read_row_group(0, ["index"]).column("index")[0].as_py()

    def rows(self, begin: int, length: int, names: list[str]) -> pa.Table:
        begin -= self._first
        end = begin + length
        if not self._ends or begin < 0 or end > self._ends[-1]:
            raise ValueError(f"rows {begin} to {end} of {self._ends[-1] if self._ends else 0}")
        first = bisect.bisect_right(self._ends, begin)
        last = bisect.bisect_left(self._ends, end)
        names = list(dict.fromkeys([*names, "episode_index"]))
        table = self.file.read_row_groups(list(range(first, last + 1)), names)
        offset = self._ends[first - 1] if first else 0
        return table.slice(begin - offset, length)


# -- pictures of a film -----------------------------------------------------------------------


class VideoColumn:
    """The pictures of one episode in a film, decoded in order; going back seeks."""

    def __init__(self, file: Path, begins: float, length: int, fps: float):
        self._file, self._begins, self._length, self._fps = file, begins, length, fps
        self._frames: Iterator[np.ndarray] | None = None
        self._next = 0
        self._last: tuple[int, np.ndarray] | None = None

    def read(self, step: int) -> np.ndarray:
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        if self._frames is None or step < self._next:
            self._frames, self._next = self._decode(step), step
        with readable(self._file):
            while True:
                picture = next(self._frames, None)
                if picture is None:
                    raise DataError(f"{self._file} ends before step {step}", COPY_AGAIN)
                self._next += 1
                if self._next > step:
                    break
        self._last = (step, picture)
        return picture

    def _decode(self, start: int) -> Iterator[np.ndarray]:
        """From step `start` on; the file closes with the last one."""
        with readable(self._file), av.open(str(self._file)) as container:
            stream = container.streams.video[0]
            half = 0.5 / self._fps
            wanted = self._begins + start / self._fps
            container.seek(
                max(0, int((wanted - half) / stream.time_base)), stream=stream, backward=True
            )
            left = self._length - start
            for frame in container.decode(stream):
                if left and frame.time is not None and frame.time > wanted - half:
                    left -= 1
                    yield frame.to_ndarray(format="rgb24")
                if not left:
                    return

    def __reduce__(self):
        return VideoColumn, (self._file, self._begins, self._length, self._fps)


class StepPictures(StoredPictures):
    """Camera name -> picture of one step, from a table or a film, decoded on each access."""

    __slots__ = ("_step", "_where")

    def __init__(self, columns: Mapping[str, list[bytes] | VideoColumn], step: int, where: str):
        super().__init__(columns)
        self._step, self._where = step, where

    def __getitem__(self, camera: str) -> np.ndarray:
        column = self._stored[camera]
        if isinstance(column, VideoColumn):
            return column.read(self._step)
        what = f"{self._where}, step {self._step}, picture {camera!r}"
        if column[self._step] is None:
            raise DataError(f"{what} is not in the table", COPY_AGAIN)
        return decode_picture(column[self._step], what)

    def encoded(self, camera: str) -> bytes | None:
        """As it is stored, JPEG or PNG; None of a film."""
        column = self._stored[camera]
        return None if isinstance(column, VideoColumn) else column[self._step]


def _is_depth(feature: Mapping) -> bool:
    info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
