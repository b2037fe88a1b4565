"""Converts any model's action chunk to actions for `Simulation.step`."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.control.commands import check_chunk
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import in_si
from vla_inference.types import ActionChunk

FRAME = "base"  # robosuite's controller takes deltas in the axes of the robot's base


def sim_actions(chunk: ActionChunk) -> np.ndarray:
    """float64 [T, 7]: m and rotation vector rad in the base frame, gripper 1 open."""
    check_chunk(chunk)
    if chunk.spec.frame.lstrip("/") != FRAME:
        raise VlaError(
            f"the chunk's deltas are in frame {chunk.spec.frame!r}",
            f"this simulation takes frame {FRAME!r} only",
        )
    actions = in_si(chunk).actions.astype(np.float64)
    if chunk.spec.rotation == "rpy":
        actions[:, 3:6] = Rotation.from_euler("xyz", actions[:, 3:6]).as_rotvec()
    return actions
