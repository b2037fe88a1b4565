"""The dataset interface and the registry of readers."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.episodes.estimates import ESTIMATE
from vla_inference.episodes.interventions import INTERVENTION, interventions
from vla_inference.episodes.language import COLUMNS
from vla_inference.errors import DataError
from vla_inference.inputs.history import stride_of
from vla_inference.policies.action_specs import spec_to_json
from vla_inference.types import ActionSpec, Episode
from vla_training.datasets.bag.files.paths import holds_bags

# What episodes may have and need not: who acted, estimates, and language annotations.
CARRIED = frozenset({INTERVENTION, ESTIMATE, *COLUMNS})


def name_of(path: Path) -> str:
    """The name of a dataset that does not say its own."""
    return path.stem if path.is_file() else path.resolve().name


class EpisodeSet(ABC, Iterable[Episode]):
    """Episodes by number, all with one action spec. Images stay on disk until a step is read.

    name: by which statistics and conventions know the dataset.
    notes: what was assumed in reading it, for people.
    instruction: takes the place of every step's own sentence, where it is not None.
    """

    name: str
    path: Path
    spec: ActionSpec
    notes: list[str]
    instruction: str | None = None

    def said(self, texts: list[str]) -> list[str]:
        """The instructions of the steps, if they are stored with them."""
        return texts if self.instruction is None else [self.instruction] * len(texts)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Episode: ...

    @abstractmethod
    def actions(self, index: int) -> np.ndarray:
        """float64 [T, D] of an episode, without touching its images."""

    def interventions(self, index: int) -> np.ndarray | None:
        """bool [T], whether a person acted in each step of an episode; None: it does not say."""
        return interventions(self[index])

    @abstractmethod
    def cameras(self) -> list[str]:
        """Names of the cameras; the first is the one for models with a single image."""

    def past_stride(self, interval: float) -> int:
        """Steps between images `interval` s apart; VlaError where steps do not say it."""
        return stride_of(interval, self.spec.dt)

    def where(self, index: int) -> str:
        """An episode's place, for messages and its record."""
        return f"{self.path}, episode {index}"

    def left_out(self) -> list[str]:
        """Names of stored data that no `Episode` carries."""
        return []

    def carried(self) -> frozenset[str]:
        """Which of `CARRIED` some of its episodes have."""
        return frozenset()

    def lacks(self, camera: str | None) -> DataError:
        """The error for a camera that it does not have; None: it has none at all."""
        of = "" if camera is None else f" of camera {camera!r}"
        return DataError(
            f"{self.path} has no images{of}", f"cameras: {', '.join(self.cameras()) or 'none'}"
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    def check_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} episodes, no episode {index}")
        return index % len(self)

    def statistics(self) -> dict:
        """The dataset_statistics.json entry of all its actions (computed once)."""
        if not hasattr(self, "_statistics"):
            self._statistics = action_statistics(
                [self.actions(i) for i in range(len(self))], self.spec, str(self.path)
            )
        return self._statistics


def column_statistics(values: np.ndarray) -> dict[str, list[float]]:
    """Statistics of each column of [N, D]."""
    return {
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "q01": np.quantile(values, 0.01, axis=0).tolist(),
        "q99": np.quantile(values, 0.99, axis=0).tolist(),
    }


def check_finite(actions: np.ndarray, spec: ActionSpec, where: str) -> None:
    """Refuses actions [T, D] with a number that is not finite."""
    if not np.isfinite(actions).all():
        step, column = np.argwhere(~np.isfinite(actions))[0]
        raise DataError(
            f"{where}: action {spec.names[column]!r} of step {step} is not finite", "fix the data"
        )


def action_statistics(episodes: Sequence[np.ndarray], spec: ActionSpec, name: str = "") -> dict:
    """q01/q99 bounds and more of actions [T, D] per episode; the gripper is left as it is."""
    episodes = [e for e in episodes if len(e)]
    if not episodes:
        raise DataError(f"{name or 'the dataset'} has no step", "check how it was made")
    a = np.concatenate(episodes).astype(np.float64)
    check_finite(a, spec, name)
    return {
        "action": {**column_statistics(a), "mask": [d.name != "gripper" for d in spec.dims]},
        "spec": spec_to_json(spec),
        "num_transitions": len(a),
        "num_trajectories": len(episodes),
    }


# -- the readers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetReader:
    """How to recognise a format by its path, and where its reader is.

    target: "module:Class" or "module:function", imported only when it is needed.
    options: names of what it takes beside the path.
    """

    kind: str
    target: str
    recognises: Callable[[Path], bool]
    options: tuple[str, ...] = ()

    def open(self, path: Path, options: dict[str, Any]) -> EpisodeSet:
        for name in options:
            if name not in self.options:
                raise DataError(
                    f"a dataset of type {self.kind} takes no {name}",
                    f"it takes {', '.join(self.options) or 'nothing but a path'}",
                )
        module, cls = self.target.split(":")
        return getattr(importlib.import_module(module), cls)(path, **options)


def _is_rlds(path: Path) -> bool:
    depths = ("features.json", "*/features.json", "*/*/features.json")
    return path.is_dir() and any(next(path.glob(d), None) is not None for d in depths)


def _is_hdf5(path: Path) -> bool:
    if path.is_dir():
        return any(next(path.glob(f"**/*{s}"), None) for s in (".hdf5", ".h5"))
    return path.suffix in (".hdf5", ".h5")


def _is_lerobot(path: Path) -> bool:
    return (path / "meta" / "info.json").is_file()


def _is_bag(path: Path) -> bool:
    return holds_bags(path)


READERS = {
    r.kind: r
    for r in (
        DatasetReader(
            "rlds",
            "vla_training.datasets.rlds.reader:RldsEpisodes",
            _is_rlds,
            ("split", "conventions"),
        ),
        DatasetReader(
            "hdf5",
            "vla_training.datasets.hdf5.reader:open_hdf5",
            _is_hdf5,
            ("action_convention", "upside_down", "mirrored", "control_freq"),
        ),
        DatasetReader(
            "lerobot",
            "vla_training.datasets.lerobot.reader:LerobotSet",
            _is_lerobot,
            ("tolerance", "conventions"),
        ),
        DatasetReader(
            "bag",
            "vla_training.datasets.bag.reader:BagSet",
            _is_bag,
            (
                "image_topic",
                "action_topic",
                "instruction_topic",
                "state_topic",
                "gripper_topic",
                "tolerance",
                "episode_gap",
                "frame",
                "step_length",
                "gripper_range",
                "robot_model",
                "robot_tip",
                "gripper_joint",
                "state_joints",
            ),
        ),
    )
}


def kind_of(path: Path, given: str | None = None) -> str:
    """The name of the reader of a dataset, guessed from its path if it is not given."""
    known = ", ".join(READERS)
    if given is not None and given not in READERS:
        raise DataError(f"unknown dataset type {given!r}", f"known: {known}")
    if not path.exists():
        raise DataError(f"there is no dataset at {path}", "check the path")
    kind = given or next((k for k, r in READERS.items() if r.recognises(path)), None)
    if kind is None:
        raise DataError(
            f"{path} is not a dataset of a known type ({known})",
            "an RLDS folder contains features.json and dataset_info.json, HDF5 files end in "
            ".hdf5, a "
            "LeRobot folder contains meta/info.json, a bag metadata.yaml, .mcap, .db3 or .bag",
        )
    return kind


def open_dataset(
    path: str | os.PathLike,
    kind: str | None = None,
    instruction: str | None = None,
    **options: Any,
) -> EpisodeSet:
    """Open a dataset of any format.

    kind: name of a reader (`READERS`); guessed from the path if left out.
    instruction: takes the place of every step's own sentence.
    options: what that reader takes ("split", "conventions" for rlds); None counts as left out.
    Raises DataError.
    """
    path = Path(path).expanduser()
    kind = kind_of(path, kind)
    if instruction is not None and not instruction.strip():
        raise DataError("the instruction is empty", "give a sentence")
    data = READERS[kind].open(path, {k: v for k, v in options.items() if v is not None})
    data.instruction = instruction
    return data
