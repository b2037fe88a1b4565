"""Writes LeRobotDataset v3.0 with pyarrow and PyAV: parquet tables, MP4 or PNG images.

Many episodes share a file, of tables as of images; `meta/episodes` says where each one stands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_inference.episodes.estimates import ESTIMATE, UNKNOWN, estimates
from vla_inference.episodes.interventions import INTERVENTION, interventions
from vla_inference.episodes.language import COLUMNS
from vla_inference.errors import DataError
from vla_inference.options import option
from vla_inference.policies.action_specs import spec_to_json
from vla_inference.types import Episode
from vla_training.datasets.action_form import SPEC_FILE
from vla_training.datasets.images import encode_image
from vla_training.datasets.lerobot import layout as layout
from vla_training.datasets.lerobot.files import PIXELS, TableFiles, VideoFiles, encode_video
from vla_training.datasets.lerobot.language import FEATURE, columns_of
from vla_training.datasets.writers import DataForm, EpisodeWriter

CODEC = "h264"
TABLE_EPISODES = 100  # rows of the episodes' table that are held in memory


@dataclass(frozen=True)
class LerobotOptions:
    """pixels: yuv420p halves the resolution of colours, which costs small images several dB."""

    images: str = option(
        "video",
        "video (MP4), or png in the tables, which loses nothing",
        choices=("video", "png"),
    )
    crf: int = option(14, "of videos, 0 to 51, lower is better (14)", low=0, high=51)
    pixels: str = option(
        PIXELS[0], "of videos, yuv444p, or yuv420p for any player", choices=PIXELS
    )
    file_mb: float = option(100.0, "size of a table's file in MB (100); videos take twice as much")


class LerobotWriter(EpisodeWriter):
    """Writes the folder of a LeRobotDataset."""

    Options = LerobotOptions

    def begin(self) -> None:
        self.video = self.options.images == "video"
        for camera, size in self.form.cameras.items():
            if self.video and (size[0] % 2 or size[1] % 2):
                raise DataError(
                    f"images of {camera!r} are {size[1]}x{size[0]}, MP4 takes even sizes only",
                    "give --width and --height, or images=png",
                )
            if "/" in camera:
                raise DataError(f"camera {camera!r} has a '/'", "rename it with --remap-keys")
        rate = Fraction(1 / self.form.spacing).limit_denominator(1000)
        self.rate = rate
        self.fps = int(rate) if rate.denominator == 1 else float(rate)
        self._tasks: dict[str, int] = {}
        self._frames = 0
        self._limit = 1e6 * self.options.file_mb
        self._statistics = layout.RunningStatistics()
        self._rows: list[dict] = []
        self._data = TableFiles(self.partial, layout.DATA, self._limit)
        self._episodes = TableFiles(self.partial, layout.EPISODES, self._limit)
        self._videos = (
            {
                c: VideoFiles(self.partial, layout.IMAGES + c, rate, 2 * self._limit)
                for c in self.form.cameras
            }
            if self.video
            else {}
        )
        (self.partial / "meta").mkdir(parents=True)

    def encoder(self) -> LerobotEncoder:
        return LerobotEncoder(
            self.form, self.video, self.options.crf, self.options.pixels, self.rate
        )

    def add(self, encoded: dict) -> None:
        length, number = len(encoded["tasks"]), self.count
        begun = self._frames
        indices = [self._tasks.setdefault(t, len(self._tasks)) for t in encoded["tasks"]]
        frame = np.arange(length)
        columns = {
            **encoded["columns"],
            "timestamp": (frame / self.fps).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(length, number),
            "index": begun + frame,
            "task_index": np.array(indices),
        }
        language = columns_of(
            encoded["language"], self.form.carried, np.asarray(columns["timestamp"])
        )
        own = {
            name: layout.statistics(v.reshape(length, -1)) for name, v in columns.items()
        } | encoded["statistics"]
        for name, values in own.items():
            self._statistics.add(name, values)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": list(dict.fromkeys(encoded["tasks"])),
            "length": length,
            "dataset_from_index": begun,
            "dataset_to_index": begun + length,
            layout.METADATA: json.dumps(encoded["metadata"]),
        }
        table = pa.table(
            {
                **{n: _array(v) for n, v in columns.items()},
                **language,
                **{
                    n: pa.array([{"bytes": b, "path": None} for b in images], _IMAGE)
                    for n, images in encoded["images"].items()
                    if not self.video
                },
            }
        ).replace_schema_metadata(self._hugging_face())
        for key, value in self._data.write(table).items():
            row[f"data/{key}"] = value
        for camera, video in self._videos.items():
            key = layout.IMAGES + camera
            placed = video.append(encoded["images"][key], length)
            row |= {f"videos/{key}/{k}": v for k, v in placed.items()}
        for name, values in own.items():
            row |= {f"stats/{name}/{k}": v.tolist() for k, v in values.items()}
        self._rows.append(row)
        self._frames += length
        if len(self._rows) == TABLE_EPISODES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        place = self._episodes.next_file()
        for row in self._rows:
            row |= {f"meta/episodes/{k}": v for k, v in place.items()}
        self._episodes.write(pa.Table.from_pylist(self._rows))
        self._rows = []

    def finish(self) -> None:
        self._flush()
        self.release()
        meta = self.partial / "meta"
        pq.write_table(self._task_table(), self.partial / layout.TASKS)
        for name, value in (
            ("info.json", self._info()),
            ("stats.json", self._statistics.result()),
            (SPEC_FILE, spec_to_json(self.form.spec)),
        ):
            (meta / name).write_text(json.dumps(value, indent=4), encoding="utf-8")

    def release(self) -> None:
        self._data.close()
        self._episodes.close()
        for video in self._videos.values():
            video.close()

    def _task_table(self) -> pa.Table:
        """Sentences are the index of the table, as pandas marks one."""
        table = pa.table(
            {
                "task_index": pa.array(list(self._tasks.values()), pa.int64()),
                "task": pa.array(list(self._tasks), pa.string()),
            }
        )

        def column(name: str, kind: str, dtype: str) -> dict:
            return {
                "name": name,
                "field_name": name,
                "pandas_type": kind,
                "numpy_type": dtype,
                "metadata": None,
            }

        pandas = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                column("task_index", "int64", "int64"),
                column("task", "unicode", "object"),
            ],
            "creator": {"library": "pyarrow", "version": pa.__version__},
            "pandas_version": "2.0.0",
        }
        return table.replace_schema_metadata({"pandas": json.dumps(pandas)})

    def _hugging_face(self) -> dict[str, str]:
        """Tells the `datasets` library which columns are images."""
        features: dict[str, dict] = {}
        for name, feature in self._features().items():
            value = {"dtype": feature["dtype"], "_type": "Value"}
            if feature["dtype"] == "image":
                features[name] = {"_type": "Image"}
            elif feature["dtype"] not in ("video", "language"):
                size = feature["shape"][0]
                listed = {"feature": value, "length": size, "_type": "Sequence"}
                features[name] = value if size == 1 else listed
        return {"huggingface": json.dumps({"info": {"features": features}})}

    def _features(self) -> dict[str, dict]:
        def vector(dtype: str, size: int = 1, names: list[str] | None = None) -> dict:
            return {"dtype": dtype, "shape": [size], "names": names}

        form = self.form
        features = {layout.ACTION: vector("float32", len(form.spec), list(form.spec.names))}
        if form.state:
            names = [f"state_{i}" for i in range(form.state)]
            features[layout.STATE] = vector("float32", form.state, names)
        for camera, (height, width) in form.cameras.items():
            features[layout.IMAGES + camera] = {
                "dtype": "video" if self.video else "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            if self.video:
                features[layout.IMAGES + camera]["info"] = {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": CODEC,
                    "video.pix_fmt": self.options.pixels,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "video.is_depth_map": False,
                    "has_audio": False,
                }
        if INTERVENTION in form.carried:
            features[INTERVENTION] = vector("bool")
        if ESTIMATE in form.carried:
            features[ESTIMATE] = vector("float32", 2, ["progress", "done"])
        features |= {name: dict(FEATURE) for name in COLUMNS if name in form.carried}
        features |= {
            layout.REWARD: vector("float32"),
            layout.DONE: vector("bool"),
            layout.TERMINAL: vector("bool"),
            "timestamp": vector("float32"),
        }
        return features | {name: vector("int64") for name in layout.INDICES[1:]}

    def _info(self) -> dict:
        return {
            "codebase_version": layout.VERSION,
            "robot_type": None,
            "total_episodes": self.count,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.CHUNK_SIZE,
            "data_files_size_in_mb": max(1, round(self._limit / 1e6)),
            "video_files_size_in_mb": max(1, round(2 * self._limit / 1e6)),
            "fps": self.fps,
            "splits": {"train": f"0:{self.count}"},
            "data_path": layout.DATA,
            "video_path": layout.VIDEO if self.video else None,
            "features": self._features(),
        }


_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def _array(values: np.ndarray) -> pa.Array:
    """[T] -> numbers, [T, D] -> lists of D."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


@dataclass(frozen=True)
class LerobotEncoder:
    """Encodes an episode to columns, instructions, finished images and their statistics."""

    form: DataForm
    video: bool
    crf: int
    pixels: str
    rate: Fraction

    def __call__(self, episode: Episode) -> dict:
        steps = episode.steps
        columns = {layout.ACTION: episode.actions}
        if self.form.state:
            columns[layout.STATE] = episode.states
        columns |= {
            layout.REWARD: episode.rewards.astype(np.float32),
            layout.DONE: np.array([s.is_last for s in steps]) | episode.terminal,
            layout.TERMINAL: episode.terminal,
        }
        if INTERVENTION in self.form.carried:
            acted = interventions(episode)
            columns[INTERVENTION] = np.zeros(len(steps), bool) if acted is None else acted
        if ESTIMATE in self.form.carried:
            told = estimates(episode)
            unknown = np.full((len(steps), 2), UNKNOWN, np.float32)
            columns[ESTIMATE] = unknown if told is None else told
        images: dict[str, Any] = {}
        statistics = {}
        for camera in self.form.cameras:
            frames = [s.observation.images[camera] for s in steps]
            key = layout.IMAGES + camera
            if self.video:
                images[key] = encode_video(frames, self.rate, self.crf, self.pixels)
            else:
                images[key] = [encode_image(f, "png") for f in frames]
            statistics[key] = _image_statistics(frames)
        return {
            "columns": columns,
            "tasks": episode.instructions,
            "images": images,
            "statistics": statistics,
            "metadata": {k: v for k, v in episode.metadata.items() if k not in COLUMNS},
            "language": {k: v for k, v in episode.metadata.items() if k in (*COLUMNS, "source")},
        }


def _image_statistics(frames: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Of some images' pixels in [0, 1], each [3, 1, 1]; count is that of the images seen."""
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 20).astype(int))]
    pixels = np.concatenate([f[::4, ::4].reshape(-1, 3) for f in chosen]) / 255
    found = layout.statistics(pixels)
    count = found.pop("count")
    count[:] = len(chosen)
    return {**{k: v.reshape(3, 1, 1) for k, v in found.items()}, "count": count}
