"""Writes episodes in robomimic's HDF5 layout, with images and one instruction per step.

Stored as robomimic has it: `data/demo_i/{actions, states, rewards, dones, obs/*}`, actions in
robosuite's own [-1, 1] and gripper -1 open. An `Episode` is in SI units; the scale and polarity
are written into `data.attrs["action_convention"]`, and a file without it is
taken for robosuite's OSC_POSE default, which is what robomimic's and MimicGen's files hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import deflate
import h5py
import numpy as np

from vla_inference.episodes import robocasa
from vla_inference.episodes.estimates import ESTIMATE, estimates
from vla_inference.episodes.interventions import INTERVENTION, interventions
from vla_inference.episodes.language import COLUMNS, rows_of
from vla_inference.episodes.robosuite import ACTION_SCALE, CONTROL_FREQ, to_robosuite
from vla_inference.errors import DataError
from vla_inference.types import ActionSpec, Episode

# Ours, and LIBERO's: position m and axis angle rad of the hand, both fingers m; RoboCasa's.
STATES = (
    ("obs/robot0_state",),
    ("obs/ee_states", "obs/gripper_states"),
    tuple(f"obs/{name}" for name in robocasa.STATE),
)
CONVENTION = {
    "delta": "OSC_POSE, world-aligned base frame, rotation vector applied from the left",
    "scale": ACTION_SCALE.tolist(),
    "gripper": "-1 open, +1 closed",
    "control_freq": CONTROL_FREQ,
}


def is_arm(spec: ActionSpec) -> bool:
    """Whether actions are one arm's, which are stored as robosuite has them."""
    return [p.kind for p in spec.parts] == ["eef_delta", "gripper"]


def write_episode(group: h5py.Group, episode: Episode, compression: str | None = "gzip") -> None:
    """Writes one demonstration: an arm's actions as robosuite's, others in SI."""
    steps = episode.steps
    images = {
        f"{camera}_image": np.stack([s.observation.images[camera] for s in steps])
        for camera in steps[0].observation.images
    }
    actions = np.stack([s.action for s in steps])
    data = {
        "actions": to_robosuite(actions) if is_arm(episode.spec) else actions,
        "states": episode.columns["states"],
        "rewards": episode.rewards,
        "dones": episode.terminal.astype(np.int64),
        "instructions": episode.instructions,
        "obs": images | _below("obs/", episode),
        "datagen_info": _below("datagen_info/", episode),
        "attrs": {k: v for k, v in episode.metadata.items() if k not in COLUMNS},
    }
    write_columns(group, data, compression)
    for name, values in takeover_columns(episode).items():
        group.create_dataset(name, data=values)


def takeover_columns(episode: Episode) -> dict[str, np.ndarray]:
    """What a file has of who acted, uint8 [T], of estimates, and of language, a row's JSON an
    entry."""
    found, acted = {}, interventions(episode)
    if acted is not None:
        found[INTERVENTION] = acted.astype(np.uint8)
    if (told := estimates(episode)) is not None:
        found[ESTIMATE] = told
    for name in COLUMNS:
        if rows := rows_of(episode.metadata, name, "an episode"):
            texts = [json.dumps(row) for row in rows]
            found[name] = np.array(texts, h5py.string_dtype("utf-8"))
    return found


def _below(folder: str, episode: Episode) -> dict[str, np.ndarray]:
    found = episode.columns.items()
    return {k.removeprefix(folder): v for k, v in found if k.startswith(folder)}


def write_columns(group: h5py.Group, data: Mapping, compression: str | None = "gzip") -> None:
    """Writes one demonstration in its stored form.

    data: "actions" [T, 7] robosuite units, "states" [T, S], "rewards", "dones" [T],
    "instructions" T strings, "obs" {name: [T, ...]}, "datagen_info" (nested mapping of arrays),
    "attrs" (plain JSON values).
    """
    length = len(data["actions"])
    for key in ("actions", "states", "rewards", "dones"):
        group.create_dataset(key, data=np.asarray(data[key]))
    write_instructions(group, data["instructions"])
    for name, value in data["obs"].items():
        value = np.asarray(value)
        if value.dtype != np.uint8 or not compression:
            group.create_dataset(f"obs/{name}", data=value)
        elif compression == "gzip":
            write_images(group, name, map(compress, value), len(value), value.shape[1:])
        else:
            options = {"chunks": (1, *value.shape[1:]), "compression": compression}
            group.create_dataset(f"obs/{name}", data=value, **options)
    _write_tree(group, "datagen_info", data.get("datagen_info", {}))
    group.attrs["num_samples"] = length
    for key, value in data.get("attrs", {}).items():
        group.attrs[key] = value


def write_instructions(group: h5py.Group, sentences: Sequence[str]) -> None:
    """Writes one instruction per step."""
    text = h5py.string_dtype("utf-8")
    group.create_dataset("instructions", data=np.array(sentences, object), dtype=text)


def compress(image: np.ndarray) -> bytes | bytearray:
    """Compresses like HDF5's gzip filter of level 1, with libdeflate in half the time."""
    return deflate.zlib_compress(np.ascontiguousarray(image), 1)


def write_images(
    group: h5py.Group,
    name: str,
    chunks: Iterable[bytes | bytearray],
    length: int,
    shape: tuple[int, ...],
    compression: str | None = "gzip",
) -> None:
    """obs/NAME uint8 [length, *shape], a chunk an image, each as it stands in the file."""
    options = {"compression": "gzip", "compression_opts": 1} if compression == "gzip" else {}
    data = group.create_dataset(
        f"obs/{name}", (length, *shape), np.uint8, chunks=(1, *shape), **options
    )
    for step, chunk in enumerate(chunks):
        data.id.write_direct_chunk((step, *(0 for _ in shape)), chunk)


def _write_tree(group: h5py.Group, name: str, tree) -> None:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            _write_tree(group, f"{name}/{key}", value)
    else:
        group.create_dataset(name, data=np.asarray(tree))


def write_header(
    file: h5py.File, task: str, total: int, env_kwargs: Mapping, convention: Mapping = CONVENTION
) -> None:
    data = file.require_group("data")
    data.attrs["total"] = total
    data.attrs["env_args"] = json.dumps(
        {"env_name": task, "env_type": 1, "env_kwargs": dict(env_kwargs)}
    )
    data.attrs["action_convention"] = json.dumps(convention)


class Demonstrations:
    """The demonstrations of a robomimic / MimicGen HDF5 file, or of a folder of such files, as
    they are stored."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.exists():
            raise DataError(f"there is no dataset at {self.path}", "check the path")
        files = [self.path]
        if self.path.is_dir():
            files = sorted(p for p in self.path.glob("**/*") if p.suffix in (".hdf5", ".h5"))
        self._demos: list[tuple[h5py.Group, str, str]] = []  # data, demo, file
        self._last: tuple[int, h5py.Group] | None = None
        for name in files:
            try:
                file = h5py.File(name, "r")
                if file.keys() and "data" not in file:
                    raise DataError(
                        f"{name} is laid out in a way that is not read: it contains "
                        f"{', '.join(sorted(file)[:8])}",
                        "robomimic's layout (data/demo_N/actions, obs) and ALOHA's (action, "
                        "observations/qpos, images) are read: convert it to one of them",
                    )
                data = file["data"]
                demos = sorted(data, key=lambda d: int(d.rsplit("_", 1)[1]))
            except (OSError, KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
                raise DataError(
                    f"{name} is not a readable robomimic file ({error})",
                    "it may be truncated; generate or copy it again",
                ) from error
            self._demos += [(data, d, data.file.filename) for d in demos]
        if not self._demos:
            raise DataError(f"{self.path} has no demonstration", "generate some first")

    def __len__(self) -> int:
        return len(self._demos)

    def group(self, index: int) -> h5py.Group:
        """The raw HDF5 group of a demonstration."""
        if self._last is None or self._last[0] != index:
            data, name, _ = self._demos[index]
            self._last = index, data[name]
        return self._last[1]

    def filename(self, index: int) -> str:
        """The file of a demonstration: another one if `data` contains a link."""
        data, name, file = self._demos[index]
        link = data.id.links.get_info(name.encode())
        return self.group(index).file.filename if link.type == h5py.h5l.TYPE_EXTERNAL else file

    def where(self, index: int) -> str:
        """Describes a demonstration in messages."""
        _, name, file = self._demos[index]
        return f"{file}: /data/{name}"

    def states(self, index: int) -> np.ndarray | None:
        """float32 [T, D] proprioception, or None."""
        group = self.group(index)
        keys = next((k for k in STATES if all(key in group for key in k)), ())
        return np.hstack([group[key][:] for key in keys]).astype(np.float32) if keys else None
