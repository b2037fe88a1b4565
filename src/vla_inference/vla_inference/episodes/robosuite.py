"""Conversion between SI actions and robosuite's units and signs, as stored in demonstrations.

Facts about robosuite 1.5.2: OSC_POSE takes deltas in the base frame, scaled by 0.05 m and 0.5 rad;
the gripper is -1 open, +1 closed.
"""

from __future__ import annotations

import numpy as np

POSITION_SCALE = 0.05  # m per unit of robosuite action (controller output_max)
ROTATION_SCALE = 0.5  # rad
CONTROL_FREQ = 20.0  # Hz
ACTION_SCALE = np.array([POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3)


def to_robosuite(action: np.ndarray) -> np.ndarray:
    """SI delta (m, rad, gripper 1 open) -> robosuite's 7 numbers in [-1, 1] (gripper -1 open)."""
    action = np.asarray(action, np.float64)
    arm = np.clip(action[..., :6] / ACTION_SCALE, -1.0, 1.0)
    gripper = np.where(action[..., 6:7] > 0.5, -1.0, 1.0)
    return np.concatenate([arm, gripper], axis=-1)


def from_robosuite(action: np.ndarray) -> np.ndarray:
    """robosuite's 7 numbers -> SI delta (m, rad, gripper 1 open): undoes `to_robosuite`."""
    action = np.asarray(action, np.float64)
    gripper = (1.0 - action[..., 6:7]) / 2.0
    return np.concatenate([action[..., :6] * ACTION_SCALE, gripper], axis=-1)
