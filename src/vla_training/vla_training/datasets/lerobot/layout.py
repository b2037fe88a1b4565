"""Names and constants of LeRobotDataset v2 and v3.0, for reader and writer.

Source: huggingface/lerobot src/lerobot/datasets (format, v3.0).
"""

from __future__ import annotations

import numpy as np

VERSION = "v3.0"
INFO, TASKS = "meta/info.json", "meta/tasks.parquet"
SUBTASKS, SUBTASK_INDEX = "meta/subtasks.parquet", "subtask_index"  # of LeRobot 0.5
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
OLD_EPISODES, OLD_TASKS = "meta/episodes.jsonl", "meta/tasks.jsonl"
OLD_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
OLD_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNK_SIZE = 1000  # files in a chunk's folder
IMAGES = "observation.images."
STATE, ACTION, REWARD, DONE = "observation.state", "action", "next.reward", "next.done"
ACTIONS, STATES = (ACTION, "actions"), (STATE, "state")  # the second is openpi's
INTERVENTIONS = ("intervention", "complementary_info.is_intervention")  # the second is HIL-SERL's
TERMINAL = "next.terminal"  # ours: that the episode ended there, rather than was cut off
INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
METADATA = "vla_metadata"  # ours: a column of the episodes' table, JSON
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def file_number(number: int) -> dict[str, int]:
    """Chunk and file of the n-th file."""
    return {"chunk_index": number // CHUNK_SIZE, "file_index": number % CHUNK_SIZE}


def statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of [N, D] along N, as in `meta/stats.json`."""
    values = np.asarray(values, np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class RunningStatistics:
    """Statistics of all episodes from those of each; quantiles as a weighted mean, as in
    LeRobot."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, np.ndarray]] = {}

    def add(self, name: str, one: dict[str, np.ndarray]) -> None:
        n = one["count"][0].astype(float)
        moments: dict[str, np.ndarray] = {
            "count": n,
            "mean": n * one["mean"],
            "square": n * (one["std"] ** 2 + one["mean"] ** 2),
            **{q: n * one[q] for q in QUANTILES},
        }
        if name not in self._sums:
            self._sums[name] = {**moments, "min": one["min"], "max": one["max"]}
            return
        sums = self._sums[name]
        for key, value in moments.items():
            sums[key] = sums[key] + value
        sums["min"] = np.minimum(sums["min"], one["min"])
        sums["max"] = np.maximum(sums["max"], one["max"])

    def result(self) -> dict[str, dict[str, list]]:
        return {name: self._of(sums) for name, sums in self._sums.items()}

    def _of(self, sums: dict) -> dict[str, list]:
        n = sums["count"]
        mean = sums["mean"] / n
        variance = np.maximum(sums["square"] / n - mean**2, 0)
        found = {
            "min": sums["min"],
            "max": sums["max"],
            "mean": mean,
            "std": np.sqrt(variance),
            **{q: sums[q] / n for q in QUANTILES},
        }
        return {**{k: v.tolist() for k, v in found.items()}, "count": [int(n)]}
