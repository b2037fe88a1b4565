"""robomimic / MimicGen HDF5 files as a data set."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import numpy as np

from vla_inference.errors import DataError
from vla_inference.types import Episode
from vla_sim_bridge.hdf5 import CONVENTION, Hdf5Episodes
from vla_training.datasets.base import EpisodeSet

CHECKED = ("scale", "gripper", "control_freq")


class Hdf5Set(EpisodeSet):
    """The episodes of an HDF5 file, or of a folder of such files."""

    def __init__(self, path: str | os.PathLike):
        self.episodes = Hdf5Episodes(path)
        self.path, self.spec = self.episodes.path, self.episodes.spec
        self.name = self.path.stem if self.path.is_file() else self.path.resolve().name
        self.notes: list[str] = []
        checked: set[str] = set()
        for i in range(len(self.episodes)):
            file = self.episodes.group(i).file
            if file.filename not in checked:
                checked.add(file.filename)
                self._check(file)

    def _check(self, file) -> None:
        """Refuse a file whose actions mean something else than we take them for."""
        text = file["data"].attrs.get("action_convention")
        if text is None:
            self.notes.append(
                f"{file.filename} states no action_convention: taken for robosuite's OSC_POSE "
                "(0.05 m, 0.5 rad, gripper -1 open) at 20 Hz"
            )
            return
        where = f"{file.filename}: data.attrs['action_convention']"
        try:
            given = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise DataError(f"{where} is no JSON object ({error})", "write it anew") from error
        for key in CHECKED:
            if key in given and given[key] != CONVENTION[key]:
                raise DataError(
                    f"{where} has {key} {given[key]!r}, we read {CONVENTION[key]!r}",
                    "convert the actions first",
                )

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        index = self._checked(index)
        with self._readable(index):
            return self.episodes[index]

    def actions(self, index: int) -> np.ndarray:
        index = self._checked(index)
        with self._readable(index):
            return self.episodes.actions(index)

    def _checked(self, index: int) -> int:
        """`index`, if all that belongs to a step is there for each action."""
        index = self.check_index(index)
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
        for key in ("instructions", "rewards", *(f"obs/{n}" for n in group.get("obs", ()))):
            if key in group and len(group[key]) != len(actions):
                raise DataError(
                    f"{where}/{key} has {len(group[key])} entries for {len(actions)} actions",
                    "generate or copy it again",
                )
        return index

    @contextlib.contextmanager
    def _readable(self, index: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            group = self.episodes.group(index)
            raise DataError(
                f"{group.file.filename}: {group.name} cannot be read ({error})",
                "the file is damaged: generate or copy it again",
            ) from error

    def cameras(self) -> list[str]:
        """robosuite's third-person view first: it is what our models are trained on."""
        return sorted(self.episodes.cameras(), key=lambda name: (name != "agentview", name))
