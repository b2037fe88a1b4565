"""Offline evaluation: a policy's answer to every frame of a data set, beside what was done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.actions import Normalisation, find_statistics
from vla_inference.errors import DataError, VlaError
from vla_inference.policy import Policy
from vla_inference.types import ActionSpec, DimSpec, Observation
from vla_training.accuracy import (
    Range,
    accuracy,
    clipped_accuracy,
    dimension_errors,
    gripper_flips,
    nrmse,
    token_agreement,
)
from vla_training.datasets import EpisodeSet

NORMALISED = "normalized"


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate. None: no limit, or what data set and model suggest.

    max_steps: frames in all, over all episodes.
    action_space: name of the model's statistics, "normalized" (the model's own -1 to 1, compared
        with the truth in the data set's q01 to q99), or a JSON file of statistics.
    cameras: what the model sees, in its order.
    instruction: takes the place of the data set's own.
    """

    max_episodes: int | None = None
    max_steps: int | None = None
    action_space: str | None = None
    cameras: tuple[str, ...] = ()
    instruction: str | None = None


@dataclass(frozen=True)
class Frame:
    """One frame's outcome. Actions in the units of the evaluation's spec, latency in seconds."""

    number: int
    total: int
    episode: int
    step: int
    instruction: str
    truth: np.ndarray
    predicted: np.ndarray
    accuracy: float
    accuracy_clipped: float
    mean_accuracy: float
    mean_accuracy_clipped: float
    latency: float
    tokens: np.ndarray | None = None
    reference: np.ndarray | None = None
    reference_latency: float | None = None
    reference_tokens: np.ndarray | None = None


@dataclass
class Evaluation:
    """All frames, and what they amount to."""

    model: str
    dataset: str
    action_space: str
    spec: ActionSpec
    bounds: Range
    reference: str | None = None
    notes: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    complete: bool = True

    @property
    def truth(self) -> np.ndarray:
        return np.stack([f.truth for f in self.frames])

    @property
    def predicted(self) -> np.ndarray:
        return np.stack([f.predicted for f in self.frames])

    def statistics(self) -> dict[str, Any]:
        """Figures of every frame and their means, as `--save-stats` stores them.

        latency, eval_latency in seconds; error, eval_error: NRMSE of model and of reference model
        against the truth; quant_error: of the model against the reference model; *_clipped: with
        the truth clipped to q01/q99.
        """
        truth, predicted, bounds = self.truth, self.predicted, self.bounds
        clipped = bounds.clip(truth)
        lists = {
            "latency": np.array([f.latency for f in self.frames]),
            "error": nrmse(truth, predicted, bounds),
            "error_clipped": nrmse(clipped, predicted, bounds),
        }
        if self.reference is not None:
            reference = np.stack([f.reference for f in self.frames])
            lists |= {
                "eval_latency": np.array([f.reference_latency for f in self.frames]),
                "eval_error": nrmse(truth, reference, bounds),
                "eval_error_clipped": nrmse(clipped, reference, bounds),
                "quant_error": nrmse(reference, predicted, bounds),
            }
        empty = {"eval_latency": [], "eval_error": [], "quant_error": []}
        return {
            "model": self.model,
            "reference_model": self.reference,
            "dataset": self.dataset,
            "action_space": self.action_space,
            "complete": self.complete,
            "notes": self.notes,
            "mean": self._means(lists),
            "dimensions": [asdict(e) for e in dimension_errors(truth, predicted, self.spec)],
            "gripper": self._gripper(),
            "tokens": self._tokens(),
            **empty,
            **{k: v.tolist() for k, v in lists.items()},
        }

    def _means(self, lists: Mapping[str, np.ndarray]) -> dict[str, float]:
        mean = {k: float(v.mean()) for k, v in lists.items()}
        mean |= {
            "timesteps": len(self.frames),
            "episodes": len({f.episode for f in self.frames}),
            "fps": 1 / mean["latency"],
            "accuracy": 1 - mean["error"],
            "accuracy_clipped": 1 - mean["error_clipped"],
        }
        if self.reference is not None:
            mean |= {
                "eval_fps": 1 / mean["eval_latency"],
                "eval_accuracy": 1 - mean["eval_error"],
                "eval_accuracy_clipped": 1 - mean["eval_error_clipped"],
            }
        return mean

    def _gripper(self) -> dict[str, int] | None:
        found = gripper_flips(self.truth, self.predicted, self.spec)
        return None if found is None else {**asdict(found), "flips": found.flips}

    def _tokens(self) -> dict[str, Any] | None:
        ours = [f.tokens for f in self.frames]
        theirs = [f.reference_tokens for f in self.frames]
        if any(t is None for t in (*ours, *theirs)):
            return None
        return asdict(token_agreement(ours, theirs))


def evaluate(
    policy: Policy,
    dataset: EpisodeSet,
    config: EvalConfig = EvalConfig(),
    reference: Policy | None = None,
    report: Callable[[Frame], None] = lambda _: None,
) -> Evaluation:
    """Predict the action of every frame; `report` is told each.

    A Ctrl-C after the first frame ends it early: the result is then not `complete`.
    Raises VlaError or DataError where model and data set don't go together.
    """
    space, statistics = choose_space(policy, dataset, config.action_space)
    spec, bounds, notes = agree(policy, dataset, space, statistics)
    if reference is not None:
        agree(reference, dataset, space, _statistics_of(reference, space, statistics))
    result = Evaluation(
        policy.name, dataset.name, space if isinstance(space, str) else "custom", spec, bounds,
        None if reference is None else reference.name, [*dataset.notes, *notes],
    )  # fmt: skip
    to_space = None
    if space == NORMALISED:
        to_space = Normalisation.from_statistics(dataset.statistics()["action"])
    policy.warm_up(space)
    if reference is not None:
        reference.warm_up(space)
    total = count_frames(dataset, config)
    cameras = {p: choose_cameras(p, dataset, config.cameras) for p in (policy, reference) if p}
    sums = np.zeros(2)
    try:
        for episode, step, seen, truth in _frames(dataset, config, total):
            if to_space is not None:
                truth = _normalise(truth, to_space)
            chunk, latency = _predict(policy, seen, cameras[policy], space)
            theirs, their_latency = None, None
            if reference is not None:
                theirs, their_latency = _predict(reference, seen, cameras[reference], space)
            predicted = chunk.actions[0].astype(np.float64)
            values = np.array(
                [f(truth, predicted, bounds) for f in (accuracy, clipped_accuracy)], float
            )
            sums += values
            number = len(result.frames) + 1
            frame = Frame(
                number, total, episode, step, seen.instruction, truth, predicted,
                *values.tolist(), *(sums / number).tolist(), latency, chunk.tokens,
                None if theirs is None else theirs.actions[0].astype(np.float64),
                their_latency, None if theirs is None else theirs.tokens,
            )  # fmt: skip
            result.frames.append(frame)
            report(frame)
    except KeyboardInterrupt:
        if not result.frames:
            raise
        result.complete = False
    if not result.frames:
        raise DataError(f"{dataset.path} has no frame to evaluate", "raise the limits")
    return result


def _frames(dataset: EpisodeSet, config: EvalConfig, total: int):
    """(number of the episode, of the step, observation, true action [D] float64)"""
    left = total
    for index in range(len(dataset)):
        if left <= 0:
            return
        for number, step in enumerate(dataset[index].steps[:left]):
            seen = step.observation
            if config.instruction is not None:
                seen = replace(seen, instruction=config.instruction)
            if not seen.instruction.strip():
                raise DataError(
                    f"{dataset.path}: episode {index}, step {number} has no instruction",
                    "give one with --instruction",
                )
            yield index, number, seen, np.asarray(step.action, np.float64)
            left -= 1


def _normalise(actions: np.ndarray, by: Normalisation) -> np.ndarray:
    """As `by.normalise`, but outliers stay outside [-1, 1]: clipping is for the metric to do."""
    span = np.where(by.high > by.low, by.high - by.low, np.inf)
    return np.where(by.mask, 2 * (actions - by.low) / span - (by.high > by.low), actions)


def count_frames(dataset: EpisodeSet, config: EvalConfig) -> int:
    """Frames that will be evaluated."""
    episodes = len(dataset)
    if config.max_episodes is not None:
        episodes = min(episodes, config.max_episodes)
    total = 0
    for index in range(episodes):
        total += len(dataset.actions(index))
        if config.max_steps is not None and total >= config.max_steps:
            return config.max_steps
    return total


def _predict(policy: Policy, seen: Observation, cameras: tuple[str, ...], space):
    observation = Observation({c: seen.images[c] for c in cameras}, seen.instruction, seen.state)
    begun = time.perf_counter()
    chunk = policy.predict_action(observation, unnorm_key=space)
    return chunk, time.perf_counter() - begun


# -- do model and data set go together? ---------------------------------------------------------


def choose_space(
    policy: Policy, dataset: EpisodeSet, given: str | None
) -> tuple[str | Mapping, Mapping]:
    """What to ask the policy for, and its statistics.

    Left out, it is the model's statistics of the data set's name, "bridge_orig" for any Bridge
    set, or the only ones there are.
    """
    spaces = policy.action_spaces
    if given is not None and given.endswith(".json"):
        entry = _read_statistics(Path(given))
        return entry, entry
    if given is None and dataset.name in spaces:
        given = dataset.name
    if given is None and "bridge" in dataset.name and "bridge_orig" in spaces:
        given = "bridge_orig"
    name, _ = find_statistics(spaces, given)
    return name, spaces[name]


def _statistics_of(policy: Policy, space: str | Mapping, statistics: Mapping) -> Mapping:
    if isinstance(space, Mapping):
        return statistics
    name, _ = find_statistics(policy.action_spaces, space)
    return policy.action_spaces[name]


def _read_statistics(path: Path) -> Mapping:
    """The one entry of a dataset_statistics.json."""
    try:
        raw = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise VlaError(
            f"statistics {path} cannot be read ({error})", "correct the path"
        ) from error
    if "action" in raw or "q01" in raw:
        return raw
    if len(raw) != 1:
        raise VlaError(
            f"{path} holds statistics of {len(raw)} data sets ({', '.join(raw)})",
            "keep the one that is meant",
        )
    return next(iter(raw.values()))


def agree(
    policy: Policy, dataset: EpisodeSet, space: str | Mapping, statistics: Mapping
) -> tuple[ActionSpec, Range, list[str]]:
    """Spec and bounds to compare in, and remarks; an error where the two mean different things."""
    model, data = policy.action_spec(space), dataset.spec
    bounds = Normalisation.from_statistics(
        statistics.get("action", statistics), f"statistics {space!r:.40}"
    )
    if not len(model) == len(data) == len(bounds):
        raise DataError(
            f"{dataset.path} has actions of {len(data)} dimensions, model {policy.name!r} of "
            f"{len(model)}, its statistics of {len(bounds)}",
            "choose a data set or an action space of the model's kind",
        )
    if space == NORMALISED:
        dims = tuple(DimSpec(d.name, "1", d.polarity) for d in data.dims)
        return replace(data, dims=dims), Range(bounds.low, bounds.high), []
    # Statistics of that very data set without a spec of their own: the data set knows better.
    if space == dataset.name and "spec" not in statistics:
        return data, Range(bounds.low, bounds.high), []
    fields = [("rotation", model.rotation, data.rotation), ("frame", model.frame, data.frame)]
    for ours, theirs in zip(model.dims, data.dims, strict=True):
        fields += [
            (f"dimension {ours.name!r}: {what}", getattr(ours, what), getattr(theirs, what))
            for what in ("name", "unit", "polarity")
        ]
    for what, ours, theirs in fields:
        if ours != theirs:
            raise DataError(
                f"{dataset.path}: {what} is {theirs!r}, that of model {policy.name!r} is {ours!r}",
                "choose an action space of the data set's kind, or convert the data set",
            )
    notes = []
    if abs(model.dt - data.dt) > 0.01 * model.dt:
        notes.append(
            f"the data set's steps last {data.dt:g} s, the model's {model.dt:g} s: its deltas "
            "are of another size"
        )
    return model, Range(bounds.low, bounds.high), notes


def choose_cameras(policy: Policy, dataset: EpisodeSet, given: tuple[str, ...]) -> tuple[str, ...]:
    """As many cameras as the model has pictures."""
    known, wanted = dataset.cameras(), policy.config.head.num_images
    names = given or tuple(known[:wanted])
    for name in names:
        if name not in known:
            raise DataError(
                f"{dataset.path} has no pictures of camera {name!r}",
                f"cameras: {', '.join(known) or 'none'}",
            )
    if len(names) != wanted:
        raise DataError(
            f"model {policy.name!r} wants {wanted} picture(s), {dataset.path} gives "
            f"{len(names)} ({', '.join(names) or 'none'})",
            "name them with --camera",
        )
    return names
