"""Action specifications of known datasets and of a checkpoint's statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vla_inference.errors import CheckpointError, VlaError
from vla_inference.types import ActionChunk, ActionSpec, DimSpec, eef_delta_spec


def _in_units(spec: ActionSpec, length: str, angle: str) -> ActionSpec:
    units = [length] * 3 + [angle] * 3 + ["1"]
    dims = [replace(d, unit=unit) for d, unit in zip(spec.dims, units, strict=True)]
    return replace(spec, dims=tuple(dims))


def _oxe(rate: float, length: str = "m", angle: str = "rad") -> ActionSpec:
    """Open X-Embodiment's spec: fixed-axis angles in the base frame, at a rate in Hz."""
    return _in_units(eef_delta_spec("rpy", "base", 1 / rate), length, angle)


# By the dataset's name, which is also that of its statistics in a checkpoint; a longer name that
# begins with one of these and "_" means the same. "unknown": stored in units that nothing states.
# Rates are the control frequencies of Open X-Embodiment's overview of its datasets
# (robotics-transformer-x.github.io).
KNOWN = {
    "bridge": _oxe(5),
    "bridge_orig": _oxe(5),
    "bridge_dataset": _oxe(5),
    "bridge_raw": _oxe(5),
    "fractal20220817_data": _oxe(3),
    "kuka": _oxe(10),
    "berkeley_autolab_ur5": _oxe(5),
    "taco_play": _oxe(15, "unknown", "unknown"),
    "jaco_play": _oxe(10, "unknown", "unknown"),
    "berkeley_cable_routing": _oxe(10, "unknown", "unknown"),
    "roboturk": _oxe(10, "unknown", "unknown"),
    "nyu_door_opening_surprising_effectiveness": _oxe(3, "unknown", "unknown"),
    "viola": _oxe(20, "unknown", "unknown"),
    "toto": _oxe(30, "unknown", "unknown"),
    "normalized": _in_units(eef_delta_spec("rpy", "base", 0.2), "1", "1"),  # a model's own -1 to 1
    # robosuite's [-1, 1], of which 1 is 0.05 m and 0.5 rad
    "libero": _in_units(eef_delta_spec("rotvec", "base", 0.05), "0.05 m", "0.5 rad"),
}


def find_known(name: str) -> str | None:
    """The entry of KNOWN for a dataset's or statistics' name, if any."""
    matches = [k for k in KNOWN if name == k or name.startswith(k + "_")]
    return max(matches, key=len) if matches else None


def _si_factors(spec: ActionSpec) -> np.ndarray | None:
    """Factors to m and rad for an end-effector delta [D]; None if its units are unknown."""
    factors = []
    for dim, wanted in zip(spec.dims, ["m"] * 3 + ["rad"] * 3, strict=False):
        number, _, unit = dim.unit.rpartition(" ")
        try:
            factors.append(float(number or 1))
        except ValueError:
            return None
        if unit != wanted:
            return None
    return np.array(factors + [1.0] * (len(spec) - len(factors)))


def si_spec(spec: ActionSpec) -> ActionSpec:
    """The spec of `in_si`'s actions; unchanged if the units are unknown."""
    if len(spec) != 7 or _si_factors(spec) is None:
        return spec
    return _in_units(spec, "m", "rad")


def check_si(spec: ActionSpec) -> np.ndarray:
    """Factors to m and rad for an end-effector delta [D]; VlaError if its units are unknown."""
    factors = _si_factors(spec)
    if factors is None:
        units = ", ".join(dict.fromkeys(d.unit for d in spec.dims[:6]))
        raise VlaError(
            f"the actions are in unit {units}, of which no m and rad can be made",
            'choose other statistics (unnorm_key), or state the units: "spec" with "dims" '
            "beside the statistics",
        )
    return factors


def in_si(chunk: ActionChunk) -> ActionChunk:
    """An end-effector delta's chunk in m and rad, the only units sent to robots.

    Raises VlaError where its spec has other units or none.
    """
    spec, factors = chunk.spec, check_si(chunk.spec)
    if (factors == 1).all():
        return chunk
    return replace(chunk, actions=chunk.actions * factors, spec=si_spec(spec))


def statistics_spec(statistics: Mapping, action_dim: int = 7, name: str = "") -> ActionSpec:
    """The action spec of a set of statistics.

    They may carry a `spec` ({"rotation", "frame", "dt", "dims": [{"name", "unit", "polarity"}]}).
    Published ones don't: they go by their name, as their dataset does (`KNOWN`). Of an unknown
    name 7 dimensions are fixed-axis angles in the base frame at about 5 Hz, 14 are ALOHA's two
    arms as OpenVLA-OFT has them, and others have no name.
    """
    known = find_known(name)
    if "spec" not in statistics and known is not None and len(KNOWN[known]) == action_dim:
        return KNOWN[known]
    defaults = {"rotation": "rpy", "frame": "base", "dt": 0.2}
    given = dict(statistics.get("spec", {}))
    dims = given.pop("dims", None)
    unknown = set(given) - set(defaults)
    if unknown:
        raise CheckpointError(
            f"the statistics' spec names unknown {', '.join(sorted(unknown))}",
            f"known: {', '.join(defaults)}, dims",
        )
    values = {**defaults, **given}
    if dims is not None:
        try:
            named = tuple(DimSpec(**d) for d in dims)
        except TypeError as error:
            raise CheckpointError(
                f"the statistics' spec has dims {dims!r:.80} ({error})",
                "give a list of {name, unit, polarity}",
            ) from None
        return ActionSpec(named, values["frame"], values["rotation"], values["dt"])
    if action_dim == 7:
        return eef_delta_spec(**values)
    joints = {"rotation": "joints", "frame": "joints"}
    if action_dim == 14:
        return ActionSpec(ALOHA, **{**joints, "dt": 0.04, **given})
    nameless = tuple(DimSpec(f"dim_{i}", "?") for i in range(action_dim))
    return ActionSpec(nameless, **{**values, "rotation": "?", "frame": "?", **given})


def _arm(side: str) -> tuple[DimSpec, ...]:
    names = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    joints = tuple(DimSpec(f"{side}_{n}", "rad") for n in names)
    return (*joints, DimSpec(f"{side}_gripper", "1", "1 open, 0 closed"))


ALOHA = _arm("left") + _arm("right")
