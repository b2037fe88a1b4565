"""Conversion of actions on the wire between units and gripper polarities."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import OPEN, ActionSpec, DimSpec, split_unit

UNKNOWN = "unknown"
POLARITY = re.compile(r"(-?\d+(?:\.\d+)?) open, (-?\d+(?:\.\d+)?) closed")


@dataclass(frozen=True)
class Conversion:
    """Converts actions of one spec to another: `actions * factors + offsets`.

    spec: what the converted ones mean. A unit that either side does not know stays unknown, a
        polarity that the given actions do not state stays unstated.
    """

    spec: ActionSpec
    factors: np.ndarray
    offsets: np.ndarray

    @classmethod
    def between(cls, given: ActionSpec, wanted: ActionSpec) -> Conversion:
        """The conversion between two specs; raises VlaError if there is none."""
        if len(given) != len(wanted):
            raise VlaError(
                f"actions have {len(given)} numbers ({', '.join(given.names)}), "
                f"{len(wanted)} are wanted ({', '.join(wanted.names)})",
                "choose the map that the model was trained for, or map free",
            )
        if all(p.kind != "unknown" for p in given.parts):
            _check_parts(given, wanted)
        pairs = [_line(a, b) for a, b in zip(given.dims, wanted.dims, strict=True)]
        dims = (_converted(a, b) for a, b in zip(given.dims, wanted.dims, strict=True))
        factors, offsets = (np.array(column) for column in zip(*pairs, strict=True))
        return cls(replace(wanted.with_dims(dims), dt=given.dt), factors, offsets)

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """float32 [T, D] -> float32 [T, D]"""
        if (self.factors == 1).all() and (self.offsets == 0).all():
            return np.asarray(actions, np.float32)
        return (actions.astype(np.float64) * self.factors + self.offsets).astype(np.float32)


def with_open_gripper(spec: ActionSpec) -> ActionSpec:
    """The same spec with every gripper 1 open and 0 closed, as this project has it."""
    return spec.with_dims(
        replace(d, polarity=OPEN) if POLARITY.search(d.polarity) else d for d in spec.dims
    )


def _check_parts(given: ActionSpec, wanted: ActionSpec) -> None:
    """Raise VlaError where they are of other kinds, frames or conventions."""
    for a, b in zip_longest(given.parts, wanted.parts):
        for what in ("kind", "frame", "rotation"):
            have, want = (getattr(p, what, "nothing") for p in (a, b))
            if have != want:
                raise VlaError(
                    f"actions have {what} {have}, {want} is wanted",
                    "choose another map, such as free",
                )


def _converted(given: DimSpec, wanted: DimSpec) -> DimSpec:
    """What a number means once it is converted."""
    unit = given.unit if given.unit == UNKNOWN else wanted.unit
    stated = POLARITY.search(given.polarity) is not None
    return replace(wanted, unit=unit, polarity=wanted.polarity if stated else given.polarity)


def _line(given: DimSpec, wanted: DimSpec) -> tuple[float, float]:
    """Factor and offset from one dimension to another."""
    a, b = POLARITY.search(given.polarity), POLARITY.search(wanted.polarity)
    if a and b and a.groups() != b.groups():
        (a_open, a_closed), (b_open, b_closed) = (map(float, m.groups()) for m in (a, b))
        if a_open == a_closed or b_open == b_closed or not math.isfinite(a_open - a_closed):
            raise VlaError(
                f"{given.name} is {given.polarity}, {wanted.name} {wanted.polarity}",
                "state different numbers for open and closed",
            )
        factor = (b_open - b_closed) / (a_open - a_closed)
        return factor, b_closed - factor * a_closed
    if UNKNOWN in (given.unit, wanted.unit):
        return 1.0, 0.0
    (size, unit), (other, wanted_unit) = split_unit(given.unit), split_unit(wanted.unit)
    if unit != wanted_unit:
        raise VlaError(
            f"{given.name} is in {given.unit}, {wanted.name} in {wanted.unit}",
            "choose the map that the model was trained for, or map free",
        )
    return size / other, 0.0
