"""Action conventions (delta or absolute, units, rotation, gripper) and conversion between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_inference.errors import DataError, VlaError
from vla_inference.policies import action_specs
from vla_inference.types import ANGLES, OPEN, ActionSpec

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

SPEC_FILE = "action_spec.json"


def spec_from_json(given: Mapping, where: str) -> ActionSpec:
    """Undoes `spec_to_json`; DataError where it can't be read."""
    try:
        return action_specs.spec_from_json(given, where)
    except VlaError as error:
        raise DataError(error.problem, error.remedy) from error


def read_spec(path: Path) -> ActionSpec:
    """The spec in an action_spec.json."""
    try:
        given = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error})", "copy the dataset again") from error
    return spec_from_json(given, str(path))


def is_eef_delta(spec: ActionSpec) -> bool:
    """Whether it is one arm's x y z and three angles, then its gripper, 1 open."""
    kinds = [p.kind for p in spec.parts]
    one = kinds == ["eef_delta", "gripper"] and len(spec) == 7
    return one and spec.dims[-1].polarity in ("", OPEN)


def _check_eef_delta(spec: ActionSpec, what: str) -> None:
    if not is_eef_delta(spec):
        raise DataError(
            f"{what} needs an end-effector delta and gripper, the actions are "
            f"{', '.join(spec.names)} ({'; '.join(map(str, spec.parts))})",
            "convert without it",
        )


# -- conversions ------------------------------------------------------------------------------


def with_rotation(spec: ActionSpec, rotation: str) -> ActionSpec:
    """The same spec with angles of another convention ("rotvec" or "rpy")."""
    if rotation not in ANGLES:
        raise DataError(f"unknown rotation convention {rotation!r}", "use 'rotvec' or 'rpy'")
    if spec.rotation == rotation:
        return spec
    _check_eef_delta(spec, f"rotation {rotation}")
    if spec.dims[3].unit != "rad":
        raise DataError(
            f"the angles are in unit {spec.dims[3].unit!r}, not rad",
            "their convention cannot be changed",
        )
    arm, gripper = spec.parts
    angles = [replace(d, name=n) for d, n in zip(arm.dims[3:], ANGLES[rotation], strict=True)]
    turned = replace(arm, dims=(*arm.dims[:3], *angles), rotation=rotation)
    return replace(spec, parts=(turned, gripper))


def convert_rotation(actions: np.ndarray, old: ActionSpec, new: ActionSpec) -> np.ndarray:
    """Actions [T, 7] of `old` as those of `new`, which may differ only in rotation; float64."""
    actions = np.array(actions, np.float64)
    if old.rotation != new.rotation:
        turns = turns_of(actions[:, 3:6], old.rotation)
        actions[:, 3:6] = angles_of(turns, new.rotation)
    return actions


def turns_of(angles: np.ndarray, rotation: str) -> Rotation:
    """Angles [..., 3] of a convention as rotations."""
    from scipy.spatial.transform import Rotation  # half of a worker's start, seldom needed

    if rotation == "rpy":
        return Rotation.from_euler("xyz", angles)  # fixed axes
    return Rotation.from_rotvec(angles)


def angles_of(turns: Rotation, rotation: str) -> np.ndarray:
    """Undoes `turns_of`."""
    return turns.as_euler("xyz") if rotation == "rpy" else turns.as_rotvec()


def join_actions(
    actions: np.ndarray, spec: ActionSpec, size: int, starts: np.ndarray | None = None
) -> np.ndarray:
    """Combines `size` deltas into one, for each window of actions [T, 7] starting at `starts`.

    The motion is what they add up to, the gripper the last one's. In the base frame positions add
    up and each rotation is applied from the left; in the tool's frame each delta is applied where
    the one before has led. A window that reaches beyond the end is shorter.
    starts: [K], each `size`-th step if left out. Returns float64 [K, 7].
    """
    actions = np.asarray(actions, np.float64)
    starts = np.arange(0, len(actions), size) if starts is None else np.asarray(starts)
    if size == 1 or not len(actions):
        return actions[starts]
    _check_eef_delta(spec, "joining actions")
    if spec.dims[0].unit != "m" or spec.dims[3].unit != "rad":
        raise DataError(
            "the actions are not in m and rad, so they cannot be added up", "leave every action"
        )
    still = np.zeros((1, actions.shape[1]))
    padded = np.concatenate([actions, np.repeat(still, size, axis=0)])
    way, turn = np.zeros((len(starts), 3)), turns_of(np.zeros((len(starts), 3)), "rotvec")
    for k in range(size):
        rows = padded[starts + k]
        step = turns_of(rows[:, 3:6], spec.rotation)
        way, turn = advance(way, turn, rows[:, :3], step, spec.frame)
    last = np.minimum(starts + size, len(actions)) - 1
    return np.concatenate([way, angles_of(turn, spec.rotation), actions[last, 6:]], axis=1)


def advance(
    way: np.ndarray, turn: Rotation, move: np.ndarray, step: Rotation, frame: str
) -> tuple[np.ndarray, Rotation]:
    """The motion (way [..., 3], turn) followed by another one, in the base's or tool's axes."""
    if frame == "tool":
        return way + turn.apply(move), turn * step
    return way + move, step * turn


def absolute_to_delta(targets: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Targets [T, 6] (m, rotation vector) and the arm's poses [T, 4, 4] -> deltas.

    In the base frame, the rotation applied from the left: R_target = R_delta R.
    """
    from scipy.spatial.transform import Rotation

    turns = Rotation.from_rotvec(targets[:, 3:6]) * Rotation.from_matrix(poses[:, :3, :3]).inv()
    return np.concatenate([targets[:, :3] - poses[:, :3, 3], turns.as_rotvec()], axis=1)
