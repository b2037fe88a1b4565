"""Training frames as flat arrays: all steps of HDF5 datasets, and reset images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.errors import DataError
from vla_inference.types import ActionSpec, eef_delta_spec
from vla_training.datasets.base import action_statistics as dataset_statistics
from vla_training.datasets.base import column_statistics
from vla_training.datasets.hdf5.reader import Hdf5Set
from vla_training.loader.sample_weights import SampleWeights, balanced, chunk_limits
from vla_training.small_model.auxiliary_targets import (
    SIZE,
    other_answers,
    other_order,
    other_scene_of,
    recorded_scene,
    scene_of,
    wordings,
)
from vla_training.small_model.reset_images import ResetImages, is_reset_images
from vla_training.small_model.thoughts import thoughts_of

AS_USUAL = SampleWeights()
PERIOD = 1.0 / CONTROL_FREQ  # s
WORDINGS = 64  # sentences drawn for a scene
BLOCK = 256  # reset images read at a time


@dataclass
class Other:
    """The targets of frames for instructions with the opposite order.

    text [N]: as in `TrainingFrames`, -1 where there is no other order. scene [N, SIZE]: NaN there.
    start, end, thought [N]: as in `TrainingFrames`; start = end where nobody knows what to do.
    """

    text: torch.Tensor
    scene: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    thought: torch.Tensor | None = None


@dataclass
class TrainingFrames:
    """All steps of all episodes in order, and reset images (`reset_images.py`).

    images: uint8 [N, H, W, 3], or [N, cameras, H, W, 3]. actions: float32 [M, 7], SI.
    text: row of `wordings` that fits each frame [N].
    end: index in `actions` one past the last of the frame's episode [N].
    episode: number of its episode [N]; each reset image is its own.
    sentences: all there are.
    scene: what the simulator knew [N, SIZE] (`scene_numbers`), NaN for the frames where it
        does not tell; None for all.
    name: of the action space that a model learns from them. spec: what the actions mean.
    start: index in `actions` of what is done at the frame [N]; its own number if left out.
    wordings: indices in `sentences` of which any may be said [W, K]; each sentence alone if left
        out.
    recorded: how many of `actions` are episodes', ahead of the reset images'; all if left out.
    states: the robot's, float32 [N, P]; None where a model is to do without.
    weight: how often each frame is drawn, float32 [N], 0: never; None: all alike.
    thoughts: what a model that reasons is to write, `thought`: which at each frame [N]; None where
        it does not.
    """

    images: torch.Tensor
    actions: torch.Tensor
    text: torch.Tensor
    end: torch.Tensor
    episode: torch.Tensor
    sentences: list[str]
    scene: torch.Tensor | None = None
    name: str = "generated"
    spec: ActionSpec = field(default_factory=eef_delta_spec)
    start: torch.Tensor = field(default_factory=lambda: torch.arange(0))
    wordings: torch.Tensor = field(default_factory=lambda: torch.arange(0))
    other: Other | None = None
    recorded: int = -1
    states: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    thoughts: list[str] = field(default_factory=list)
    thought: torch.Tensor | None = None

    def __post_init__(self):
        if not len(self.start):
            self.start = torch.arange(len(self.text))
        if not len(self.wordings):
            self.wordings = torch.arange(len(self.sentences))[:, None]
        if self.recorded < 0:
            self.recorded = len(self.actions)

    def __len__(self) -> int:
        return len(self.text)

    @property
    def episodes(self) -> int:
        """Number of episodes, without reset images."""
        return len(self.episode[self.start < self.recorded].unique())


def load_frames(
    paths: Sequence[str | Path],
    cameras: Sequence[str] = ("agentview",),
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
    count: int = WORDINGS,
    states: bool = False,
    weights: SampleWeights = AS_USUAL,
    reasoning: bool = False,
) -> TrainingFrames:
    """Reads HDF5 datasets and reset images into memory, with images directly on `device`.

    states: whether to keep the robot's. reasoning: whether to make `thoughts`.
    weights: how often steps are drawn.
    count: sentences that are drawn for a scene whose task can say it in several ways; 0 keeps the
        recorded ones. Reset images have no recorded one.
    """
    sets = [ResetImages(p) if is_reset_images(p) else Hdf5Set(p) for p in paths]
    total = sum(_frames(s) for s in sets)
    recorded = sum(_frames(s) for s in sets if isinstance(s, Hdf5Set))
    if not recorded:
        raise DataError("there are only reset images", "name a dataset of episodes as well")
    spec = _one_spec(sets, paths)
    if (states or len(cameras) > 1) and not all(isinstance(s, Hdf5Set) for s in sets):
        raise DataError(
            "reset images are of one camera and without the robot's state",
            "leave them out, or train on one camera and no state",
        )
    if reasoning and not all(isinstance(s, Hdf5Set) for s in sets):
        raise DataError("reset images have no thoughts", "leave them out, or --reasoning")
    filling, arrays, at = _Filling(recorded, weights), None, 0
    ends: list[int] = []
    for data, path in zip(sets, paths, strict=True):
        if isinstance(data, ResetImages):
            kind, parts = "reset images", _reset_images(data, count)
        else:
            kind, parts = "episodes", _episodes(data, cameras, count, states, reasoning)
        for images, part in parts:
            if arrays is None:
                shape = (total, *images.shape[1:])
                arrays = torch.empty(shape, dtype=torch.uint8, device=device)
            if images.shape[1:] != arrays.shape[1:]:
                raise DataError(
                    f"{path} has images of {images.shape[-3:-1]}, the first of "
                    f"{tuple(arrays.shape[-3:-1])}",
                    "generate both with one size",
                )
            arrays[at : at + len(images)] = torch.from_numpy(images).to(device)
            filling.add(**part)
            at += len(images)
        ends.append(at)
        report(f"{path}: {len(data)} {kind}, {at} frames so far")
    assert arrays is not None  # for there are recorded frames
    frames = replace(filling.frames(arrays), spec=spec)
    return replace(frames, weight=weight_of(filling.weights(), ends, weights.dataset_weights))


def _one_spec(sets: Sequence[ResetImages | Hdf5Set], paths: Sequence[str | Path]) -> ActionSpec:
    """What the actions of all sets mean; DataError if they don't mean the same."""
    specs = {str(p): s.spec for s, p in zip(sets, paths, strict=True) if isinstance(s, Hdf5Set)}
    spec = next(iter(specs.values()))
    if len(set(specs.values())) > 1:
        raise DataError(
            f"the actions of {', '.join(specs)} don't mean the same",
            "train on datasets of one robot",
        )
    for data in sets:
        if isinstance(data, ResetImages) and data.actions.shape[-1] != len(spec):
            raise DataError(
                f"{data.path} has actions of {data.actions.shape[-1]} numbers, the datasets of "
                f"{len(spec)}",
                "train on datasets of one robot",
            )
    return spec


def weight_of(
    weights: np.ndarray, ends: Sequence[int], shares: Sequence[float]
) -> torch.Tensor | None:
    """`TrainingFrames.weight` of the weights of steps [N] and the shares of datasets."""
    if shares:
        weights = balanced(weights, ends, shares)
    return None if (weights == 1).all() else torch.from_numpy(weights)


def _frames(data: ResetImages | Hdf5Set) -> int:
    if isinstance(data, ResetImages):
        return len(data)
    return sum(len(data.episodes.group(i)["actions"]) for i in range(len(data)))


def _episodes(
    data: Hdf5Set, cameras: Sequence[str], count: int, with_states: bool, reasoning: bool
) -> Iterator[tuple[np.ndarray, dict]]:
    for i in range(len(data)):
        group, values, states = data.episodes.group(i), data.actions(i), data.episodes.states(i)
        n, columns = len(values), data.columns(i, data.cameras())
        if missing := [camera for camera in cameras if camera not in columns]:
            raise data.lacks(missing[0])
        if with_states and states is None:
            raise DataError(f"{data.path} has no states of the robot", "train without --state")
        if not np.isfinite(values).all():
            raise DataError(f"{data.path}: demonstration {i} has actions that are not finite")
        task, drawn = group.attrs.get("task", ""), recorded_scene(group)
        told = data.instructions(i)
        said = count and wordings(task, drawn, count, told[0] if told else "")
        part: dict[str, Any] = {
            "actions": values,
            "text": [said] * n if said else [(t,) for t in told],
            "scene": scene_of(group, states),
            "states": states if with_states else None,
            "acted": data.interventions(i),
        }
        thoughts, others = thoughts_of(group) if reasoning else (None, None)
        part["thoughts"] = thoughts
        if said and (other := _other(group, states, count)):
            part["other"] = {**other, "thoughts": others}
        shown = [columns[camera].all() for camera in cameras]
        yield shown[0] if len(shown) == 1 else np.stack(shown, axis=1), part


def _other(group, states: np.ndarray | None, count: int) -> dict[str, Any] | None:
    """What an episode is asked of another order, or about another object."""
    if answers := other_answers(group, count):
        return answers
    drawn, scene = recorded_scene(group), other_scene_of(group, states)
    if drawn is None or scene is None:
        return None
    text = wordings(group.attrs["task"], other_order(drawn), count)
    return {"text": [text] * len(scene), "scene": scene}


def _reset_images(data: ResetImages, count: int) -> Iterator[tuple[np.ndarray, dict]]:
    for begin in range(0, len(data), BLOCK):
        end = min(begin + BLOCK, len(data))
        drawn = data.drawn[begin:end]

        def part(order: int, scenes: list, begin=begin, end=end) -> dict:
            text = [wordings(data.task, s, count or 1) for s in scenes]
            scene = data.scenes[begin:end, order]
            return {"text": text, "scene": scene, "actions": data.actions[begin:end, order]}

        other = part(1, [other_order(s) for s in drawn])
        yield data.images(begin, end), {**part(0, drawn), "other": other}


class _Filling:
    """Collects parts: an episode (actions [T, D]), or reset images (actions [n, T, D]).

    What would be done in the other order is [n, T, D] for both.
    """

    def __init__(self, recorded: int, by: SampleWeights):
        self.recorded, self.by = recorded, by
        self._weights: list[np.ndarray] = []
        self.columns: dict[str, list] = {}
        self.actions: list[np.ndarray] = []
        self.reset_images: list[np.ndarray] = []
        self.sentences: dict[str, int] = {}
        self.rows: dict[tuple[str, ...], int] = {}
        self.thoughts: dict[str, int] = {}
        self.episode = 0

    def add(
        self, actions, text, scene, other=None, states=None, acted=None, thoughts=None
    ) -> None:
        if states is not None:
            self._column("states", np.asarray(states, np.float32))
        n, reset_image = len(text), actions.ndim == 3
        episode = self.episode + np.arange(n) if reset_image else np.full(n, self.episode)
        self.episode = int(episode[-1]) + 1
        self._column("episode", episode)
        self._order("", n, text, scene, actions, thoughts)
        self._weigh(n, acted)
        if other is None:
            other = {"text": [None] * n, "scene": None}
        self._order("other_", n, **other)

    def _weigh(self, n: int, acted: np.ndarray | None) -> None:
        """acted: whether a person acted, bool [n]; None where it is not known."""
        weights = np.ones(n, np.float32)
        if acted is not None:
            weights, length = self.by.of_steps(acted, np.array([n]), PERIOD), np.array([n])
            end = self.columns["end"]
            end[-1] = end[-1] - n + chunk_limits(weights, length)
        self._weights.append(weights)

    def weights(self) -> np.ndarray:
        """float32 [N]"""
        return np.concatenate(self._weights)

    def _order(self, prefix, n, text, scene, actions=None, thoughts=None) -> None:
        """One order's part; without actions the expert's are unknown."""
        start = end = np.zeros(n, np.int64)
        if actions is not None and actions.ndim == 3:
            done = self.recorded + sum(map(len, self.reset_images))
            start = done + actions.shape[1] * np.arange(n)
            end = start + actions.shape[1]
            self.reset_images.append(actions.reshape(-1, actions.shape[-1]))
        elif actions is not None:
            start = sum(map(len, self.actions)) + np.arange(n)
            end = np.full(n, start[-1] + 1)
            self.actions.append(actions)
        unknown = np.full((n, SIZE), np.nan, np.float32)
        self._column(prefix + "text", [self._row(t) for t in text])
        self._column(prefix + "scene", unknown if scene is None else scene)
        thought = [self.thoughts.setdefault(t, len(self.thoughts)) for t in thoughts or ()]
        self._column(prefix + "thought", thought or np.full(n, -1))
        self._column(prefix + "start", start)
        self._column(prefix + "end", end)

    def _column(self, name: str, values) -> None:
        self.columns.setdefault(name, []).append(np.asarray(values))

    def _row(self, said: tuple[str, ...] | None) -> int:
        if said is None:
            return -1
        for sentence in said if said not in self.rows else ():
            self.sentences.setdefault(sentence, len(self.sentences))
        return self.rows.setdefault(said, len(self.rows))

    def frames(self, images: torch.Tensor) -> TrainingFrames:
        columns: dict[str, Any] = {
            k: torch.from_numpy(np.concatenate(v)) for k, v in self.columns.items()
        }
        other = {
            k: columns.pop("other_" + k) for k in ("text", "scene", "start", "end", "thought")
        }
        other["text"][other["scene"].isnan().all(1)] = -1
        width = max(map(len, self.rows))
        table = [[self.sentences[said[k % len(said)]] for k in range(width)] for said in self.rows]
        scene, thought = columns.pop("scene"), columns.pop("thought")
        actions = np.concatenate([*self.actions, *self.reset_images]).astype(np.float32)
        return TrainingFrames(
            images=images,
            actions=torch.from_numpy(actions),
            sentences=list(self.sentences),
            wordings=torch.tensor(table),
            scene=None if scene.isnan().all() else scene,
            other=Other(**other) if (other["text"] >= 0).any() else None,
            recorded=self.recorded,
            thoughts=list(self.thoughts),
            thought=thought if self.thoughts else None,
            **columns,
        )


def action_statistics(frames: TrainingFrames) -> dict:
    """The dataset_statistics.json entry of these frames: q01/q99 bounds, gripper left as it is;
    also of states, where there are.

    Of the episodes only: reset images show just the first steps.
    """
    actions = frames.actions[: frames.recorded].numpy()
    statistics = dataset_statistics([actions], frames.spec, frames.name)
    if frames.states is not None:
        statistics["proprio"] = column_statistics(frames.states.numpy().astype(np.float64))
    return {**statistics, "num_trajectories": frames.episodes}
