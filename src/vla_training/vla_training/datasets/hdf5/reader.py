"""Reads HDF5 datasets in robomimic's layout, from any writer, and in ALOHA's."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_inference.episodes.estimates import ESTIMATE, read_estimates
from vla_inference.episodes.hdf5 import STATES, Demonstrations
from vla_inference.episodes.interventions import INTERVENTION, read_interventions
from vla_inference.episodes.language import COLUMNS, PERSISTENT, SUBTASK
from vla_inference.errors import DataError
from vla_inference.types import Episode, make_steps
from vla_training.datasets.action_form import absolute_to_delta
from vla_training.datasets.base import CARRIED, EpisodeSet, name_of
from vla_training.datasets.hdf5 import layout as layout
from vla_training.datasets.hdf5.aloha import AlohaSet, is_aloha
from vla_training.datasets.hdf5.convention import (
    STATE_IT,
    Convention,
    default_convention,
    read_convention,
    rover_convention,
)
from vla_training.datasets.hdf5.images import Hdf5StepImages, ImageColumn, ImageColumnSet, readable

READ = ("actions", "instructions", "rewards", "dones", *COLUMNS)
FAR = 0.3  # m; a target that lies farther from the arm is in other axes than the arm's pose
HAND_TO_SITE = [0.0, 0.0, -90.0]  # degrees: Panda's grip site seen from its hand's body
PANDAS = ("Panda", "PandaMobile", "PandaOmron", "MountedPanda", "OnTheGroundPanda")


def open_hdf5(path: str | os.PathLike, **options: Any) -> EpisodeSet:
    """The episodes of a file or folder in any supported layout."""
    if not is_aloha(Path(path)):
        return Hdf5Set(path, **options)
    for name in set(options) - set(AlohaSet.options):
        raise DataError(f"{path} is an ALOHA recording, which takes no {name}", f"drop {name}")
    return AlohaSet(path, **options)


class Hdf5Set(ImageColumnSet):
    """The episodes of an HDF5 file in robomimic's layout, or of a folder of such files.

    Actions come out in SI units whatever their scale and gripper convention, as far as the file
    states them in `data.attrs["action_convention"]` or in env_args; poses become deltas where
    `obs` has the pose of the arm. Of LIBERO's published files, an action goes with the observation
    before it, which is one row up.
    action_convention: takes the place of what the files state (`read_convention`).
    upside_down: whether images have the bottom row first; None goes by the file.
    mirrored: whether to mirror images left to right, as LIBERO's published models want theirs.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        action_convention: str | Mapping | None = None,
        upside_down: bool | None = None,
        mirrored: bool = False,
    ):
        self.episodes = Demonstrations(path)
        self.path = self.episodes.path
        self.name = name_of(self.path)
        self.notes: list[str] = []
        self._given, self._upside_down = action_convention, upside_down
        self._mirrored = bool(mirrored)
        self._conventions: dict[str, Convention] = {}
        self._flipped: dict[str, bool] = {}
        self._late: dict[str, bool] = {}  # whether rows are of the observations after actions
        for i in range(len(self.episodes)):
            with readable(self.episodes.where(i)):
                name = self.episodes.filename(i)
                if name not in self._conventions:
                    self._open(name, self.episodes.group(i))
        specs = {c.spec: name for name, c in self._conventions.items()}
        if len(specs) > 1:
            raise DataError(
                f"{' and '.join(list(specs.values())[:2])} hold actions of different meaning",
                "read them one by one, or convert one",
            )
        self.spec = next(iter(specs))
        with readable(self.episodes.where(0)):
            self._note_what_is_missing(self.episodes.group(0))

    def _open(self, name: str, demo: h5py.Group) -> None:
        """Information from the first demonstration of a file that applies to all of them."""
        found, notes = read_convention(demo.file["data"], name, self._given)
        self._conventions[name] = found
        if found.absolute:
            notes.append(f"{name} contains target poses: read as deltas")
        flipped, note = self._upside_down, ""
        if flipped is None:
            flipped, note = layout.find_upside_down(demo.file["data"], demo)
        self._flipped[name] = bool(flipped)
        self._late[name] = layout.observed_late(demo)
        if self._late[name]:
            notes.append(
                f"{name} has the observations after its actions, as LIBERO's are published: each "
                "action is read with the one before it, the first is left out"
            )
        self.notes += [*notes, *([f"{name}: {note}"] if note else [])]

    def _note_what_is_missing(self, demo: h5py.Group) -> None:
        if not self.cameras():
            self.notes.append(
                f"{self.path} has no images: render them from the simulator's states, as "
                "robomimic's dataset_states_to_obs.py does"
            )
        if not layout.has_instructions(demo.file["data"], demo):
            embedded = ", ".join(layout.find_embeddings(demo))
            self.notes.append(
                f"{self.path} has no sentences"
                + (f", only their embeddings ({embedded})" if embedded else "")
                + ": give one with --instruction"
            )

    @property
    def plain(self) -> bool:
        """Whether all files are in the form that `vla generate` writes."""
        own = set(self._conventions.values()) in ({default_convention()}, {rover_convention()})
        with readable(self.episodes.where(0)):
            told = "instructions" in self.episodes.group(0) and self.instruction is None
        turned = self._mirrored or any(self._flipped.values())
        return own and told and not turned and not any(self._late.values())

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        index = self.check_index(index)
        with readable(self.episodes.where(index)):
            self._check(index)
            group = self.episodes.group(index)
            actions = self._actions(group).astype(np.float32)
            texts = self.instructions(index)
            acted, seen = self._rows(group)
            state = self.episodes.states(index)
            state = None if state is None else state[seen]
            last = np.arange(len(actions)) == len(actions) - 1
            rewards = group["rewards"][acted] if "rewards" in group else np.zeros(len(actions))
            ended = group["dones"][acted] != 0 if "dones" in group else last
            columns = self.columns(index, self.cameras())
            metadata = _metadata(group) | ({"mirrored": True} if self._mirrored else {})
            others = StoredColumns(
                group, {*READ, *self._cameras.values(), *_foreign(group)}, acted, seen
            )
        shown = [Hdf5StepImages(columns, t) for t in range(len(actions))]
        steps = make_steps(shown, texts, state, actions, rewards, ended)
        return Episode(steps, self.spec, metadata, others)

    def _rows(self, group: h5py.Group) -> tuple[slice, slice]:
        """Rows of actions and of observations that are the steps."""
        if not self._late[group.file.filename]:
            return slice(None), slice(None)
        return slice(1, None), slice(len(group["actions"]) - 1)

    # -- actions ------------------------------------------------------------------------------

    def actions(self, index: int) -> np.ndarray:
        index = self.check_index(index)
        with readable(self.episodes.where(index)):
            self._check(index)
            return self._actions(self.episodes.group(index))

    def _actions(self, group: h5py.Group) -> np.ndarray:
        convention = self._conventions[group.file.filename]
        raw = np.asarray(group["actions"][self._rows(group)[0]], np.float64)
        where = f"{group.file.filename}: {group.name}"
        if not convention.absolute:
            _check_limit(raw, convention, where)
            return convention.read(raw)
        poses = _poses(group, convention, where)
        away = np.median(np.linalg.norm(raw[:, :3] - poses[:, :3, 3], axis=1)) if len(raw) else 0
        if away > FAR:
            raise DataError(
                f"{where}: the target poses lie {away:.2f} m from the arm's: they are in other "
                "axes, or no poses",
                STATE_IT,
            )
        gripper = convention.read(raw)[:, -1:]
        return np.concatenate([absolute_to_delta(raw[:, :6], poses), gripper], axis=1)

    def _check(self, index: int) -> None:
        """Checks that everything that belongs to a step exists for each action."""
        group = self.episodes.group(index)
        where = f"{group.file.filename}: {group.name}"
        actions = group.get("actions")
        if actions is None:
            raise DataError(f"{where} has no 'actions'", "generate or copy it again")
        columns = self._conventions[group.file.filename].columns
        if actions.ndim != 2 or actions.shape[1] != columns:
            raise DataError(
                f"{where}/actions has shape {actions.shape}, [T, {columns}] is expected "
                f"({', '.join(self.spec.names)})",
                "convert its actions to an end-effector delta and gripper, or name them in "
                "--read action_convention",
            )
        obs = group.get("obs", {})
        for key in ("rewards", "dones", INTERVENTION, *(f"obs/{n}" for n in obs)):
            data = group.get(key)
            if isinstance(data, h5py.Dataset) and data.ndim and len(data) != len(actions):
                if len(data) == 1 and key.removeprefix("obs/") in layout.SENTENCES:
                    continue
                raise DataError(
                    f"{where}/{key} has {len(data)} entries for {len(actions)} actions",
                    "generate or copy it again",
                )

    # -- images and sentences -----------------------------------------------------------------

    def columns(
        self, index: int, cameras: Sequence[str], shuffled: bool = False
    ) -> dict[str, ImageColumn]:
        with readable(self.episodes.where(index)):
            group = self.episodes.group(index)
            flipped = self._flipped[group.file.filename]
            keys = {c: self._cameras[c] for c in cameras}
            length = len(group["actions"]) - self._late[group.file.filename]
            return {
                c: ImageColumn(group[key], shuffled, flipped, self._mirrored, length)
                for c, key in keys.items()
                if key in group
            }

    def instructions(self, index: int) -> list[str]:
        with readable(self.episodes.where(index)):
            group = self.episodes.group(index)
            length = len(group["actions"])
            found = layout.find_instructions(group.file["data"], group, length)
            acted, _ = self._rows(group)
        return self.said((found or [""] * length)[acted])

    def cameras(self) -> list[str]:
        """First robosuite's third-person view, which our models are trained on."""
        return list(self._cameras)

    @cached_property
    def _cameras(self) -> dict[str, str]:
        with readable(self.episodes.where(0)):
            return layout.find_cameras(self.episodes.group(0))

    def left_out(self) -> list[str]:
        with readable(self.episodes.where(0)):
            return self._left_out(self.episodes.group(0))

    def carried(self) -> frozenset[str]:
        found: set[str] = set()
        for index in range(len(self)):
            with readable(self.episodes.where(index)):
                group = self.episodes.group(index)
                found.update(set(group) - _foreign(group))
        return CARRIED & (found | ({PERSISTENT} if SUBTASK in found else set()))

    def _left_out(self, group: h5py.Group) -> list[str]:
        used = {*READ, INTERVENTION, ESTIMATE, SUBTASK, *layout.SENTENCES, *self._cameras.values()}
        used.update(*STATES)
        used -= _foreign(group)
        found: set[str] = set()

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and name not in used:
                parts = name.split("/")
                found.add(name if parts[0] == "obs" else parts[0])

        group.visititems(visit)
        return sorted(found) + [a for a in ("model_file",) if a in group.attrs]


def _foreign(group: h5py.Group) -> set[str]:
    """The name of the column of estimates, where what bears it is something else."""
    found = group.get(ESTIMATE)
    if found is None or "actions" not in group:
        return set()
    ours = getattr(found, "shape", None) == (len(group["actions"]), 2)
    return set() if ours else {ESTIMATE}


class StoredColumns(Mapping[str, np.ndarray]):
    """What else a demonstration has of each step, read on each access.

    acted, seen: rows that are the steps, in `obs` and elsewhere.
    """

    def __init__(self, group: h5py.Group, used: Set[str], acted: slice, seen: slice):
        self._group, self._acted, self._seen = group, acted, seen
        self._used = used

    @cached_property
    def _names(self) -> list[str]:
        length, found = len(self._group["actions"]), []

        def visit(name: str, item: Any) -> None:
            kept = isinstance(item, h5py.Dataset) and name not in self._used
            if kept and item.shape[:1] == (length,):
                found.append(name)

        self._group.visititems(visit)
        return found

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        rows = self._seen if name.startswith("obs/") else self._acted
        where = f"{self._group.file.filename}: {self._group.name}/{name}"
        with readable(where):
            values = self._group[name][rows]
        read = {INTERVENTION: read_interventions, ESTIMATE: read_estimates}.get(name)
        return values if read is None else read(values, len(values), where)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check_limit(actions: np.ndarray, convention: Convention, where: str) -> None:
    """Refuses deltas beyond the controller's range: they are poses, or scaled differently."""
    motion = np.abs(actions[:, :6])
    if not convention.limit or not len(motion) or not motion.max() > convention.limit + 1e-6:
        return
    step, column = np.argwhere(motion > convention.limit + 1e-6)[0]
    raise DataError(
        f"{where}: action {convention.spec.names[column]!r} of step {step} is "
        f"{actions[step, column]:g}, the controller takes up to {convention.limit:g}: these are "
        "target poses, or deltas of another scale",
        STATE_IT,
    )


def _poses(group: h5py.Group, convention: Convention, where: str) -> np.ndarray:
    """[T, 4, 4] of the grip site, which the controller aims, at the moment of each action."""
    from scipy.spatial.transform import Rotation

    base = convention.in_base and "obs/robot0_base_to_eef_pos" in group
    place = "obs/robot0_base_to_eef_pos" if base else "obs/robot0_eef_pos"
    hand = place.removesuffix("pos") + "quat"
    turn = f"{hand}_site" if f"{hand}_site" in group else hand
    for key in (place, turn):
        if key not in group:
            raise DataError(
                f"{where} contains target poses, and no {key} to tell the motion from",
                "store the arm's pose with them",
            )
    turns = Rotation.from_quat(group[turn][:])
    if turn == hand:  # that of the hand's body
        if convention.robot not in PANDAS:
            raise DataError(
                f"{where} contains target poses of the grip site and {hand} of the hand's body; "
                "how "
                f"they are turned against each other is known for Panda, not for "
                f"{convention.robot or 'a robot that nothing names'}",
                f"store {hand}_site with them, as robosuite 1.5 does",
            )
        turns = turns * Rotation.from_euler("xyz", HAND_TO_SITE, degrees=True)
    poses = np.tile(np.eye(4), (len(turns), 1, 1))
    poses[:, :3, 3] = group[place][:]
    poses[:, :3, :3] = turns.as_matrix()
    return poses


def _metadata(group: h5py.Group) -> dict:
    """The attributes as plain values; one attribute holds those that need JSON."""
    values: dict[str, Any] = {}
    for key, value in group.attrs.items():
        if key in ("model_file", "num_samples", "metadata_json"):
            continue
        values[key] = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
    with contextlib.suppress(ValueError, TypeError):
        values |= json.loads(group.attrs.get("metadata_json", "{}"))
    for name in COLUMNS:
        if name in group:
            values[name] = [json.loads(text) for text in group[name].asstr()[:]]
    return values
