"""Arithmetic on 4 x 4 poses (metres, world frame) and end-effector deltas."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def rotvec(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] -> rotation vector [3], rad."""
    return Rotation.from_matrix(rotation).as_rotvec()


def delta_between(pose: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The delta [6] (m, rad) from `pose` to `target`, both in the world frame.

    Translation is the difference; rotation is applied from the left: R* = exp(delta) R.
    """
    return np.concatenate([target[:3, 3] - pose[:3, 3], rotvec(target[:3, :3] @ pose[:3, :3].T)])


def apply_delta(pose: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The pose after `delta`; the inverse of `delta_between`."""
    target = np.eye(4)
    target[:3, 3] = pose[:3, 3] + delta[:3]
    target[:3, :3] = Rotation.from_rotvec(delta[3:6]).as_matrix() @ pose[:3, :3]
    return target


def turn_z(angle: float) -> np.ndarray:
    """4 x 4 rotation about z by `angle` rad."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", angle).as_matrix()
    return pose


def invert(pose: np.ndarray) -> np.ndarray:
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def rotation_angle(a: np.ndarray, b: np.ndarray) -> float:
    """The angle in rad between two rotation matrices."""
    return float(np.arccos(np.clip((np.trace(a[:3, :3] @ b[:3, :3].T) - 1) / 2, -1, 1)))


def interpolate(start: np.ndarray, goal: np.ndarray, steps: int) -> np.ndarray:
    """`steps` poses strictly between two: straight line, constant axis. [steps, 4, 4]"""
    turn = rotvec(goal[:3, :3] @ start[:3, :3].T)
    poses = np.tile(np.eye(4), (steps, 1, 1))
    for i in range(steps):
        share = (i + 1) / (steps + 1)
        poses[i, :3, 3] = (1 - share) * start[:3, 3] + share * goal[:3, 3]
        poses[i, :3, :3] = Rotation.from_rotvec(share * turn).as_matrix() @ start[:3, :3]
    return poses
