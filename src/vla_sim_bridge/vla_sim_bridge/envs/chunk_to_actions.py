"""Converts any model's action chunk to actions of a simulated world."""

from __future__ import annotations

import numpy as np

from vla_inference.control.commands import check_chunk, check_steps, chunk_deltas
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import in_si
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


def base_actions(chunk: ActionChunk) -> np.ndarray:
    """float64 [T, 2]: m/s forwards and rad/s to the left, of a base with driven wheels."""
    found = [f"{p.name} ({p.kind})" for p in chunk.spec.parts]
    units = [d.unit.rpartition(" ")[2] for d in chunk.spec.dims]
    if [p.kind for p in chunk.spec.parts] != ["base_twist"] or units != ["m/s", "rad/s"]:
        raise VlaError(
            f"the chunk's {', '.join(found)} cannot be executed",
            "this simulation's base takes a base_twist of one m/s and one rad/s",
        )
    chunk = in_si(chunk)
    check_steps(chunk)
    return np.asarray(chunk.actions, np.float64)
