"""robomimic / MimicGen HDF5 files as a data set."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property

import deflate
import h5py
import numpy as np

from vla_inference.errors import DataError
from vla_inference.types import Episode, Observation, Step
from vla_sim_bridge.hdf5 import Hdf5Episodes
from vla_training.datasets.action_form import absolute_to_delta
from vla_training.datasets.base import EpisodeSet
from vla_training.datasets.hdf5_convention import (
    Convention,
    default_convention,
    read_convention,
)
from vla_training.datasets.pictures import StoredPictures

READ = ("actions", "instructions", "rewards", "dones")
EEF = ("obs/robot0_eef_pos", "obs/robot0_eef_quat")


class StepPictures(StoredPictures):
    """Camera name -> picture of one step, read on each access."""

    __slots__ = ("_step",)

    def __init__(self, columns: Mapping[str, PictureColumn], step: int):
        super().__init__(columns)
        self._step = step

    def __getitem__(self, camera: str) -> np.ndarray:
        return self._stored[camera].read(self._step)


class PictureColumn:
    """The pictures of one camera of an episode.

    shuffled: they are not read one after the other. Else, all are read at once where a chunk
        holds several.
    """

    def __init__(self, data: h5py.Dataset, shuffled: bool = False):
        self._data, self._shuffled = data, shuffled

    @cached_property
    def _source(self) -> h5py.Dataset | np.ndarray:
        chunks = self._data.chunks
        return self._data if self._shuffled or chunks is None or chunks[0] == 1 else self._data[:]

    @cached_property
    def _whole_chunks(self) -> bool:
        """Whether each chunk is one picture under gzip and nothing else: read without HDF5's own
        zlib, which takes twice the time."""
        data = self._data
        return (
            data.chunks == (1, *data.shape[1:])
            and data.dtype == np.uint8
            and data.compression == "gzip"
            and not (data.shuffle or data.fletcher32 or data.scaleoffset)
        )

    def read(self, step: int) -> np.ndarray:
        data = self._data
        try:
            if not self._whole_chunks:
                return self._source[step]
            unfiltered, raw = data.id.read_direct_chunk((step, *(0 for _ in data.shape[1:])))
            shape = data.shape[1:]
            pixels = raw if unfiltered else deflate.zlib_decompress(raw, math.prod(shape))
            return np.frombuffer(pixels, np.uint8).reshape(shape)
        except FAULTS as error:
            raise _damaged(f"{data.file.filename}: {data.name}", error) from error


# What h5py raises where the file is damaged, depending on which byte it is.
FAULTS = (
    OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError,
    deflate.DeflateError,
)  # fmt: skip


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Damage as DataError that names the file and what lies in it."""
    try:
        yield
    except FAULTS as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where} cannot be read ({error})", "the file is damaged: generate or copy it again"
    )


class Hdf5Set(EpisodeSet):
    """The episodes of an HDF5 file, or of a folder of such files.

    Actions come out in SI units whatever their scale and gripper convention, as far as the file
    states them in `data.attrs["action_convention"]`; poses become deltas where `obs` has the pose
    of the arm.
    """

    def __init__(self, path: str | os.PathLike):
        self.episodes = Hdf5Episodes(path)
        self.path = self.episodes.path
        self.name = self.path.stem if self.path.is_file() else self.path.resolve().name
        self.notes: list[str] = []
        self._conventions: dict[str, Convention] = {}
        for i in range(len(self.episodes)):
            with readable(self.episodes.where(i)):
                name = self.episodes.filename(i)
                if name not in self._conventions:
                    self._conventions[name] = self._convention(self.episodes.group(i).file)
        specs = {c.spec: name for name, c in self._conventions.items()}
        if len(specs) > 1:
            raise DataError(
                f"{' and '.join(list(specs.values())[:2])} hold actions of different meaning",
                "read them one by one, or convert one",
            )
        self.spec = next(iter(specs))

    def _convention(self, file: h5py.File) -> Convention:
        found, stated = read_convention(file["data"], file.filename)
        if not stated:
            self.notes.append(
                f"{file.filename} states no action_convention: taken for robosuite's OSC_POSE "
                "(0.05 m, 0.5 rad, gripper -1 open) at 20 Hz"
            )
        if found.absolute:
            self.notes.append(f"{file.filename} holds target poses: read as deltas")
        return found

    @property
    def plain(self) -> bool:
        """Whether `Hdf5Episodes` reads the same actions: all files are in robosuite's own form."""
        return set(self._conventions.values()) == {default_convention()}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        index = self.check_index(index)
        with readable(self.episodes.where(index)):
            self._check(index)
            group = self.episodes.group(index)
            actions = self._actions(group).astype(np.float32)
            texts = self.episodes.instructions(index)
            state = self.episodes.states(index)
            rewards = _column(group, "rewards", len(actions))
            last = np.arange(len(actions)) == len(actions) - 1
            ended = _column(group, "dones", len(actions)) != 0 if "dones" in group else last
            columns = {
                c: PictureColumn(group[f"obs/{c}_image"])
                for c in self.cameras()
                if f"obs/{c}_image" in group
            }
            metadata = _metadata(group)
        steps = [
            Step(
                Observation(
                    StepPictures(columns, t), texts[t], None if state is None else state[t]
                ),
                actions[t], float(rewards[t]), t == 0, bool(last[t]), bool(ended[t]),
            )
            for t in range(len(actions))
        ]  # fmt: skip
        return Episode(steps, self.spec, metadata)

    def actions(self, index: int) -> np.ndarray:
        index = self.check_index(index)
        with readable(self.episodes.where(index)):
            self._check(index)
            return self._actions(self.episodes.group(index))

    def _actions(self, group: h5py.Group) -> np.ndarray:
        convention = self._conventions[group.file.filename]
        raw = np.asarray(group["actions"][:], np.float64)
        if not convention.absolute:
            return convention.read(raw)
        for key in EEF:
            if key not in group:
                raise DataError(
                    f"{group.file.filename}: {group.name} holds target poses, and no {key} to "
                    "tell the motion from",
                    "store the arm's pose with them",
                )
        from scipy.spatial.transform import Rotation

        poses = np.tile(np.eye(4), (len(raw), 1, 1))
        poses[:, :3, 3] = group[EEF[0]][:]
        poses[:, :3, :3] = Rotation.from_quat(group[EEF[1]][:]).as_matrix()
        gripper = convention.read(raw)[:, -1:]
        return np.concatenate([absolute_to_delta(raw[:, :6], poses), gripper], axis=1)

    def _check(self, index: int) -> None:
        """Whether all that belongs to a step is there for each action."""
        group = self.episodes.group(index)
        where = f"{group.file.filename}: {group.name}"
        actions = group.get("actions")
        if actions is None:
            raise DataError(f"{where} has no 'actions'", "generate or copy it again")
        if actions.ndim != 2 or actions.shape[1] != len(self.spec):
            raise DataError(
                f"{where}/actions has shape {actions.shape}, [T, {len(self.spec)}] is due "
                f"({', '.join(self.spec.names)})",
                "convert its actions to an end-effector delta and gripper",
            )
        for key in (*READ[1:], *(f"obs/{n}" for n in group.get("obs", ()))):
            if key in group and len(group[key]) != len(actions):
                raise DataError(
                    f"{where}/{key} has {len(group[key])} entries for {len(actions)} actions",
                    "generate or copy it again",
                )

    def cameras(self) -> list[str]:
        """robosuite's third-person view first: it is what our models are trained on."""
        return list(self._cameras)

    @cached_property
    def _cameras(self) -> list[str]:
        with readable(self.episodes.where(0)):
            found = self.episodes.cameras()
        return sorted(found, key=lambda name: (name != "agentview", name))

    def left_out(self) -> list[str]:
        with readable(self.episodes.where(0)):
            return self._left_out(self.episodes.group(0))

    def _left_out(self, group: h5py.Group) -> list[str]:
        used = {*READ, "obs/robot0_state", *(f"obs/{c}_image" for c in self.cameras())}
        found: set[str] = set()

        def visit(name: str, item) -> None:
            if isinstance(item, h5py.Dataset) and name not in used:
                parts = name.split("/")
                found.add(name if parts[0] == "obs" else parts[0])

        group.visititems(visit)
        return sorted(found) + [a for a in ("model_file",) if a in group.attrs]


def _column(group: h5py.Group, name: str, length: int) -> np.ndarray:
    return group[name][:] if name in group else np.zeros(length)


def _metadata(group: h5py.Group) -> dict:
    """The attributes as plain values; those JSON alone can hold stand in one of them."""
    values = {}
    for key, value in group.attrs.items():
        if key in ("model_file", "num_samples", "metadata_json"):
            continue
        values[key] = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
    with contextlib.suppress(ValueError, TypeError):
        values |= json.loads(group.attrs.get("metadata_json", "{}"))
    return values
