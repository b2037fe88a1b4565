"""Converts `ActionChunk` to and from vla_msgs/ActionChunk."""

from __future__ import annotations

import array
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vla_inference.control.commands import check_dt, check_steps
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import check_si, in_si, part_of, si_spec
from vla_inference.types import EEF, ActionChunk, ActionSpec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import ActionPart as ActionPartMsg
from vla_msgs.msg import ModelInfo

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

    from vla_inference.policies.base import Policy


MOST_PARTS, MOST_NUMBERS = 64, 1024  # of a step; to look at more takes too long


def chunk_to_msg(
    chunk: ActionChunk, stamp: Time, *, frame_id: str = "", instruction: str = "", model: str = ""
) -> ActionChunkMsg:
    """An ActionChunk message that answers the image of this stamp; `produced` is left zero.

    frame_id: name of the frame that end effectors' numbers are in; empty takes the spec's.
    """
    chunk = in_si(chunk)
    check_steps(chunk)
    msg = ActionChunkMsg(instruction=instruction, model=model)
    msg.parts = _part_messages(chunk.spec, frame_id)
    msg.dt = chunk.spec.dt
    msg.actions = array.array("d", np.asarray(chunk.actions, np.float64).tobytes())
    msg.header.stamp = stamp
    msg.header.frame_id = (frame_id if chunk.spec.eef else "") or chunk.spec.frame
    msg.stage_names = list(chunk.timing)
    msg.stage_ms = [float(v) for v in chunk.timing.values()]
    return msg


def _part_messages(spec: ActionSpec, frame_id: str) -> list[ActionPartMsg]:
    """Anew each time: messages can be changed."""
    return [
        ActionPartMsg(
            name=p.name,
            kind=p.kind,
            dims=[d.name for d in p.dims],
            units=[d.unit for d in p.dims],
            frame_id=(frame_id if p.kind in EEF else "") or p.frame,
            rotation_convention=p.rotation,
        )
        for p in spec.parts
    ]


def step_count(msg: ActionChunkMsg) -> int:
    """Whole steps of a chunk that may be wrong in other ways."""
    return len(msg.actions) // max(1, sum(len(p.dims) for p in msg.parts))


def msg_to_chunk(msg: ActionChunkMsg) -> ActionChunk:
    """What a message tells to do; raises VlaError where it must not be executed."""
    numbers = np.array(msg.actions, np.float64)
    _check(len(numbers) > 0, "the chunk has no steps", "give at least one")
    for what, count, most in (
        ("parts", len(msg.parts), MOST_PARTS),
        ("numbers a step", sum(len(p.dims) for p in msg.parts), MOST_NUMBERS),
    ):
        _check(count <= most, f"the chunk has {count} {what}", f"give at most {most}")
    spec = _spec(
        tuple(
            (p.name, p.kind, tuple(p.dims), tuple(p.units), p.frame_id, p.rotation_convention)
            for p in msg.parts
        ),
        msg.dt,
    )
    _check(
        len(numbers) % len(spec) == 0,
        f"the chunk has {len(numbers)} numbers, a step has {len(spec)}",
        "give whole steps",
    )
    timing = dict(zip(msg.stage_names, msg.stage_ms, strict=False))
    chunk = ActionChunk(numbers.reshape(-1, len(spec)), spec, timing=timing)
    check_steps(chunk)
    for part in spec.parts:
        if part.kind == "gripper":
            _check_gripper(part.name, chunk.actions[:, spec.slice(part.name)])
    return chunk


def _check_gripper(name: str, values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    _check(
        low >= -0.5 and high <= 1.5,
        f"{name} values from {low:g} to {high:g}",
        "1 is open and 0 is closed",
    )


@lru_cache(maxsize=64)  # a model's chunks all have the same
def _spec(parts: tuple[tuple, ...], dt: float) -> ActionSpec:
    """Of (name, kind, dims, units, frame, rotation) of each part; VlaError unless it is in SI."""
    check_dt(dt)
    spec = ActionSpec(tuple(part_of(*part) for part in parts), dt)
    _check(
        bool((check_si(spec) == 1).all()),
        f"the actions are in units {', '.join(d.unit for d in spec.dims)}",
        "send them in SI",
    )
    return spec


def policy_info(policy: Policy, frame_id: str = "") -> ModelInfo:
    """Describes a policy; frame_id as for `chunk_to_msg`. Stamp, cameras and times stay zero."""
    spec = si_spec(policy.action_spec())
    return ModelInfo(
        model=policy.name,
        unnorm_key=str(policy.action_space or ""),
        state_dim=policy.needs.state,
        chunk=policy.chunk,
        dt=spec.dt,
        parts=_part_messages(spec, frame_id),
    )


def _check(condition: bool, problem: str, remedy: str) -> None:
    if not condition:
        raise VlaError(problem, remedy)
