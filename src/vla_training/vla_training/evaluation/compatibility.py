"""Checks that a policy and a dataset match in action space, units and cameras."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.errors import DataError, VlaError
from vla_inference.inputs.history import past_name, past_steps
from vla_inference.policies.base import Policy
from vla_inference.policies.normalisation import Normalisation, find_statistics
from vla_inference.types import ActionSpec, Observation
from vla_training.datasets import EpisodeSet
from vla_training.evaluation.accuracy import Range

NORMALISED = "normalized"


@dataclass(frozen=True)
class Candidate:
    """A policy and the action space in which it is compared.

    space: its name; "custom" of statistics from elsewhere, "" of a policy with only one.
    statistics: of that space; None where the checkpoint has none by name.
    """

    policy: Policy
    space: str
    statistics: Mapping | None

    def same_space(self, reference: Policy) -> Candidate:
        """Another policy in this space, or in its only one."""
        if self.space == "custom" or not reference.action_spaces:
            given = self.statistics if reference.action_spaces else None
            return Candidate(reference.in_space(given), self.space, given)
        return _named(reference, self.space)


def choose_space(policy: Policy, dataset: EpisodeSet, given: str | None) -> Candidate:
    """The policy in the space of that name, or with the statistics of a JSON file.

    Left out, it is the statistics of the dataset's name, "bridge_orig" for any Bridge set, or the
    only ones there are.
    """
    spaces = policy.action_spaces
    if given is not None and given.endswith(".json"):
        entry = _read_statistics(Path(given))
        return Candidate(policy.in_space(entry), "custom", entry)
    if not spaces:
        return Candidate(policy.in_space(given), "", None)
    if given is None and dataset.name in spaces:
        given = dataset.name
    if given is None and "bridge" in dataset.name and "bridge_orig" in spaces:
        given = "bridge_orig"
    return _named(policy, given)


def _named(policy: Policy, given: str | None) -> Candidate:
    name, _ = find_statistics(policy.action_spaces, given)
    return Candidate(policy.in_space(name), name, policy.action_spaces[name])


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
            f"{path} contains statistics of {len(raw)} datasets ({', '.join(raw)})",
            "keep the one that is meant",
        )
    return next(iter(raw.values()))


def agree(candidate: Candidate, dataset: EpisodeSet) -> tuple[ActionSpec, Range, list[str]]:
    """Spec and bounds for the comparison, and notes; an error if meanings differ."""
    policy, space, statistics = candidate.policy, candidate.space, candidate.statistics
    model, data, notes = policy.action_spec(), dataset.spec, []
    if statistics is None:
        notes.append("the model names no range of its actions: accuracy is in the dataset's own")
        statistics = dataset.statistics()
    bounds = Normalisation.from_statistics(
        statistics.get("action", statistics), f"statistics {space!r:.40}"
    )
    if not len(model) == len(data) == len(bounds):
        raise DataError(
            f"{dataset.path} has actions of {len(data)} dimensions, model {policy.name!r} of "
            f"{len(model)}, its statistics of {len(bounds)}",
            "choose a dataset or an action space of the model's kind",
        )
    limits = Range(bounds.low, bounds.high)
    if space == NORMALISED:
        return data.with_units(["1"] * len(data)), limits, notes
    # Statistics of that very dataset without a spec of their own: the dataset knows better.
    if space == dataset.name and "spec" not in statistics:
        return data, limits, notes
    _check_meaning(policy, model, dataset)
    if abs(model.dt - data.dt) > 0.01 * model.dt:
        notes.append(
            f"the dataset's steps last {data.dt:g} s, the model's {model.dt:g} s: its deltas "
            "are of another size"
        )
    return model, limits, notes


def _check_meaning(policy: Policy, model: ActionSpec, dataset: EpisodeSet) -> None:
    """Refuse a dataset whose numbers mean something else than the model's."""
    for what, ours, theirs in _differences(model, dataset.spec):
        raise DataError(
            f"{dataset.path}: {what} is {theirs!r}, that of model {policy.name!r} is {ours!r}",
            "choose an action space of the dataset's kind, or convert the dataset",
        )


def _differences(model: ActionSpec, data: ActionSpec) -> Iterator[tuple[str, str, str]]:
    """(what, the model's, the dataset's) of each that differs, part by part."""
    ours, theirs = (", ".join(p.name for p in s.parts) for s in (model, data))
    if ours != theirs:
        yield "the list of parts", ours, theirs
        return
    for a, b in zip(model.parts, data.parts, strict=True):
        part = f"part {a.name!r}"
        fields: list[tuple[str, Any, Any, str]] = [
            (f"{part}: {what}", a, b, what) for what in ("kind", "rotation", "frame")
        ]
        fields += [
            (f"{part}: dimension {x.name!r}: {what}", x, y, what)
            for x, y in zip(a.dims, b.dims, strict=False)
            for what in ("name", "unit", "polarity")
        ]
        for words, x, y, what in fields:
            if getattr(x, what) != getattr(y, what):
                yield words, getattr(x, what), getattr(y, what)
        if len(a) != len(b):
            yield f"{part}: number of dimensions", str(len(a)), str(len(b))


def choose_cameras(policy: Policy, dataset: EpisodeSet, given: tuple[str, ...]) -> tuple[str, ...]:
    """As many cameras as the policy sees at once: those it names, if the dataset has them."""
    known, needs = dataset.cameras(), policy.needs
    named = needs.cameras if set(needs.cameras) <= set(known) else ()
    names = given or named or tuple(known[: needs.views])
    for name in names:
        if name not in known:
            raise dataset.lacks(name)
    if len(names) != needs.views:
        raise DataError(
            f"model {policy.name!r} expects {needs.views} image(s), {dataset.path} gives "
            f"{len(names)} ({', '.join(names) or 'none'})",
            "name them with --camera",
        )
    return names


class RecordedPast:
    """Observations of recorded episodes as a policy takes them: its cameras, past images.

    It is asked for an episode's steps in order, and remembers the images of no more than it needs.
    """

    def __init__(self, policy: Policy, dataset: EpisodeSet, given: tuple[str, ...]):
        self.cameras, needs = choose_cameras(policy, dataset, given), policy.needs
        self._history, self._stride, self._forget = needs.history, 1, policy.forget
        if self._history:
            self._stride = dataset.past_stride(needs.interval)
        self._seen: deque[Mapping[str, np.ndarray]] = deque(
            maxlen=1 + self._history * self._stride
        )

    def __call__(self, step: int, seen: Observation) -> Observation:
        """step: its number in its episode; 0 begins another."""
        if not step:
            self._seen.clear()
            self._forget()
        self._seen.append(seen.images)
        last = len(self._seen) - 1
        images = {
            past_name(camera, ago): self._seen[at][camera]
            for ago, at in enumerate([last, *past_steps(last, self._history, self._stride)])
            for camera in self.cameras
        }
        return replace(seen, images=images)
