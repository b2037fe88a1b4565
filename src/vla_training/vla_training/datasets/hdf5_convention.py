"""What the numbers of an HDF5 file's actions mean, as the file states it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import h5py
import numpy as np

from vla_inference.errors import DataError
from vla_inference.types import ActionSpec, eef_delta_spec
from vla_sim_bridge.hdf5 import CONVENTION
from vla_training.datasets.action_form import spec_from_json

GRIPPERS = {  # offset and factor that make 1 open, 0 closed
    "-1 open, +1 closed": (0.5, -0.5),
    "+1 open, -1 closed": (0.5, 0.5),
    "1 open, 0 closed": (0.0, 1.0),
    "0 open, 1 closed": (1.0, -1.0),
}


@dataclass(frozen=True)
class Convention:
    """How a file's numbers become those of `spec`: motion * scale, gripper offset + factor * g.

    absolute: the first six are a target pose (m, rotation vector), not a delta.
    """

    spec: ActionSpec
    scale: tuple[float, ...]
    gripper: tuple[float, float]
    absolute: bool = False

    def read(self, actions: np.ndarray) -> np.ndarray:
        """float64 [T, D] in the units of `spec`."""
        actions = np.asarray(actions, np.float64)
        offset, factor = self.gripper
        motion = actions[:, :-1] * np.array(self.scale)
        return np.concatenate([motion, offset + factor * actions[:, -1:]], axis=1)

    def write(self, actions: np.ndarray) -> np.ndarray:
        """Undoes `read`."""
        actions = np.asarray(actions, np.float64)
        offset, factor = self.gripper
        motion = actions[:, :-1] / np.array(self.scale)
        return np.concatenate([motion, (actions[:, -1:] - offset) / factor], axis=1)


def default_convention() -> Convention:
    """robosuite's OSC_POSE: what robomimic's and MimicGen's files hold."""
    spec = eef_delta_spec("rotvec", "base", 1 / CONVENTION["control_freq"])
    return Convention(spec, tuple(CONVENTION["scale"]), GRIPPERS[CONVENTION["gripper"]])


def read_convention(data: h5py.Group, where: str) -> tuple[Convention, bool]:
    """What a file states about its actions, and whether it states anything."""
    usual = default_convention()
    text, control = data.attrs.get("action_convention"), _absolute(data)
    if text is None:
        return Convention(usual.spec, usual.scale, usual.gripper, control), False
    where = f"{where}: data.attrs['action_convention']"
    try:
        given = dict(json.loads(text))
        rate = float(given.get("control_freq", CONVENTION["control_freq"]))
        scale = tuple(float(s) for s in given.get("scale", CONVENTION["scale"]))
        spec = spec_from_json(given["spec"], where) if "spec" in given else usual.spec
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} is no JSON object of ours ({error})", "write it anew") from error
    gripper = given.get("gripper", CONVENTION["gripper"])
    if gripper not in GRIPPERS:
        raise DataError(f"{where} has gripper {gripper!r}", f"known: {'; '.join(GRIPPERS)}")
    if "spec" not in given:
        spec = eef_delta_spec("rotvec", "base", 1 / rate if rate > 0 else 0)
    if not rate > 0 or len(scale) != len(spec) - 1 or not all(scale):
        raise DataError(
            f"{where} has control_freq {rate:g} and {len(scale)} scales",
            f"give a rate above 0 and {len(spec) - 1} scales other than 0",
        )
    delta = given.get("delta", CONVENTION["delta"])
    if "spec" not in given and delta != CONVENTION["delta"]:
        raise DataError(f"{where} has delta {delta!r}", f"we read {CONVENTION['delta']!r}")
    return Convention(spec, scale, GRIPPERS[gripper], control), True


def _absolute(data: h5py.Group) -> bool:
    """Whether env_args name a controller that takes poses (robosuite 1.4 and 1.5 alike)."""
    try:
        tree = json.loads(data.attrs.get("env_args", "{}"))
    except ValueError:
        return False
    found = []

    def walk(node) -> None:
        if isinstance(node, dict):
            if node.get("type") in ("OSC_POSE", None):
                found.append(
                    node.get("control_delta") is False or node.get("input_type") == "absolute"
                )
            for value in node.values():
                walk(value)

    walk(tree.get("env_kwargs", {}) if isinstance(tree, dict) else {})
    return any(found)
