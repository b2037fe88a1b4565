"""Index of a dataset's frames (episode lengths, statistics), computed once and cached on disk.

One safetensors file per dataset: all actions, states where the model takes them, the length of
each episode, and the statistics. It is rebuilt when the data's files change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.episodes.interventions import INTERVENTION
from vla_inference.errors import DataError
from vla_inference.system.files import write_whole
from vla_inference.types import ActionSpec
from vla_training.datasets import EpisodeSet, open_dataset
from vla_training.datasets.base import action_statistics, column_statistics
from vla_training.loader.sample_weights import SampleWeights, chunk_limits

LAYOUT = 2  # of the cached file


@dataclass(frozen=True)
class DatasetSource:
    """One dataset of a mixture.

    weight: its share of the samples beside the others'; None goes by its number of frames.
    cameras: in the order the model takes them; empty takes the dataset's own order.
    options: what its reader takes (`open_dataset`), "kind" among them.
    """

    path: str
    weight: float | None = None
    cameras: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> EpisodeSet:
        return open_dataset(self.path, **self.options)


def held_out(episode: Any, share: float) -> Any:
    """Whether episodes of these numbers, an array or a tensor, are for validation: every k-th."""
    if share <= 0:
        return episode < 0
    every = max(2, round(1 / share))
    return episode % every == every - 1


@dataclass
class FrameIndex:
    """All frames of a dataset by number, one episode after the other.

    actions: float32 [N, D], in the units of `spec`; states: float32 [N, P] or None;
    ends: int64 [E], one past each episode's last frame.
    interventions: bool [N], whether a person acted; None where the dataset does not say.
    weights: float32 [N] of the frames, 0 for those that are left out; None: all count alike.
    """

    name: str
    actions: np.ndarray
    ends: np.ndarray
    statistics: dict
    spec: ActionSpec | None = None
    states: np.ndarray | None = None
    interventions: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.actions)

    def weighted(self, by: SampleWeights) -> FrameIndex:
        """The same with weights, where the dataset says who acted."""
        if self.interventions is None or self.spec is None:
            return self
        weights = by.of_steps(self.interventions, self.ends, self.spec.dt)
        return replace(self, weights=weights)

    @property
    def drawn(self) -> np.ndarray:
        """Frames that are not left out: bool [N]"""
        return np.ones(len(self), bool) if self.weights is None else self.weights > 0

    @cached_property
    def limits(self) -> np.ndarray:
        """One past the last step of a chunk from each frame on: int64 [N]"""
        weights = np.ones(len(self)) if self.weights is None else self.weights
        return chunk_limits(weights, self.ends)

    def locate(self, frame: int) -> tuple[int, int]:
        """Episode and step of a frame."""
        episode = int(np.searchsorted(self.ends, frame, side="right"))
        return episode, frame - (int(self.ends[episode - 1]) if episode else 0)

    def held_out(self, share: float) -> np.ndarray:
        """Frames of the episodes that are for validation: bool [N]"""
        return held_out(np.searchsorted(self.ends, np.arange(len(self)), side="right"), share)


def index_frames(
    source: DatasetSource,
    folder: str | os.PathLike,
    proprio: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> FrameIndex:
    """The index of a dataset, from the cache in `folder` if that is still valid."""
    data = source.open()
    mark = fingerprint(source, proprio)
    path = Path(folder) / f"{data.name}-{mark[:16]}.safetensors"
    if path.is_file():
        return _load(path, data)
    report(f"{data.path}: reading {len(data)} episodes once")
    actions = [np.asarray(data.actions(i), np.float32) for i in range(len(data))]
    statistics = action_statistics(actions, data.spec, str(data.path))
    states = None
    if proprio:
        states = np.concatenate([_states(data, i, len(a)) for i, a in enumerate(actions)])
        if not np.isfinite(states).all():
            raise DataError(f"{data.path}: a state is not finite", "fix the data")
        statistics["proprio"] = bounds(states)
    ends = np.cumsum([len(a) for a in actions]).astype(np.int64)
    acted = _interventions(data, [len(a) for a in actions])
    everything = np.concatenate(actions)
    index = FrameIndex(data.name, everything, ends, statistics, data.spec, states, acted)
    _save(path, index)
    return index


def fingerprint(source: DatasetSource, proprio: bool) -> str:
    """Changes when a file of the dataset changes in size or time."""
    root = Path(source.path).expanduser().resolve()
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    about = [LAYOUT, stats, sorted(source.options.items()), proprio]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def bounds(values: np.ndarray) -> dict:
    """Statistics of states [N, P]; all dimensions are scaled."""
    return {**column_statistics(values.astype(np.float64)), "mask": [True] * values.shape[1]}


def _states(data: EpisodeSet, episode: int, length: int) -> np.ndarray:
    if hasattr(data, "episodes") and hasattr(data.episodes, "states"):  # HDF5: no image is read
        states = data.episodes.states(episode)
        rows = [None] * length if states is None else list(states)
    else:
        rows = [s.observation.state for s in data[episode].steps]
    if any(r is None for r in rows):
        raise DataError(
            f"{data.path}: episode {episode} has no state, and the model takes proprioception",
            "record it, or fine-tune a model without",
        )
    return np.asarray(rows, np.float32).reshape(length, -1)


def _interventions(data: EpisodeSet, lengths: Sequence[int]) -> np.ndarray | None:
    """bool [N], whether a person acted; an episode that does not say had none. None: none says."""
    if INTERVENTION not in data.carried():
        return None
    found = [data.interventions(i) for i in range(len(data))]
    if all(acted is None for acted in found):
        return None
    pairs = zip(found, lengths, strict=True)
    return np.concatenate([np.zeros(n, bool) if a is None else a for a, n in pairs])


def _save(path: Path, index: FrameIndex) -> None:
    from safetensors.numpy import save

    tensors = {"actions": index.actions, "ends": index.ends}
    if index.states is not None:
        tensors["states"] = index.states
    if index.interventions is not None:
        tensors["interventions"] = index.interventions
    write_whole(path, save(tensors, {"statistics": json.dumps(index.statistics)}))


def _load(path: Path, data: EpisodeSet) -> FrameIndex:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        statistics = json.loads(file.metadata()["statistics"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    return FrameIndex(
        data.name,
        tensors["actions"],
        tensors["ends"],
        statistics,
        data.spec,
        tensors.get("states"),
        tensors.get("interventions"),
    )
