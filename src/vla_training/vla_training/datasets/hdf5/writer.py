"""Writes robomimic's HDF5 layout, as `vla generate` does.

Motion that is in m and rad is stored in robosuite's [-1, 1] with its gripper, -1 open; whatever
else it is stands as it came. `data.attrs["action_convention"]` says which.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_inference.episodes.hdf5 import (
    CONVENTION,
    compress,
    takeover_columns,
    write_images,
    write_instructions,
)
from vla_inference.episodes.language import COLUMNS
from vla_inference.errors import DataError
from vla_inference.options import option
from vla_inference.policies.action_specs import spec_to_json
from vla_inference.types import ActionSpec, Episode
from vla_training.datasets.action_form import (
    convert_rotation,
    is_eef_delta,
    with_rotation,
)
from vla_training.datasets.hdf5.convention import GRIPPERS, Convention, default_convention
from vla_training.datasets.writers import DataForm, EpisodeWriter

PLAIN = (str, int, float, bool)


@dataclass(frozen=True)
class Hdf5Options:
    compression: str = option("gzip", "of images: gzip or none", choices=("gzip", "none"))


class Hdf5Writer(EpisodeWriter):
    """Writes one file. Images are compressed where they are encoded, one chunk per image."""

    Options = Hdf5Options

    def begin(self) -> None:
        if self.path.suffix not in (".hdf5", ".h5"):
            raise DataError(f"{self.path} does not end in .hdf5", "call the file NAME.hdf5")
        self.spec, self.convention = stored_form(self.form.spec)
        if self.spec != self.form.spec:
            self.notes.append("rotations are stored as rotation vectors, as robosuite takes them")
        self.notes.append("simulator states are not part of an episode: no replay in simulation")
        self._total = self._beyond = 0
        self._task = ""
        self._file: h5py.File | None = None
        self._disk = Disk(self.partial)
        self._file = h5py.File(self._disk, "w")
        self._data = self._file.create_group("data")

    def encoder(self) -> Hdf5Encoder:
        gzip = self.options.compression == "gzip"
        return Hdf5Encoder(self.form, self.spec, self.convention, gzip)

    def add(self, encoded: dict) -> None:
        try:
            self._add(encoded)
            self._data.file.flush()
        finally:
            self._disk.check()

    def _add(self, encoded: dict) -> None:
        group = self._data.create_group(f"demo_{self.count}")
        for key, value in encoded["columns"].items():
            group.create_dataset(key, data=value)
        write_instructions(group, encoded["instructions"])
        length = len(encoded["instructions"])
        for camera, chunks in encoded["images"].items():
            shape = (*self.form.cameras[camera], 3)
            write_images(group, f"{camera}_image", chunks, length, shape, self.options.compression)
        others = {}
        for key, value in encoded["metadata"].items():
            if key in COLUMNS:
                continue
            if isinstance(value, PLAIN) and key not in ("num_samples", "model_file"):
                group.attrs[key] = value
            else:
                others[key] = value
        if others:
            group.attrs["metadata_json"] = json.dumps(others)
        group.attrs["num_samples"] = length
        self._total += length
        self._beyond += encoded["beyond"]
        self._task = self._task or str(encoded["metadata"].get("task", ""))

    def finish(self) -> None:
        if self._beyond:
            self.notes.append(
                f"{self._beyond} of {self._total} actions go beyond robosuite's [-1, 1]; they "
                "stand as they are"
            )
        data, spec = self._data, self.spec
        data.attrs["total"] = self._total
        rate = 1 / spec.dt
        data.attrs["env_args"] = json.dumps(
            {
                "env_name": self._task or self.form.name,
                "env_type": 1,
                "env_kwargs": {"control_freq": round(1 / self.form.spacing, 6)},
            }
        )
        stated = dict(CONVENTION)
        if self.convention != default_convention():
            gripper = next(k for k, v in GRIPPERS.items() if v == self.convention.gripper)
            stated |= {
                "delta": "see spec",
                "scale": list(self.convention.scale),
                "gripper": gripper,
                "control_freq": rate,
                "spec": spec_to_json(spec),
            }
        data.attrs["action_convention"] = json.dumps(stated)

    def release(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
            self._disk.close()
            self._disk.check()


class Disk(io.RawIOBase):
    """The file under HDF5, which otherwise retries and prints errors on a full disk.

    After a first error, which `check` raises, all that comes is kept in memory: little, for HDF5
    only tidies up from there on, and must find what it wrote.
    """

    def __init__(self, path: Path):
        self._file = path.open("w+b", buffering=0)
        self._at = self._end = 0
        self._error: OSError | None = None
        self._later: list[tuple[int, bytes]] = []

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        view, at = memoryview(data).cast("B"), self._at
        try:
            done = 0
            while self._error is None and done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], at + done)
        except OSError as error:
            self._error = error
        if self._error is not None:
            self._later.append((at, bytes(view)))
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def readinto(self, data: Any) -> int:
        view, at = memoryview(data).cast("B"), self._at
        size = max(0, min(len(view), self._end - at))
        found = bytearray(os.pread(self._file.fileno(), size, at).ljust(size, b"\0"))
        for start, more in self._later:
            first, last = max(start, at), min(start + len(more), at + size)
            if first < last:
                found[first - at : last - at] = more[first - start : last - start]
        view[:size] = found
        self._at += size
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self._end = self._at if size is None else size
        try:
            if self._error is None:
                self._file.truncate(self._end)
        except OSError as error:
            self._error = error
        return self._end

    def close(self) -> None:
        self._file.close()
        super().close()


def stored_form(spec: ActionSpec) -> tuple[ActionSpec, Convention]:
    """The spec that a file has for actions of `spec`, and the form of its numbers."""
    usual = default_convention()
    units = {d.unit for d in spec.dims[:3]}, {d.unit for d in spec.dims[3:6]}
    if not is_eef_delta(spec) or units != ({"m"}, {"rad"}):
        scale = (1.0,) * (len(spec) - 1)
        return spec, Convention(spec, scale, GRIPPERS["1 open, 0 closed"])
    spec = with_rotation(spec, "rotvec")
    return spec, Convention(spec, usual.scale, usual.gripper)


def robosuite_actions(motion: np.ndarray, convention: Convention) -> np.ndarray:
    """float64 [T, D] as a file holds them, where a full action is exactly 1."""
    actions = convention.write(motion)
    # 0.05 m is a full action; as float32 it is a hair more
    full = actions.clip(-1, 1)
    same = convention.read(full).astype(np.float32) == motion.astype(np.float32)
    return np.where(same, full, actions)


@dataclass(frozen=True)
class Hdf5Encoder:
    """Encodes an episode to arrays by key, and images to finished chunks."""

    form: DataForm
    spec: ActionSpec
    convention: Convention
    compress: bool

    def __call__(self, episode: Episode) -> dict:
        steps = episode.steps
        motion = convert_rotation(episode.actions, self.form.spec, self.spec)
        actions = robosuite_actions(motion, self.convention)
        columns = {
            "actions": actions,
            "rewards": episode.rewards,
            "dones": episode.terminal.astype(np.int64),
        }
        columns |= takeover_columns(episode)
        if self.form.state:
            columns["obs/robot0_state"] = episode.states
        images = {
            camera: [self._chunk(s.observation.images[camera]) for s in steps]
            for camera in self.form.cameras
        }
        scaled = set(self.convention.scale) != {1.0}
        return {
            "columns": columns,
            "instructions": episode.instructions,
            "images": images,
            "metadata": episode.metadata,
            "beyond": int((np.abs(actions) > 1 + 1e-6).any(1).sum()) if scaled else 0,
        }

    def _chunk(self, image: np.ndarray) -> bytes | bytearray:
        return compress(image) if self.compress else np.ascontiguousarray(image).tobytes()
