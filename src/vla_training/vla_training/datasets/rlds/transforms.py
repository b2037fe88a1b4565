"""Action conventions of known RLDS datasets, converted to one form.

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
from vla_inference.policies.action_specs import KNOWN, find_known
from vla_inference.types import ActionSpec

Arrays = Mapping[str, np.ndarray]
Transform = Callable[[Arrays], "tuple[np.ndarray, slice]"]

EVERY = slice(None)


def binarise_gripper(gripper: np.ndarray) -> np.ndarray:
    """[T] -> 1 above 0.95, 0 below 0.05, otherwise the value of the next decided step.

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
    """Actions as stored."""
    return arrays["action"], EVERY


def bridge(arrays: Arrays) -> tuple[np.ndarray, slice]:
    """Motion as the difference of states; drops the first step (all zeros) and the last."""
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


def open_again(gripper: np.ndarray) -> np.ndarray:
    """Relative [T], -1 opens, +1 closes, 0 as before -> 1 open, 0 closed.

    Before its first move it is what that move changes; one that never moves is open.
    """
    moves = np.where(gripper < -0.1, 1, np.where(gripper > 0.1, -1, 0))
    decided = np.flatnonzero(moves)
    state = -moves[decided[0]] if len(decided) else 1
    result = np.empty(len(moves))
    for t, move in enumerate(moves):
        state = move or state
        result[t] = (state + 1) / 2
    return result


# A dictionary's gripper by what stands in it: [T] -> 1 open, 0 closed.
GRIPPERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relative": open_again,
    "closed": lambda g: 1 - np.clip(g, 0, 1),
    "open": lambda g: g.astype(np.float64),
}


@dataclass(frozen=True)
class Joined:
    """Open X-Embodiment's dictionary of an action as one vector.

    gripper: which of GRIPPERS it is; empty where there is none, which is said to be closed.
    """

    gripper: str = "relative"
    turns: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        grippers = {"": (), "open": ("action/open_gripper",)}
        turns = ("action/rotation_delta",) if self.turns else ()
        named = grippers.get(self.gripper, ("action/gripper_closedness_action",))
        return ("action/world_vector", *turns, *named)

    def __call__(self, arrays: Arrays) -> tuple[np.ndarray, slice]:
        way = np.asarray(arrays["world_vector"], np.float64)
        turn = arrays["rotation_delta"] if self.turns else np.zeros_like(way)
        gripper = np.zeros(len(way))
        if self.gripper:
            stored = arrays[self.parts[-1].rpartition("/")[2]]
            gripper = GRIPPERS[self.gripper](stored.reshape(len(way), -1)[:, 0])
        return np.concatenate([way, turn, gripper[:, None]], axis=1), EVERY


def bridge_of_oxe(arrays: Arrays) -> tuple[np.ndarray, slice]:
    """Bridge 0.1.0: a dictionary; motion as `bridge` has it."""
    return bridge({"action": Joined("open")(arrays)[0], "state": arrays["state"]})


def taco_play(arrays: Arrays) -> tuple[np.ndarray, slice]:
    """The relative action in the world's axes; gripper -1 closed, +1 open -> 0 closed, 1 open."""
    action = arrays["rel_actions_world"]
    return np.concatenate([action[:, :6], np.clip(action[:, 6:7], 0, 1)], axis=1), EVERY


@dataclass(frozen=True)
class Conventions:
    """How to read a dataset.

    primary: names of images in the order models want them; others follow.
    actions: arrays below "steps/" that hold the action, known to the transform by the last part
        of their name; needs: further ones it takes.
    known: False where nothing but the layout is known, so that readers can say so.
    note: what the transform leaves out, for people.
    """

    name: str
    transform: Transform
    spec: ActionSpec
    primary: tuple[str, ...] = ()
    actions: tuple[str, ...] = ("action",)
    needs: tuple[str, ...] = ()
    known: bool = True
    note: str = ""


BRIDGE_NOTE = (
    "motion is read as the difference of states, without the first and last step of each episode"
)
LIBERO_NOTE = (
    "images are as LIBERO's RLDS sets publish them, turned by 180 degrees from the renderer's: "
    "upright, left and right exchanged; a model trained on them must be shown such images"
)
BRIDGE_CAMERAS = ("image_0", "image_1", "image_2", "image_3")
TWO = ("image", "wrist_image")
STATE = ("observation/state",)


def _joined(name: str, gripper: str = "relative", turns: bool = True) -> Conventions:
    transform = Joined(gripper, turns)
    return Conventions(name, transform, KNOWN[name], ("image",), transform.parts)


CONVENTIONS = {
    c.name: c
    for c in (
        Conventions(
            "bridge_orig",
            bridge,
            KNOWN["bridge_orig"],
            BRIDGE_CAMERAS,
            needs=STATE,
            note=BRIDGE_NOTE,
        ),
        Conventions(
            "bridge_dataset",
            bridge,
            KNOWN["bridge_dataset"],
            BRIDGE_CAMERAS,
            needs=STATE,
            note=BRIDGE_NOTE,
        ),
        Conventions(
            "bridge",
            bridge_of_oxe,
            KNOWN["bridge"],
            ("image",),
            Joined("open").parts,
            STATE,
            note=BRIDGE_NOTE,
        ),
        Conventions("bridge_raw", identity, KNOWN["bridge_raw"], BRIDGE_CAMERAS),
        Conventions("libero", libero, KNOWN["libero"], TWO, note=LIBERO_NOTE),
        Conventions(
            "taco_play",
            taco_play,
            KNOWN["taco_play"],
            ("rgb_static",),
            ("action/rel_actions_world",),
        ),
        _joined("fractal20220817_data"),
        _joined("kuka"),
        _joined("berkeley_autolab_ur5"),
        _joined("nyu_door_opening_surprising_effectiveness"),
        _joined("jaco_play", turns=False),
        _joined("berkeley_cable_routing", gripper=""),
        _joined("roboturk", gripper="closed"),
        _joined("viola", gripper="closed"),
        _joined("toto", gripper="open"),
        Conventions("rlds_dataset_builder", identity, KNOWN["bridge_raw"], TWO),
    )
}


def find_conventions(name: str) -> Conventions:
    """The conventions of a dataset by its name or name prefix ("bridge_orig_ep100").

    A name nobody knows gives the identity, with `known` False.
    """
    known = find_known(name) or name
    if known in CONVENTIONS:
        return CONVENTIONS[known]
    return unknown_conventions()


def unknown_conventions() -> Conventions:
    """Actions as stored, in Open X-Embodiment's usual form."""
    return replace(CONVENTIONS["rlds_dataset_builder"], known=False)


def get_conventions(name: str) -> Conventions:
    """The conventions that a user names; an unknown name is an error."""
    if name not in CONVENTIONS:
        raise DataError(f"unknown conventions {name!r}", f"known: {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
