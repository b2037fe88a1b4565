"""RoboCasa's actions: an arm on a base that drives in any direction (robosuite's PandaOmron).

Twelve numbers of -1 to 1: motion of the hand as robosuite's OSC_POSE takes it (3 and 3), gripper
(-1 open), base forwards, left and turning left, torso upwards, and the mode (above 0: the base
moves). In SI they are eleven: the mode says nothing that the base's numbers do not.
"""

from __future__ import annotations

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ, from_robosuite, to_robosuite
from vla_inference.types import ActionPart, ActionSpec, DimSpec, eef_part, gripper_part

COLUMNS = 12
ROBOTS = ("PandaOmron", "PandaMobile")  # the second is the older name
# What a full action of the base asks its controller for. Friction takes about 0.25 m/s of it.
BASE_SCALE = np.array([1.0, 1.0, 1.0])  # m/s, m/s, rad/s
TORSO_SCALE = 0.05  # m
# In a published state [16]: position and quaternion (xyzw) of the base, the hand in its axes, both
# fingers.
STATE = (
    "robot0_base_pos",
    "robot0_base_quat",
    "robot0_base_to_eef_pos",
    "robot0_base_to_eef_quat",
    "robot0_gripper_qpos",
)


def robocasa_spec(dt: float = 1 / CONTROL_FREQ) -> ActionSpec:
    """Eleven numbers: hand, gripper, base, torso."""
    base = (DimSpec("forwards", "m/s"), DimSpec("left", "m/s"), DimSpec("turn", "rad/s"))
    return ActionSpec(
        (
            eef_part(),
            gripper_part(),
            ActionPart("base", "base_twist", base, "base"),
            ActionPart("torso", "joint_delta", (DimSpec("torso", "m"),)),
        ),
        dt,
    )


def from_robocasa(actions: np.ndarray) -> np.ndarray:
    """[..., 12] as RoboCasa takes them -> [..., 11] of `robocasa_spec`."""
    actions = np.asarray(actions, np.float64)
    arm = from_robosuite(actions[..., :7])
    base, torso = actions[..., 7:10] * BASE_SCALE, actions[..., 10:11] * TORSO_SCALE
    return np.concatenate([arm, base, torso], axis=-1)


def to_robocasa(actions: np.ndarray) -> np.ndarray:
    """Undoes `from_robocasa`, within -1 and 1. The base's mode is on where base or torso move."""
    actions = np.asarray(actions, np.float64)
    rest = np.concatenate(
        [actions[..., 7:10] / BASE_SCALE, actions[..., 10:11] / TORSO_SCALE], axis=-1
    )
    moves = np.abs(rest).max(axis=-1, keepdims=True) > 1e-6
    arm = to_robosuite(actions[..., :7])
    return np.concatenate([arm, np.clip(rest, -1, 1), np.where(moves, 1.0, -1.0)], axis=-1)
