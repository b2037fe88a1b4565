"""Do a model and a dataset go together? In which action space, units and cameras."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vla_inference.errors import DataError, VlaError
from vla_inference.policies.normalisation import Normalisation, find_statistics
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import ActionSpec, DimSpec
from vla_training.datasets import EpisodeSet
from vla_training.evaluation.accuracy import Range

NORMALISED = "normalized"


def choose_space(
    policy: OpenVLAPolicy, dataset: EpisodeSet, given: str | None
) -> tuple[str | Mapping, Mapping]:
    """What to ask the policy for, and its statistics.

    Left out, it is the model's statistics of the dataset's name, "bridge_orig" for any Bridge
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


def statistics_of(policy: OpenVLAPolicy, space: str | Mapping, statistics: Mapping) -> Mapping:
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
            f"{path} holds statistics of {len(raw)} datasets ({', '.join(raw)})",
            "keep the one that is meant",
        )
    return next(iter(raw.values()))


def agree(
    policy: OpenVLAPolicy, dataset: EpisodeSet, space: str | Mapping, statistics: Mapping
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
            "choose a dataset or an action space of the model's kind",
        )
    if space == NORMALISED:
        dims = tuple(DimSpec(d.name, "1", d.polarity) for d in data.dims)
        return replace(data, dims=dims), Range(bounds.low, bounds.high), []
    # Statistics of that very dataset without a spec of their own: the dataset knows better.
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
                "choose an action space of the dataset's kind, or convert the dataset",
            )
    notes = []
    if abs(model.dt - data.dt) > 0.01 * model.dt:
        notes.append(
            f"the dataset's steps last {data.dt:g} s, the model's {model.dt:g} s: its deltas "
            "are of another size"
        )
    return model, Range(bounds.low, bounds.high), notes


def choose_cameras(
    policy: OpenVLAPolicy, dataset: EpisodeSet, given: tuple[str, ...]
) -> tuple[str, ...]:
    """As many cameras as the model has images."""
    known, wanted = dataset.cameras(), policy.config.head.num_images
    names = given or tuple(known[:wanted])
    for name in names:
        if name not in known:
            raise DataError(
                f"{dataset.path} has no images of camera {name!r}",
                f"cameras: {', '.join(known) or 'none'}",
            )
    if len(names) != wanted:
        raise DataError(
            f"model {policy.name!r} wants {wanted} image(s), {dataset.path} gives "
            f"{len(names)} ({', '.join(names) or 'none'})",
            "name them with --camera",
        )
    return names
