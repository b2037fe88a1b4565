"""Converts any model's action chunk to actions for `Simulation.step`."""

from __future__ import annotations

import numpy as np

from vla_inference.control.commands import check_chunk, chunk_deltas
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk

FRAME = "base"  # robosuite's controller takes deltas in the axes of the robot's base


def sim_actions(chunk: ActionChunk) -> np.ndarray:
    """float64 [T, 7]: m and rotation vector rad in the base frame, gripper 1 open."""
    check_chunk(chunk)
    deltas, grippers = chunk_deltas(chunk)
    if chunk.spec.frame.lstrip("/") != FRAME:
        raise VlaError(
            f"the chunk's deltas are in frame {chunk.spec.frame!r}",
            f"this simulation takes frame {FRAME!r} only",
        )
    if grippers is None:
        raise VlaError("the chunk has no gripper", "this simulation's arm needs one")
    return np.column_stack([deltas, grippers])
