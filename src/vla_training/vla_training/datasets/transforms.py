"""What the actions of known RLDS data sets mean, and how they are brought to one form.

A transform takes the arrays of one episode by name ("action", "state", ... [T, ...]) and gives the
actions of those steps that stay. All results end in the gripper: 1 open, 0 closed.
Source: openvla/openvla prismatic/vla/datasets/rlds/oxe/{transforms,utils/droid_utils}.py and
utils/data_utils.py (behaviour).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from vla_inference.errors import DataError
from vla_inference.types import ActionSpec, DimSpec, eef_delta_spec

Arrays = Mapping[str, np.ndarray]
Transform = Callable[[Arrays], "tuple[np.ndarray, slice]"]

EVERY = slice(None)


def binarise_gripper(gripper: np.ndarray) -> np.ndarray:
    """[T] -> 1 where above 0.95, 0 where below 0.05, else as the next decided step.

    What is undecided to the very end keeps the last value, as the original has it.
    """
    result = np.empty_like(gripper)
    carry = gripper[-1] if len(gripper) else 0
    for t in range(len(gripper) - 1, -1, -1):
        if gripper[t] > 0.95:
            carry = 1
        elif gripper[t] < 0.05:
            carry = 0
        result[t] = carry
    return result


def identity(arrays: Arrays) -> tuple[np.ndarray, slice]:
    """Actions as they are stored."""
    return arrays["action"], EVERY


def bridge(arrays: Arrays) -> tuple[np.ndarray, slice]:
    """Motion as the difference of states; the first step (all zeros) and the last are dropped."""
    action, state = arrays["action"], arrays["state"]
    if len(action) < 3:
        return action[:0], slice(0, 0)
    keep = slice(1, len(action) - 1)
    gripper = binarise_gripper(action[1:, 6])
    motion = state[2:, :6] - state[1:-1, :6]
    return np.concatenate([motion, gripper[:-1, None]], axis=1), keep


def libero(arrays: Arrays) -> tuple[np.ndarray, slice]:
    """Gripper -1 open, +1 closed -> 1 open, 0 closed; motion in robosuite's [-1, 1]."""
    action = arrays["action"]
    return np.concatenate([action[:, :6], 1 - np.clip(action[:, 6:], 0, 1)], axis=1), EVERY


@dataclass(frozen=True)
class Conventions:
    """How to read a data set.

    primary: names of pictures in the order models want them; others follow.
    needs: arrays the transform takes beside "action".
    known: False where nothing but the layout is known, so that readers can say so.
    note: what the transform leaves out, for people.
    """

    name: str
    transform: Transform
    spec: ActionSpec
    primary: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    known: bool = True
    note: str = ""


def _normalised(spec: ActionSpec) -> ActionSpec:
    dims = tuple(DimSpec(d.name, "1", d.polarity) for d in spec.dims)
    return replace(spec, dims=dims)


OXE = eef_delta_spec("rpy", "base", 0.2)
BRIDGE_NOTE = (
    "motion is read as the difference of states, without the first and last step of each episode"
)
BRIDGE_CAMERAS = ("image_0", "image_1", "image_2", "image_3")
LIBERO_SPEC = _normalised(eef_delta_spec("rotvec", "base", 0.05))

CONVENTIONS = {
    c.name: c
    for c in (
        Conventions("bridge_orig", bridge, OXE, BRIDGE_CAMERAS, ("state",), note=BRIDGE_NOTE),
        Conventions("bridge_dataset", bridge, OXE, BRIDGE_CAMERAS, ("state",), note=BRIDGE_NOTE),
        Conventions("bridge_raw", identity, OXE, BRIDGE_CAMERAS),
        Conventions("libero", libero, LIBERO_SPEC, ("image", "wrist_image")),
        Conventions("rlds_dataset_builder", identity, OXE, ("image", "wrist_image")),
    )
}


def find_conventions(name: str) -> Conventions:
    """Those of a data set by its name or by how its name begins ("bridge_orig_ep100").

    A name nobody knows gives the identity, with `known` False.
    """
    matches = [k for k in CONVENTIONS if name == k or name.startswith(k + "_")]
    if matches:
        return CONVENTIONS[max(matches, key=len)]
    return replace(CONVENTIONS["rlds_dataset_builder"], known=False)


def get_conventions(name: str) -> Conventions:
    """Those a user names; an unknown name is an error."""
    if name not in CONVENTIONS:
        raise DataError(f"unknown conventions {name!r}", f"known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
