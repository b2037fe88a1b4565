"""Action specifications of known datasets and of a checkpoint's statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vla_inference.errors import CheckpointError, VlaError
from vla_inference.types import (
    ANGLES,
    OPEN,
    ActionChunk,
    ActionPart,
    ActionSpec,
    DimSpec,
    eef_delta_spec,
    joint_spec,
    split_unit,
)


def _in_units(spec: ActionSpec, length: str, angle: str) -> ActionSpec:
    return spec.with_units([length] * 3 + [angle] * 3 + ["1"])


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


def aloha_spec(dt: float) -> ActionSpec:
    """ALOHA's two arms: targets of six joints and the gripper of each."""
    joints = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    arms = {f"{side}_arm": [f"{side}_{j}" for j in joints] for side in ("left", "right")}
    return joint_spec(arms, ("left_gripper", "right_gripper"), dt=dt)


def unknown_spec(names: Sequence[str], dt: float) -> ActionSpec:
    """Numbers of which nothing but the names is known."""
    dims = tuple(DimSpec(n, "unknown") for n in names)
    return ActionSpec((ActionPart("actions", "unknown", dims),), dt)


def part_of(
    name: str, kind: str, dims: Sequence[str], units: Sequence[str], frame: str, rotation: str
) -> ActionPart:
    """What an ActionPart message says, whichever library decoded it."""
    if len(dims) != len(units):
        raise VlaError(
            f"action part {name!r} has {len(dims)} dimensions and {len(units)} units",
            "give each its own",
        )
    polarity = OPEN if kind == "gripper" else ""
    numbers = tuple(DimSpec(d, u, polarity) for d, u in zip(dims, units, strict=True))
    return ActionPart(name, kind, numbers, frame, rotation)


# -- SI ---------------------------------------------------------------------------------------


def _si_factors(spec: ActionSpec) -> np.ndarray | None:
    """What makes SI of each number [D]; None where the spec doesn't tell."""
    factors = []
    for part in spec.parts:
        for i, dim in enumerate(part.dims):
            factor, unit = split_unit(dim.unit)
            if unit not in part.si_units(i):
                return None
            factors.append(factor)
    return np.array(factors)


def si_spec(spec: ActionSpec) -> ActionSpec:
    """That of `in_si`'s actions; unchanged where the units don't tell."""
    if _si_factors(spec) is None:
        return spec
    return spec.with_units([split_unit(d.unit)[1] for d in spec.dims])


def check_si(spec: ActionSpec) -> np.ndarray:
    """What makes SI of each number [D]; VlaError where the spec doesn't tell."""
    factors = _si_factors(spec)
    if factors is None:
        part, units = next((p, u) for p in spec.parts if (u := _not_si(p)))
        what = "m and rad" if part.kind == "eef_delta" else "SI units"
        raise VlaError(
            f"the actions are in unit {units}, of which no {what} can be made (part "
            f"{part.name!r}, {part.kind})",
            'choose other statistics (unnorm_key), or state what they mean: "spec" with "parts" '
            "beside the statistics",
        )
    return factors


def _not_si(part: ActionPart) -> str:
    """Units of which no SI can be made; empty: none."""
    units = [
        d.unit for i, d in enumerate(part.dims) if split_unit(d.unit)[1] not in part.si_units(i)
    ]
    return ", ".join(dict.fromkeys(units))


def in_si(chunk: ActionChunk) -> ActionChunk:
    """A chunk in SI, which is all that a robot may be sent.

    Raises VlaError where its spec has other units or none.
    """
    spec, factors = chunk.spec, check_si(chunk.spec)
    if (factors == 1).all():
        return chunk
    return replace(chunk, actions=chunk.actions * factors, spec=si_spec(spec))


# -- as JSON ----------------------------------------------------------------------------------


def spec_to_json(spec: ActionSpec) -> dict:
    """All of a spec as plain JSON values."""
    return {
        "dt": spec.dt,
        "parts": [
            {
                "name": p.name,
                "kind": p.kind,
                **({"frame": p.frame} if p.frame else {}),
                **({"rotation": p.rotation} if p.rotation else {}),
                "dims": [{"name": d.name, "unit": d.unit, "polarity": d.polarity} for d in p.dims],
            }
            for p in spec.parts
        ],
    }


def spec_from_json(given: Mapping, where: str, usual: ActionSpec | None = None) -> ActionSpec:
    """Undoes `spec_to_json`, and reads the older form without parts.

    usual: end-effector delta that the older form means where it leaves something out; its own
        default is `eef_delta_spec()`. Raises VlaError, which names `where`.
    """
    usual = usual or eef_delta_spec()
    if not isinstance(given, Mapping):
        raise VlaError(f"{where} is {given!r:.40}", "see docs/reference.md for what stands there")
    known = {"dt", "parts"} if "parts" in given else {"control", "rotation", "frame", "dt", "dims"}
    if unknown := set(given) - known:
        raise VlaError(
            f"{where} names unknown {', '.join(sorted(unknown))}",
            f"known: {', '.join(sorted(known))}",
        )
    try:
        dt = float(given.get("dt", usual.dt))
        if not 0 < dt < math.inf:
            raise VlaError(f"dt is {dt!r}", "give seconds per step")
        if "parts" in given:
            return ActionSpec(tuple(_part(p) for p in given["parts"]), dt)
        return _older(given, usual, dt)
    except (VlaError, TypeError, ValueError, KeyError) as error:
        raise VlaError(
            f"{where}: {_problem(error)}",
            getattr(error, "remedy", None) or "see docs/reference.md for what stands there",
        ) from error


def _problem(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return getattr(error, "problem", str(error))


def _part(given: Mapping) -> ActionPart:
    words = {k: v for k, v in given.items() if k != "dims"}
    _check_texts(words)
    return ActionPart(**words, dims=_dims(given["dims"]))


def _check_texts(given: Mapping) -> None:
    for name, value in given.items():
        if not isinstance(value, str):
            raise VlaError(f"{name} is {value!r:.40}", "give text")


def _dims(given: Sequence[Mapping]) -> tuple[DimSpec, ...]:
    try:
        dims = tuple(DimSpec(**d) for d in given)
        for dim in dims:
            _check_texts(vars(dim))
        return dims
    except TypeError as error:
        raise VlaError(
            f"its dims are {given!r:.80} ({error})", "give a list of {name, unit, polarity}"
        ) from None


def _older(given: Mapping, usual: ActionSpec, dt: float) -> ActionSpec:
    """One list of dimensions with one frame and rotation; "joints" are those of arms."""
    if given.get("control", "delta") != "delta":
        raise VlaError(f"control is {given['control']!r}", "convert its actions to deltas first")
    rotation = given.get("rotation", usual.rotation)
    frame = given.get("frame", usual.frame)
    if "dims" not in given:
        return eef_delta_spec(rotation, frame, dt)
    dims = _dims(given["dims"])
    if rotation == "joints":
        return ActionSpec(_older_joints(dims), dt)
    names = tuple(d.name for d in dims)
    if rotation in ANGLES and names == eef_delta_spec(rotation).names:
        arm = ActionPart("arm", "eef_delta", dims[:6], frame, rotation)
        return ActionSpec((arm, ActionPart("gripper", "gripper", dims[6:])), dt)
    return ActionSpec((ActionPart("actions", "unknown", dims, frame, rotation),), dt)


def _older_joints(dims: Sequence[DimSpec]) -> tuple[ActionPart, ...]:
    """Joints by side, as their names begin; what ends in "gripper" is one."""
    groups: dict[tuple[str, str], list[DimSpec]] = {}
    for dim in dims:
        side = next((s for s in ("left_", "right_") if dim.name.startswith(s)), "")
        kind = "gripper" if dim.name.endswith("gripper") else "arm"
        groups.setdefault((side, kind), []).append(dim)
    if [d for group in groups.values() for d in group] != list(dims):
        raise VlaError("its joints are of one arm and then of another", "state its parts")
    kinds = {"arm": "joint_position", "gripper": "gripper"}
    return tuple(ActionPart(s + k, kinds[k], tuple(g)) for (s, k), g in groups.items())


# -- of statistics ----------------------------------------------------------------------------


def statistics_spec(statistics: Mapping, action_dim: int = 7, name: str = "") -> ActionSpec:
    """The action spec of a set of statistics.

    They may carry a `spec` (see `spec_to_json`, or its older form). Published ones don't: they go
    by their name, as their dataset does (`KNOWN`). Of an unknown name 7 dimensions are fixed-axis
    angles in the base frame at about 5 Hz, 14 are ALOHA's two arms as OpenVLA-OFT has them, and
    others have no name.
    """
    given, known = dict(statistics.get("spec", {})), find_known(name)
    if "spec" not in statistics and known is not None and len(KNOWN[known]) == action_dim:
        return KNOWN[known]
    usual = eef_delta_spec("rpy", "base", 0.2)
    if "parts" in given or "dims" in given or action_dim == 7:
        try:
            return spec_from_json(given, "the statistics' spec", usual)
        except VlaError as error:
            raise CheckpointError(error.problem, error.remedy) from error
    if action_dim == 14:
        return aloha_spec(given.get("dt", 0.04))
    return unknown_spec([f"dim_{i}" for i in range(action_dim)], given.get("dt", usual.dt))
