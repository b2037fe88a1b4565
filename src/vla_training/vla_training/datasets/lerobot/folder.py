"""Locates each episode's rows and videos in a LeRobotDataset folder, versions 2.0 to 3.0.

Version 3 keeps many episodes in a file and tells their places in tables; version 2 has a table
and a film an episode, numbered, and tells episodes and tasks in lines of JSON.
Source: huggingface/lerobot src/lerobot/datasets/utils.py (names and patterns of both).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vla_inference.errors import DataError
from vla_training.datasets.lerobot import layout as layout

COPY_AGAIN = "the dataset is incomplete or damaged: copy it again"
OLD = ("v2.0", "v2.1")


@contextlib.contextmanager
def readable(file: Path) -> Iterator[None]:
    """Raises pyarrow's, PyAV's and JSON's errors on damage as DataError."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{file} cannot be read ({what:.300})", COPY_AGAIN) from error


@dataclass(frozen=True)
class EpisodePlace:
    """Where an episode is stored.

    first: its first row's frame index, by which the table's rows are found; None: the table is
        its own.
    videos: feature -> film, and the second at which the episode begins in it.
    """

    index: int
    length: int
    table: Path
    first: int | None
    videos: Mapping[str, tuple[Path, float]]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class LerobotFolder:
    """meta/ of a dataset: info, features, tasks, and the places of its episodes."""

    def __init__(self, path: Path):
        self.path = path
        file = path / layout.INFO
        with readable(file):
            self.info = dict(json.loads(file.read_text(encoding="utf-8")))
            self.version = str(self.info.get("codebase_version"))
            if self.version not in (layout.VERSION, *OLD):
                raise DataError(
                    f"{path} is a LeRobot dataset of version {self.version}, we read "
                    f"{', '.join((*OLD, layout.VERSION))}",
                    "convert it with the scripts in lerobot's repository",
                )
            self.features: dict[str, dict] = dict(self.info["features"])
            self.fps = float(self.info["fps"])
            kinds = {name: feature["dtype"] for name, feature in self.features.items()}
        self._films = [name for name, kind in kinds.items() if kind == "video"]
        self.places = self._old() if self.version in OLD else self._new()
        wanted = self.info.get("total_episodes", len(self.places))
        if [p.index for p in self.places] != list(range(wanted)):
            raise DataError(
                f"{path}: {'meta/episodes.jsonl' if self.version in OLD else 'meta/episodes'} "
                f"lists {len(self.places)} episodes, info.json {wanted}",
                COPY_AGAIN,
            )
        self.tasks, self.subtasks = self._read_tasks(), self._read_subtasks()

    def one_of(self, names: Sequence[str]) -> str | None:
        """The first of these features that exists."""
        return next((n for n in names if n in self.features), None)

    # -- version 3 ----------------------------------------------------------------------------

    def _new(self) -> list[EpisodePlace]:
        files = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise DataError(f"{self.path}/meta/episodes is missing", COPY_AGAIN)
        places: list[EpisodePlace] = []
        for file in files:
            with readable(file):
                names = pq.read_schema(file).names
                kept = [n for n in names if not n.startswith("stats/")]
                places += [self._place(r) for r in pq.read_table(file, columns=kept).to_pylist()]
        return sorted(places, key=lambda p: p.index)

    def _place(self, row: Mapping[str, Any]) -> EpisodePlace:
        def numbers(of: str) -> dict[str, int]:
            return {k: row[f"{of}/{k}"] for k in ("chunk_index", "file_index")}

        table = (self.info.get("data_path") or layout.DATA).format(**numbers("data"))
        pattern = self.info.get("video_path") or layout.VIDEO
        videos = {
            key: (
                self._inside(pattern.format(video_key=key, **numbers(f"videos/{key}"))),
                float(row[f"videos/{key}/from_timestamp"]),
            )
            for key in self._films
        }
        metadata = {}
        with contextlib.suppress(ValueError, TypeError, KeyError):
            metadata = dict(json.loads(row[layout.METADATA]))
        return EpisodePlace(
            row["episode_index"],
            row["length"],
            self._inside(table),
            row["dataset_from_index"],
            videos,
            metadata,
        )

    def _inside(self, name: str) -> Path:
        """A file of the dataset, from the name pattern in meta/info.json."""
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{self.path}/{layout.INFO} names a file outside the dataset ({name})",
                "correct its data_path and video_path",
            )
        return self.path / path

    # -- version 2 ----------------------------------------------------------------------------

    def _old(self) -> list[EpisodePlace]:
        file = self.path / layout.OLD_EPISODES
        size = int(self.info.get("chunks_size") or layout.CHUNK_SIZE)
        data = self.info.get("data_path") or layout.OLD_DATA
        video = self.info.get("video_path") or layout.OLD_VIDEO
        places = []
        with readable(file):
            for row in _lines(file):
                index = int(row["episode_index"])
                numbers = {"episode_index": index, "episode_chunk": index // size}
                videos = {
                    key: (self._inside(video.format(video_key=key, **numbers)), 0.0)
                    for key in self._films
                }
                table = self._inside(data.format(**numbers))
                places.append(EpisodePlace(index, int(row["length"]), table, None, videos))
        return sorted(places, key=lambda p: p.index)

    # -- tasks --------------------------------------------------------------------------------

    def _read_tasks(self) -> dict[int, str]:
        """Instructions by number, from a table (version 3) or from lines of JSON (version 2)."""
        file = self.path / layout.TASKS
        if not file.is_file() and (self.path / layout.OLD_TASKS).is_file():
            file = self.path / layout.OLD_TASKS
        with readable(file):
            if file.suffix == ".jsonl":
                return {int(row["task_index"]): str(row["task"]) for row in _lines(file)}
            return _texts(file, "task")

    def _read_subtasks(self) -> dict[int, str]:
        """Subtasks by number; none where no feature is one."""
        if layout.SUBTASK_INDEX not in self.features:
            return {}
        with readable(self.path / layout.SUBTASKS):
            return _texts(self.path / layout.SUBTASKS, "subtask")


def _texts(file: Path, name: str) -> dict[int, str]:
    """Of a table of texts and their numbers, `NAME_index`: the first column of texts."""
    table = pq.read_table(file)
    kinds = {f.name: f.type for f in table.schema}
    texts = [n for n, t in kinds.items() if pa.types.is_string(t) or pa.types.is_large_string(t)]
    found = table.to_pydict()
    return dict(zip(found[f"{name}_index"], found[texts[0] if texts else name], strict=True))


def _lines(file: Path) -> Iterator[dict]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())
