"""Reads RLDS datasets as TFDS stores them (tfrecord), without TensorFlow.

A folder NAME/VERSION holds features.json, dataset_info.json and the shards; an episode is one
tf.train.Example whose features are flattened ("steps/observation/image") and hold all T steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.episodes.estimates import ESTIMATE, read_estimates
from vla_inference.episodes.interventions import INTERVENTION, read_interventions
from vla_inference.episodes.language import COLUMNS
from vla_inference.errors import DataError
from vla_inference.types import Episode, make_steps
from vla_training.datasets.action_form import SPEC_FILE, read_spec
from vla_training.datasets.base import EpisodeSet, check_finite
from vla_training.datasets.images import LazyImages
from vla_training.datasets.rlds.features import Feature, read_features
from vla_training.datasets.rlds.folder import (
    COPY_AGAIN,
    TEMPLATE,
    RecordShards,
    find_version,
    read_json,
    read_splits,
)
from vla_training.datasets.rlds.transforms import (
    CONVENTIONS,
    Conventions,
    find_conventions,
    get_conventions,
    unknown_conventions,
)

__all__ = ["METADATA", "OBSERVATION", "TEMPLATE", "RldsEpisodes", "find_version"]
OBSERVATION = "steps/observation/"
GRIPPER = "1 open, 0 closed"
READ = ("reward", "is_first", "is_last", "is_terminal")
SENTENCES = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
    "natural_language_instruction",
    "observation/instruction",
)
METADATA = "metadata_json"  # ours: what an episode's metadata holds beside texts


class RldsEpisodes(EpisodeSet):
    """The episodes of one split.

    path: NAME/VERSION, NAME (the newest version is taken), or a folder that holds one NAME.
    split: "train" where it is left out and there is one.
    conventions: name of an entry of `transforms.CONVENTIONS`; goes by the dataset's name if left
        out, and what is unknown is read as it is stored, with a note.
    """

    def __init__(
        self, path: str | os.PathLike, split: str | None = None, conventions: str | None = None
    ):
        self.path = find_version(Path(path))
        info = read_json(self.path / "dataset_info.json")
        self.features, self.not_read = read_features(self.path / "features.json")
        self.name = str(info.get("name") or self.path.parent.name)
        self.splits = read_splits(self.path, info)
        self.split = self._choose(split)
        self._shards = RecordShards(self.splits[self.split])
        self.notes: list[str] = []
        self.conventions = self._conventions(conventions)
        self.spec = self.conventions.spec
        if self.conventions.note and not (self.path / SPEC_FILE).is_file():
            self.notes.append(self.conventions.note)
        self._check_features()
        self._note_what_is_missing()

    def _note_what_is_missing(self) -> None:
        if not self.cameras():
            self.notes.append(f"{self.path} has no images")
        if not self._sentences():
            named = [n.removeprefix("steps/") for n in self.features if "language" in n]
            told = f", only {', '.join(named)}" if named else ""
            self.notes.append(f"{self.path} has no sentences{told}: give one with --instruction")

    # -- what there is ------------------------------------------------------------------------

    def _choose(self, split: str | None) -> str:
        names = list(self.splits)
        if split is None:
            split = "train" if "train" in names or len(names) != 1 else names[0]
        if split not in names:
            raise DataError(
                f"{self.path} has no split {split!r}", f"splits: {', '.join(names) or 'none'}"
            )
        return split

    def _conventions(self, name: str | None) -> Conventions:
        found = find_conventions(self.name) if name is None else get_conventions(name)
        given = self.path / SPEC_FILE
        if given.is_file():
            if name is None:  # it tells of the actions as they are stored
                found = get_conventions("rlds_dataset_builder")
            return replace(found, spec=read_spec(given), known=True)
        stored = all(f"steps/{a}" in self.features for a in found.actions)
        if name is None and found.known and not stored and "steps/action" in self.features:
            found = unknown_conventions()  # that name, in another form
        if not found.known and "steps/action" in self.features:
            self.notes.append(
                f"no conventions are known for {self.name!r}: actions are taken as stored, as "
                f"x y z (m), fixed-axis angles (rad) in the base frame and gripper 1 open, "
                f"{found.spec.dt:g} s per step"
            )
        return found

    def _check_features(self) -> None:
        where = self.path / "features.json"
        for name in (*self.conventions.actions, *self.conventions.needs):
            feature = self.features.get(f"steps/{name}")
            if feature is None and name == "action" and self._parts():
                raise DataError(
                    f"{where}: 'steps/action' is a dictionary of {', '.join(self._parts())}, and "
                    f"no conventions are known for {self.name!r}",
                    f"name those that join it: --conventions {' or '.join(self._fitting())}"
                    if self._fitting()
                    else "convert its actions to one vector",
                )
            if feature is None or feature.kind != "tensor" or len(feature.shape) > 1:
                kind = "is of a kind that is not read" if f"steps/{name}" in self.not_read else ""
                kind = kind or (f"is not a vector ({feature.kind})" if feature else "is missing")
                raise DataError(
                    f"{where} has no vector 'steps/{name}': it {kind}",
                    "name other conventions, or convert the dataset",
                )
        if self.conventions.actions != ("action",):
            return
        size = self.features["steps/action"].size
        if size != len(self.spec):
            raise DataError(
                f"{where}: 'steps/action' has {size} numbers, {self.conventions.name} says "
                f"{len(self.spec)} ({', '.join(self.spec.names)})",
                "convert its actions to an end-effector delta and gripper",
            )

    def _parts(self) -> list[str]:
        """The keys of the action if it is a dictionary."""
        names = [*self.features, *self.not_read]
        return [n.removeprefix("steps/action/") for n in names if n.startswith("steps/action/")]

    def _fitting(self) -> list[str]:
        """Conventions for which all arrays exist."""
        return [
            c.name
            for c in CONVENTIONS.values()
            if all(f"steps/{n}" in self.features for n in (*c.actions, *c.needs))
        ]

    def _sentences(self) -> list[str]:
        names = [f"steps/{n}" for n in SENTENCES]
        return [n for n in names if n in self.features and self.features[n].kind == "text"]

    def cameras(self) -> list[str]:
        names = [
            k.removeprefix(OBSERVATION)
            for k, f in self.features.items()
            if f.is_image and k.startswith(OBSERVATION)
        ]
        first = [n for n in self.conventions.primary if n in names]
        # Datasets written here keep them in order.
        others = names if (self.path / SPEC_FILE).is_file() else sorted(names)
        return first + [n for n in others if n not in first]

    def left_out(self) -> list[str]:
        used = {f"steps/{n}" for n in (*READ, *self.conventions.actions)}
        used |= {OBSERVATION + c for c in self.cameras()} | set(self._sentences())
        used |= {OBSERVATION + "state"} if self._has_state() else set()
        used |= {f"steps/{name}" for name in self.carried()}
        found = [
            n.removeprefix("steps/")
            for n in self.features
            if n not in used and not n.startswith("episode_metadata/")
        ]
        return found + [n.removeprefix("steps/") for n in self.not_read]

    def __len__(self) -> int:
        return len(self._shards)

    # -- episodes as stored -------------------------------------------------------------------

    def _record(self, index: int) -> tuple[dict, str]:
        return self._shards.record(self.check_index(index))

    def raw(self, index: int) -> dict[str, np.ndarray | list[bytes]]:
        """All features of an episode as stored, before any transform.

        "steps/..." tensors are [T, ...] in their own dtype; images and texts are T bytes
        objects; the others ("episode_metadata/...") are single values.
        """
        record, where = self._record(index)
        length = self._length(record, where)
        return {
            name: self._value(record, name, where, length)
            if name.startswith("steps/")
            else self._value(record, name, where, 1)[0]
            for name in self.features
        }

    def _length(self, record: Mapping, where: str) -> int:
        name = f"steps/{self.conventions.actions[0]}"
        feature = self.features[name]
        size = 1 if feature.encoding else feature.size
        count = len(self._stored(record, name, where))
        if count % size:
            raise DataError(
                f"{where}: {name!r} has {count} numbers, no multiple of {size}", COPY_AGAIN
            )
        return count // size

    def _stored(self, record: Mapping, name: str, where: str) -> Any:
        if name not in record:
            raise DataError(f"{where} has no feature {name!r}, features.json does", COPY_AGAIN)
        return record[name]

    def _value(self, record: Mapping, name: str, where: str, length: int) -> Any:
        feature: Feature = self.features[name]
        stored = self._stored(record, name, where)
        numbers = feature.kind == "tensor" and not feature.encoding
        wanted = length * feature.size if numbers else length
        if len(stored) != wanted:
            raise DataError(
                f"{where}: {name!r} has {len(stored)} values, {wanted} are expected for "
                f"{length} steps",
                COPY_AGAIN,
            )
        array = isinstance(stored, np.ndarray)
        if wanted and array != numbers:
            kind = stored.dtype if array else "bytes"
            raise DataError(f"{where}: {name!r} contains {kind}, not {feature.kind}", COPY_AGAIN)
        if feature.encoding:
            try:
                return feature.decode(list(stored))
            except ValueError as error:
                raise DataError(
                    f"{where}: {name!r} is not a {feature.encoding} of {feature.dtype} ({error})",
                    COPY_AGAIN,
                ) from error
        if feature.kind != "tensor":
            return stored
        return np.asarray(stored).astype(feature.dtype).reshape(length, *feature.shape)

    # -- episodes as policies want them -------------------------------------------------------

    def _transformed(self, record: Mapping, where: str) -> tuple[np.ndarray, slice]:
        """Actions float32 [K, D], and which K steps remain."""
        length = self._length(record, where)
        names = (*self.conventions.actions, *self.conventions.needs)
        arrays = {
            name.rpartition("/")[2]: self._value(record, f"steps/{name}", where, length)
            for name in names
        }
        actions, kept = self.conventions.transform(arrays)
        actions = np.asarray(actions, np.float32)
        self._check_actions(actions, where)
        return actions, kept

    def _check_actions(self, actions: np.ndarray, where: str) -> None:
        check_finite(actions, self.spec, where)
        if self.spec.dims[-1].polarity != GRIPPER:
            return
        gripper = actions[:, -1]
        if len(gripper) and not (gripper.min() >= -0.01 and gripper.max() <= 1.01):
            raise DataError(
                f"{where}: the gripper goes from {gripper.min():g} to {gripper.max():g}, "
                f"{self.conventions.name} has 1 open and 0 closed",
                "name the conventions it was made with, such as libero (-1 open, 1 closed)",
            )

    def actions(self, index: int) -> np.ndarray:
        return self._transformed(*self._record(index))[0].astype(np.float64)

    def __getitem__(self, index: int) -> Episode:
        record, where = self._record(index)
        length = self._length(record, where)
        actions, kept = self._transformed(record, where)

        def column(name: str, default: Any) -> Any:
            if name not in self.features:
                return [default] * length
            return self._value(record, name, where, length)

        cameras = self.cameras()
        images = {c: column(OBSERVATION + c, b"") for c in cameras}
        seen: dict = {}
        texts = self.said(self._texts(record, where, length))
        state = self._state(record, where, length)
        rewards, terminal = column("steps/reward", 0.0), column("steps/is_terminal", False)
        steps = make_steps(
            [
                LazyImages({c: images[c][t] for c in cameras}, f"{where}, step {t}", seen)
                for t in range(length)[kept]
            ],
            texts[kept],
            None if state is None else state[kept],
            actions,
            rewards[kept],
            terminal[kept],
        )
        metadata = {
            name.removeprefix("episode_metadata/"): _plain(
                self._value(record, name, where, 1)[0], where
            )
            for name, feature in self.features.items()
            if name.startswith("episode_metadata/") and feature.kind != "image"
        }
        if METADATA in metadata:
            metadata |= _read_json(metadata.pop(METADATA), METADATA, dict, where)
        for name in COLUMNS:
            if rows := _read_json(metadata.pop(name, "[]"), name, list, where):
                metadata[name] = rows
        columns = {}
        if INTERVENTION in self.carried():
            acted = column(f"steps/{INTERVENTION}", False)
            columns[INTERVENTION] = read_interventions(acted, length, where)[kept]
        if ESTIMATE in self.carried():
            told = np.stack(column(f"steps/{ESTIMATE}", 0.0))
            columns[ESTIMATE] = read_estimates(told, length, where)[kept]
        return Episode(steps, self.spec, {"source": where, **metadata}, columns)

    def carried(self) -> frozenset[str]:
        told = self.features.get(f"steps/{INTERVENTION}")
        acted = told is not None and told.kind == "tensor" and told.size == 1
        rows = {name for name in COLUMNS if f"episode_metadata/{name}" in self.features}
        told = self.features.get(f"steps/{ESTIMATE}")
        rows |= {ESTIMATE} if told is not None and told.size == 2 else set()
        return frozenset(rows | ({INTERVENTION} if acted else set()))

    def _texts(self, record: Mapping, where: str, length: int) -> list[str]:
        """The instructions of the first feature that has some."""
        for name in self._sentences():
            texts = [_text(t, where) for t in self._value(record, name, where, length)]
            if any(t.strip() for t in texts):
                return texts
        return [""] * length

    def _state(self, record: Mapping, where: str, length: int) -> np.ndarray | None:
        if not self._has_state():
            return None
        return self._value(record, OBSERVATION + "state", where, length).astype(np.float32)

    def _has_state(self) -> bool:
        feature = self.features.get(OBSERVATION + "state")
        return feature is not None and feature.kind == "tensor" and len(feature.shape) == 1


def _read_json(text: str, name: str, kind: type, where: str) -> Any:
    try:
        return kind(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: {name} is not a JSON {kind.__name__} ({error})", COPY_AGAIN
        ) from error


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: a text is not UTF-8 ({error})", COPY_AGAIN) from error


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, bytes):
        return _text(value, where)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
