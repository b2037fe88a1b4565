"""Small LeRobot folders of versions 2.0, 2.1 and 3.0, as LeRobot and openpi write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from foreign_files import jpeg, scene

Film = tuple[Sequence[int], Sequence[float], Sequence[tuple[float, float]]]
INDICES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def film(
    path: Path, levels: Sequence[int], times: Sequence[float], size: int = 64, gop: int = 2
) -> None:
    """Lossless H.264; image i is all of grey levels[i], shown at times[i] s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = size
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "0", "g": str(gop), "bf": "0"}
        stream.codec_context.time_base = Fraction(1, 90000)
        for level, time in zip(levels, times, strict=True):
            grey = np.full((size, size, 3), level, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(time * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _features(action: str, state: str, cameras: Sequence[str], kind: str = "video") -> dict:
    names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    found: dict = {
        action: {"dtype": "float32", "shape": [7], "names": {"axes": names}},
        state: {"dtype": "float32", "shape": [8], "names": None},
    }
    for key in cameras:
        found[key] = {"dtype": kind, "shape": [64, 64, 3], "names": ["height", "width", "channel"]}
    return found | {k: {"dtype": d, "shape": [1], "names": None} for k, d in INDICES.items()}


def _rows(action: str, state: str, episode: int, length: int, at: int, fps: float) -> dict:
    """Columns of an episode."""
    single = pa.list_(pa.float32())
    return {
        action: pa.array([[0.01 * t, 0, 0, 0, 0, 0, 1.0] for t in range(length)], single),
        state: pa.array([[float(episode)] * 8] * length, single),
        "timestamp": pa.array(np.arange(length, dtype=np.float32) / np.float32(fps)),
        "frame_index": pa.array(range(length)),
        "episode_index": pa.array([episode] * length),
        "index": pa.array(range(at, at + length)),
        "task_index": pa.array([episode % 2] * length),
    }


TASKS = ["pick up the cup", "put it down"]


def v3(
    root: Path,
    fps: float,
    lengths: Sequence[int],
    films: dict[str, Film],
    action: str = "action",
    state: str = "observation.state",
) -> Path:
    """films: key -> (levels, times, [(from, to) by episode]); all in one file of each kind."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    info = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 2,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": _features(action, state, list(films)),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    rows, tables, at = [], [], 0
    for episode, length in enumerate(lengths):
        row = {
            "episode_index": episode,
            "tasks": [TASKS[episode % 2]],
            "length": length,
            "dataset_from_index": at,
            "dataset_to_index": at + length,
            "data/chunk_index": 0,
            "data/file_index": 0,
        }
        for key, (_, _, spans) in films.items():
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
            for edge, time in zip(("from", "to"), spans[episode], strict=True):
                row[f"videos/{key}/{edge}_timestamp"] = time
        rows.append(row)
        tables.append(pa.table(_rows(action, state, episode, length, at, fps)))
        at += length
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = {"task_index": pa.array([0, 1]), "__index_level_0__": pa.array(TASKS)}
    pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")
    for key, (levels, times, _) in films.items():
        film(root / f"videos/{key}/chunk-000/file-000.mp4", levels, times)
    return root


def v2(
    root: Path,
    lengths: Sequence[int],
    version: str = "v2.1",
    fps: float = 10,
    images: bool = False,
    chunks_size: int = 1000,
) -> Path:
    """A parquet file and a film an episode; image t of episode e is of grey 60 e + 10 t.

    images: they stand in the tables, as JPEGs of `scene`, and the names are openpi's.
    """
    (root / "meta").mkdir(parents=True)
    key = "image" if images else "observation.images.top"
    action, state = ("actions", "state") if images else ("action", "observation.state")
    info = {
        "codebase_version": version,
        "robot_type": "so100",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 2,
        "total_videos": len(lengths),
        "total_chunks": 1,
        "chunks_size": chunks_size,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "features": _features(action, state, [key], "image" if images else "video"),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None
        if images
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(TASKS)]
    (root / "meta/tasks.jsonl").write_text("\n".join(tasks) + "\n")
    lines, at = [], 0
    for episode, length in enumerate(lengths):
        lines.append({"episode_index": episode, "tasks": [TASKS[episode % 2]], "length": length})
        place = {"episode_chunk": episode // chunks_size, "episode_index": episode}
        columns = _rows(action, state, episode, length, at, fps)
        if images:
            stored = [{"bytes": jpeg(scene(t)), "path": f"{t}.jpg"} for t in range(length)]
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            columns[key] = pa.array(stored, kind)
        else:
            levels = [60 * episode + 10 * t for t in range(length)]
            video = root / info["video_path"].format(video_key=key, **place)
            film(video, levels, [t / fps for t in range(length)])
        path = root / info["data_path"].format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        at += length
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return root


def robocasa_v2(root: Path, actions: np.ndarray) -> Path:
    """One episode as RoboCasa365 publishes it; actions: [T, 12] as its environments take them."""
    order = [*range(7, 12), *range(7)]  # base and mode, then hand and gripper
    v2(root, [len(actions)], fps=20)
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    info["features"]["action"] |= {"shape": [12], "names": None}
    info["features"]["observation.state"]["shape"] = [16]
    file.write_text(json.dumps(info))
    table = root / "data/chunk-000/episode_000000.parquet"
    columns = dict(zip(names := pq.read_schema(table).names, pq.read_table(table), strict=True))
    single = pa.list_(pa.float32())
    columns["action"] = pa.array(actions[:, order].tolist(), single)
    columns["observation.state"] = pa.array([[0.0] * 16] * len(actions), single)
    pq.write_table(pa.table({n: columns[n] for n in names}), table)
    tasks = [{"task_index": 0, "task": "Open the left drawer."}]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks))
    ends, at = {}, 0
    for name, size in {
        "base_motion": 4,
        "control_mode": 1,
        "end_effector_position": 3,
        "end_effector_rotation": 3,
        "gripper_close": 1,
    }.items():
        ends[name] = {"original_key": "action", "start": at, "end": at + size}
        at += size
    (root / "meta/modality.json").write_text(json.dumps({"action": ends}))
    return root
