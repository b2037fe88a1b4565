"""The action convention of an HDF5 file, as the file or its user states it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from vla_inference.episodes.hdf5 import CONVENTION
from vla_inference.episodes.robocasa import (
    COLUMNS,
    ROBOTS,
    from_robocasa,
    robocasa_spec,
    to_robocasa,
)
from vla_inference.errors import DataError
from vla_inference.types import ActionSpec, base_twist_spec, eef_delta_spec
from vla_training.datasets.action_form import spec_from_json

GRIPPERS = {  # offset and factor that make 1 open, 0 closed
    "-1 open, +1 closed": (0.5, -0.5),
    "+1 open, -1 closed": (0.5, 0.5),
    "1 open, 0 closed": (0.0, 1.0),
    "0 open, 1 closed": (1.0, -1.0),
}
ROBOSUITE = 1  # robomimic's number of the simulator, `type` in env_args
STATE_IT = (
    'say what the actions mean: --read \'action_convention={"scale": [6 numbers that make m and '
    'rad of them], "gripper": "-1 open, +1 closed", "control_freq": 20}\', with "absolute": true '
    'for target poses, or a "spec" of named dimensions'
)
KEYS = ("scale", "gripper", "control_freq", "spec", "delta", "absolute")


@dataclass(frozen=True)
class Convention:
    """Converts a file's numbers to those of `spec`: motion * scale, gripper offset + factor *
    g.

    absolute: the first six are a target pose (m, rotation vector), not a delta.
    limit: what the controller takes of a delta, where the file states one; 0: not known.
    robot: robosuite's name of the arm, where the file states it.
    in_base: target poses are in the axes of the robot's base rather than the world's.
    """

    spec: ActionSpec
    scale: tuple[float, ...]
    gripper: tuple[float, float]
    absolute: bool = False
    limit: float = field(default=0.0, compare=False)
    robot: str = field(default="", compare=False)
    in_base: bool = field(default=False, compare=False)

    @property
    def columns(self) -> int:
        """How many numbers an action has in the file."""
        return len(self.spec)

    def read(self, actions: np.ndarray) -> np.ndarray:
        """float64 [T, D] in the units of `spec`."""
        actions = np.asarray(actions, np.float64)
        offset, factor = self.gripper
        motion = actions[:, :-1] * np.array(self.scale)
        return np.concatenate([motion, offset + factor * actions[:, -1:]], axis=1)

    def write(self, actions: np.ndarray) -> np.ndarray:
        """The inverse of `read`."""
        actions = np.asarray(actions, np.float64)
        offset, factor = self.gripper
        motion = actions[:, :-1] / np.array(self.scale)
        return np.concatenate([motion, (actions[:, -1:] - offset) / factor], axis=1)


class RobocasaConvention(Convention):
    """RoboCasa's arm on a base, whose twelve numbers are eleven in SI."""

    @property
    def columns(self) -> int:
        return COLUMNS

    def read(self, actions: np.ndarray) -> np.ndarray:
        return from_robocasa(actions)

    def write(self, actions: np.ndarray) -> np.ndarray:
        return to_robocasa(actions)


def default_convention() -> Convention:
    """robosuite's OSC_POSE, as in robomimic's and MimicGen's files."""
    spec = eef_delta_spec("rotvec", "base", 1 / CONVENTION["control_freq"])
    return Convention(spec, tuple(CONVENTION["scale"]), GRIPPERS[CONVENTION["gripper"]])


def rover_convention() -> Convention:
    """A rover's velocities, in SI."""
    return Convention(base_twist_spec(), (1.0,), GRIPPERS["1 open, 0 closed"])


def read_convention(
    data: h5py.Group, where: str, given: str | Mapping | None = None
) -> tuple[Convention, list[str]]:
    """The action convention of a file, and notes on assumptions.

    given: the user's word, which goes first: "osc_pose", "absolute", or the object that
    `data.attrs["action_convention"]` holds. Then that attribute counts, then the controller that
    env_args name. Raises DataError where they name one that is not read here.
    """
    if given is not None:
        return _given(given, data), []
    text = data.attrs.get("action_convention")
    if text is None:
        return _of_controller(data, where)
    where = f"{where}: data.attrs['action_convention']"
    try:
        stated = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where} is not a valid JSON object ({error})", "write it again"
        ) from error
    return _stated(stated, where, data), []


# -- stated in our own words ------------------------------------------------------------------


def _given(given: str | Mapping, data: h5py.Group) -> Convention:
    named: dict[str, dict] = {"osc_pose": {"absolute": False}, "absolute": {"absolute": True}}
    where = "the option action_convention"
    if isinstance(given, str):
        if given not in named:
            raise DataError(
                f"{where} is {given!r}", f"known: {', '.join(named)}, or a JSON object"
            )
        given = named[given]
    if not isinstance(given, Mapping):
        raise DataError(f"{where} is {given!r:.60}", "give a JSON object")
    if unknown := set(given) - set(KEYS):
        raise DataError(
            f"{where} names unknown {', '.join(sorted(unknown))}", f"known: {', '.join(KEYS)}"
        )
    return _stated({"absolute": False, **given}, where, data)


def _stated(given: Mapping[str, Any], where: str, data: h5py.Group) -> Convention:
    """The convention in an action_convention object; the robot is the one in env_args."""
    arm = _read_controller(data, where)
    usual, own_spec = default_convention(), "spec" in given
    try:
        spec = spec_from_json(given["spec"], where) if own_spec else usual.spec
        rate = float(given.get("control_freq", CONVENTION["control_freq"]))
        default = np.ones(len(spec) - 1) if own_spec else CONVENTION["scale"]
        stated = np.asarray(given.get("scale", default), float)
        scale = tuple(np.broadcast_to(stated, len(spec) - 1 if stated.ndim == 0 else stated.shape))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where} is not a valid JSON object ({error})", "write it again"
        ) from error
    plain = own_spec and spec.names[-1] != "gripper"
    gripper = given.get("gripper", "1 open, 0 closed" if plain else CONVENTION["gripper"])
    if gripper not in GRIPPERS:
        raise DataError(f"{where} has gripper {gripper!r}", f"known: {'; '.join(GRIPPERS)}")
    if not own_spec:
        spec = eef_delta_spec("rotvec", "base", 1 / rate if rate > 0 else 0)
    if not rate > 0 or len(scale) != len(spec) - 1 or not all(scale):
        raise DataError(
            f"{where} has control_freq {rate:g} and {len(scale)} scales",
            f"give a rate above 0 and {len(spec) - 1} scales other than 0",
        )
    delta = given.get("delta", CONVENTION["delta"])
    if not own_spec and delta != CONVENTION["delta"]:
        raise DataError(f"{where} has delta {delta!r}", f"we read {CONVENTION['delta']!r}")
    absolute = bool(given.get("absolute", arm.absolute))
    return Convention(
        spec,
        tuple(float(s) for s in scale),
        GRIPPERS[gripper],
        absolute,
        robot=arm.robot,
        in_base=arm.in_base,
    )


# -- stated by env_args -----------------------------------------------------------------------


@dataclass(frozen=True)
class Controller:
    """The arm's controller in env_args (robomimic) or env_info (robosuite's collection script).

    settings: those of the one arm's controller as both robosuite 1.4 and 1.5 have them.
    """

    simulator: Any = ROBOSUITE
    environment: str = ""
    robot: str = ""
    rate: Any = CONVENTION["control_freq"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    arms: int = 1

    @property
    def kind(self) -> str:
        return str(self.settings.get("type", ""))

    @property
    def absolute(self) -> bool:
        given = self.settings
        return given.get("control_delta") is False or given.get("input_type") == "absolute"

    @property
    def in_base(self) -> bool:
        """robosuite 1.5 takes poses in base axes by default; 1.4 in world axes."""
        new = "input_type" in self.settings
        return self.settings.get("input_ref_frame", "base" if new else "world") == "base"


def _of_controller(data: h5py.Group, where: str) -> tuple[Convention, list[str]]:
    stated, usual = _read_controller(data, where), default_convention()
    if stated.simulator != ROBOSUITE:
        raise DataError(
            f"{where} was recorded in {stated.environment or 'an environment'} (type "
            f"{stated.simulator} in env_args), not in robosuite (type {ROBOSUITE})",
            STATE_IT,
        )
    if stated.arms > 1:
        raise DataError(f"{where}: env_args name {stated.arms} arms", STATE_IT)
    if stated.kind not in ("", "OSC_POSE"):
        raise DataError(
            f"{where}: env_args name the controller {stated.kind}, only OSC_POSE is read", STATE_IT
        )
    scale, limit = _scale(stated.settings, where)
    if stated.robot in ROBOTS and scale == usual.scale and _columns(data) == COLUMNS:
        spec = robocasa_spec(1 / _rate(stated, where))
        return RobocasaConvention(spec, (), usual.gripper, limit=limit, robot=stated.robot), []
    notes = []
    if not stated.kind:
        notes.append(
            f"{where} states no action_convention: taken for robosuite's OSC_POSE "
            f"(0.05 m, 0.5 rad, gripper -1 open) at {_rate(stated, where):g} Hz"
        )
    if stated.settings.get("input_ref_frame") == "world":
        notes.append(f"{where} has deltas in the world's axes: taken for those of the arm's base")
    spec = eef_delta_spec("rotvec", "base", 1 / _rate(stated, where))
    return Convention(
        spec, scale, usual.gripper, stated.absolute, limit, stated.robot, stated.in_base
    ), notes


def _columns(data: h5py.Group) -> int:
    """How many numbers the actions of the first demonstration have; 0: it has none."""
    for demo in data.values():
        actions = demo.get("actions") if isinstance(demo, h5py.Group) else None
        if isinstance(actions, h5py.Dataset) and actions.ndim == 2:
            return int(actions.shape[1])
    return 0


def _rate(stated: Controller, where: str) -> float:
    if isinstance(stated.rate, (int, float)) and 0 < stated.rate < math.inf:
        return float(stated.rate)
    raise DataError(f"{where}: env_args have control_freq {stated.rate!r}", STATE_IT)


def _scale(settings: Mapping[str, Any], where: str) -> tuple[tuple[float, ...], float]:
    """Scale of each of the six numbers, and the controller's limits."""

    def six(key: str, default: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(settings.get(key, default), float), 6)

    reach = np.array(CONVENTION["scale"])
    try:
        low, high = six("input_min", -1), six("input_max", 1)
        least, most = six("output_min", -reach), six("output_max", reach)
    except (ValueError, TypeError) as error:
        problem = f"{where}: env_args have limits of other sizes ({error})"
        raise DataError(problem, STATE_IT) from error
    if not (high > low).all() or not np.allclose(low, -high) or not np.allclose(least, -most):
        raise DataError(
            f"{where}: env_args scale {low.tolist()} to {high.tolist()} to {least.tolist()} to "
            f"{most.tolist()}, which is not symmetric",
            STATE_IT,
        )
    if not (most > 0).all():
        raise DataError(f"{where}: env_args have output_max {most.tolist()}", STATE_IT)
    return tuple((most / high).tolist()), float(high.max())


def _read_controller(data: h5py.Group, where: str) -> Controller:
    text = data.attrs.get("env_args", data.attrs.get("env_info"))
    if text is None:
        return Controller()
    try:
        tree = dict(json.loads(text))
        kwargs = dict(tree.get("env_kwargs", tree))
        found = kwargs.get("controller_configs") or {}
        arms = found if isinstance(found, list) else _arms(found)
        settings = dict(arms[0]) if arms else {}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: env_args cannot be read ({error})", STATE_IT) from error
    robots = kwargs.get("robots") or ""
    robots = [robots] if isinstance(robots, str) else list(robots)
    return Controller(
        tree.get("type", ROBOSUITE),
        str(tree.get("env_name", "")),
        str(robots[0]),
        kwargs.get("control_freq", CONVENTION["control_freq"]),
        settings,
        max(len(arms), len(robots)),
    )


def _arms(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The arms' controllers: the config itself (1.4), or parts of a composite one (1.5)."""
    if "body_parts" not in config:
        return [config] if config else []
    parts = config["body_parts"]
    parts = parts.get("arms", parts)
    return [parts[side] for side in ("right", "left") if side in parts]
