"""Converts `ActionChunk` to and from vla_msgs/ActionChunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from geometry_msgs.msg import Vector3

from vla_inference.control.commands import check_chunk, check_rotation
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import in_si, si_spec
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import EefDelta, ModelInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from builtin_interfaces.msg import Time

    from vla_inference.policies.base import Policy


def chunk_to_steps(chunk: ActionChunk, frame_id: str = "") -> list[EefDelta]:
    """The steps of a chunk as messages.

    frame_id: name of the frame the deltas are expressed in; empty takes the spec's.
    """
    check_chunk(chunk)
    spec, chunk = chunk.spec, in_si(chunk)
    frame = frame_id or spec.frame
    _check_frame(frame)
    return [
        EefDelta(
            translation=Vector3(x=x, y=y, z=z),
            rotation=Vector3(x=rx, y=ry, z=rz),
            rotation_convention=spec.rotation,
            gripper=gripper,
            dt=spec.dt,
            frame_id=frame,
        )
        for x, y, z, rx, ry, rz, gripper in chunk.actions.astype(np.float64).tolist()
    ]


def chunk_to_msg(
    chunk: ActionChunk, stamp: Time, *, frame_id: str = "", instruction: str = "", model: str = ""
) -> ActionChunkMsg:
    """An ActionChunk message that answers the image of this stamp; `produced` is left zero."""
    msg = ActionChunkMsg(instruction=instruction, model=model)
    msg.steps = chunk_to_steps(chunk, frame_id)
    msg.header.stamp = stamp
    msg.header.frame_id = frame_id or chunk.spec.frame
    msg.stage_names = list(chunk.timing)
    msg.stage_ms = [float(v) for v in chunk.timing.values()]
    return msg


def steps_to_chunk(steps: Sequence[EefDelta]) -> ActionChunk:
    """The chunk of a sequence of steps, all of one frame, convention and duration."""
    _check(len(steps) > 0, "the chunk has no steps", "give at least one")
    first = steps[0]
    kind = (first.rotation_convention, first.dt, first.frame_id)
    check_rotation(first.rotation_convention)
    _check_frame(first.frame_id)
    rows = []
    for i, s in enumerate(steps):
        _check(
            (s.rotation_convention, s.dt, s.frame_id) == kind,
            f"step {i} has another convention, dt or frame than step 0",
            "all steps of a chunk must share them",
        )
        t, r = s.translation, s.rotation
        rows.append((t.x, t.y, t.z, r.x, r.y, r.z, s.gripper))
    actions = np.array(rows, np.float64)
    chunk = ActionChunk(
        actions, eef_delta_spec(first.rotation_convention, first.frame_id, first.dt)
    )
    check_chunk(chunk)
    _check(
        bool(((actions[:, 6] >= -0.5) & (actions[:, 6] <= 1.5)).all()),
        f"gripper values from {actions[:, 6].min():g} to {actions[:, 6].max():g}",
        "1 is open and 0 is closed",
    )
    return chunk


def msg_to_chunk(msg: ActionChunkMsg) -> ActionChunk:
    """The chunk in a message; raises VlaError if it must not be executed."""
    chunk = steps_to_chunk(msg.steps)
    chunk.timing = dict(zip(msg.stage_names, msg.stage_ms, strict=False))
    return chunk


def policy_info(policy: Policy, frame_id: str = "") -> ModelInfo:
    """Describes a policy; frame_id as for `chunk_to_msg`. Stamp, cameras and times stay zero."""
    spec = si_spec(policy.action_spec())
    return ModelInfo(
        model=policy.name,
        unnorm_key=str(policy.action_space or ""),
        state_dim=policy.needs.state,
        chunk=policy.chunk,
        dt=spec.dt,
        frame_id=frame_id or spec.frame,
        rotation_convention=spec.rotation,
        dims=list(spec.names),
        units=[d.unit for d in spec.dims],
    )


def _check_frame(frame: str) -> None:
    _check(bool(frame), "the deltas' frame_id is empty", "name the frame, such as 'base'")


def _check(condition: bool, problem: str, remedy: str) -> None:
    if not condition:
        raise VlaError(problem, remedy)
