"""Reads ALOHA's HDF5 recordings: a file per episode, joint targets of two arms."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from vla_inference.episodes.interventions import INTERVENTION, read_interventions
from vla_inference.errors import DataError
from vla_inference.policies.action_specs import aloha_spec
from vla_inference.types import Episode, make_steps
from vla_training.datasets.base import name_of
from vla_training.datasets.hdf5 import layout as layout
from vla_training.datasets.hdf5.images import (
    FAULTS,
    Hdf5StepImages,
    ImageColumn,
    ImageColumnSet,
    is_encoded,
    readable,
)

ACTION, STATE, IMAGES = "action", "observations/qpos", "observations/images"
RATE = 50.0  # Hz; ALOHA's own recording rate, which its files do not state


def is_aloha(path: Path) -> bool:
    """Whether a file, or the first one of a folder, has the layout of ALOHA's recordings."""
    file = next(iter(_files(path)), None)
    if file is None:
        return False
    try:
        with h5py.File(file, "r") as found:
            return ACTION in found and STATE in found
    except FAULTS:  # the reader of the usual layout says what is wrong
        return False


def _files(path: Path) -> list[Path]:
    """Sorted by number: episode_2 before episode_10."""
    if path.is_file():
        return [path]
    found = [p for p in path.glob("**/*") if p.suffix in (".hdf5", ".h5")]
    return sorted(found, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)] or [0])


class AlohaSet(ImageColumnSet):
    """The episodes of one recording or of a folder of them.

    The 14 numbers of an action are joint targets (rad, grippers 1 open) of the left and the right
    arm, held for a step. Velocities and efforts are left out.
    control_freq: Hz of the recording, which the files do not state; 50 is ALOHA's own.
    """

    options = ("control_freq",)

    def __init__(self, path: str | os.PathLike, control_freq: float | None = None):
        self.path = Path(path)
        self.name = name_of(self.path)
        self._files = _files(self.path)
        rate = RATE if control_freq is None else float(control_freq)
        if not 0 < rate < 1e4:
            raise DataError(f"control_freq is {control_freq}", "give the recording's rate in Hz")
        self.spec = aloha_spec(1 / rate)
        self.notes: list[str] = []
        if control_freq is None:
            self.notes.append(
                f"ALOHA's files state no rate: {RATE:g} Hz is assumed (else give --read "
                "control_freq=HZ)"
            )
        self._group = lru_cache(4)(self._open)
        if not any(self.instructions(0)):
            self.notes.append(f"{self.path} has no sentences: give one with --instruction")

    def _open(self, index: int) -> h5py.File:
        path = self._files[index]
        with readable(str(path)):
            file = h5py.File(path, "r")
            if ACTION not in file or STATE not in file:
                raise DataError(f"{path} is not an ALOHA recording, the others are", "take it out")
            shape = file[ACTION].shape
        if len(shape) != 2 or shape[1] != len(self.spec):
            raise DataError(
                f"{path}: {ACTION} has shape {shape}, [T, {len(self.spec)}] is expected (7 "
                "joints of "
                "each arm)",
                "record both arms",
            )
        for name in (STATE, *(f"{IMAGES}/{c}" for c in file.get(IMAGES, {}))):
            if len(file[name]) != shape[0]:
                raise DataError(
                    f"{path}: {name} has {len(file[name])} entries for {shape[0]} actions",
                    "copy it again",
                )
        return file

    def __len__(self) -> int:
        return len(self._files)

    def actions(self, index: int) -> np.ndarray:
        index = self.check_index(index)
        with readable(str(self._files[index])):
            return np.asarray(self._group(index)[ACTION][:], np.float64)

    def cameras(self) -> list[str]:
        """First the one above the table."""
        found = self._group(0).get(IMAGES, {})
        names = [n for n in found if found[n].ndim == 4 or is_encoded(found[n])]
        return sorted(names, key=lambda name: (name != "cam_high", "wrist" in name, name))

    def columns(
        self, index: int, cameras: Sequence[str], shuffled: bool = False
    ) -> dict[str, ImageColumn]:
        with readable(str(self._files[index])):
            images = self._group(index).get(IMAGES, {})
            return {c: ImageColumn(images[c], shuffled) for c in cameras if c in images}

    def instructions(self, index: int) -> list[str]:
        file = self._group(index)
        length = len(file[ACTION])
        return self.said(layout.find_instructions(file, file, length) or [""] * length)

    def left_out(self) -> list[str]:
        used = {ACTION, STATE, INTERVENTION, *layout.SENTENCES}
        used |= {f"{IMAGES}/{c}" for c in self.cameras()}
        found: list[str] = []

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and name not in used:
                found.append(name)

        self._group(0).visititems(visit)
        return sorted(found)

    def __getitem__(self, index: int) -> Episode:
        index = self.check_index(index)
        actions = self.actions(index).astype(np.float32)
        columns, texts = self.columns(index, self.cameras()), self.instructions(index)
        with readable(str(self._files[index])):
            file = self._group(index)
            state, kept = np.asarray(file[STATE][:], np.float32), {}
            if INTERVENTION in file:
                acted, where = file[INTERVENTION][:], str(self._files[index])
                kept[INTERVENTION] = read_interventions(acted, len(actions), where)
        last = np.arange(len(actions)) == len(actions) - 1
        shown = [Hdf5StepImages(columns, t) for t in range(len(actions))]
        steps = make_steps(shown, texts, state, actions, np.zeros(len(actions)), last)
        return Episode(steps, self.spec, {"source": str(self._files[index])}, kept)

    def carried(self) -> frozenset[str]:
        told = any(INTERVENTION in self._group(i) for i in range(len(self)))
        return frozenset({INTERVENTION} if told else ())
