"""Computes the action of each image from the messages recorded until the next one.

| messages | action of the image at stamp s, the next one at s' |
|---|---|
| ActionChunk | first step of the chunk that answers it (same stamp, else the nearest) |
| EefDelta, Float64MultiArray | the first one from s on |
| TwistStamped | integral from s to s'; a twist holds until the next one |
| PoseStamped (targets) | last target before s' minus last target before s |
| JointState | measured pose at s' minus that at s (see `joints.py`) |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from vla_inference.errors import DataError, VlaError
from vla_inference.policies.action_specs import part_of
from vla_inference.types import ANGLES, ActionSpec, eef_delta_spec
from vla_training.datasets.action_form import advance, spec_from_json
from vla_training.datasets.bag.files.message_types import (
    ARRAY,
    CHUNK,
    EEF_DELTA,
    JOINTS,
    POSE,
    TWIST,
)
from vla_training.datasets.bag.streams import NS, Stream, nearest

HOLD = 2.0  # a twist holds for at most this many usual periods


@dataclass(frozen=True)
class Chunk:
    """A recorded ActionChunk or EefDelta. actions: float64 [T, D]; latency in ms, produced in ns;
    refusal: why it must not be used."""

    actions: np.ndarray
    spec: ActionSpec = field(default_factory=eef_delta_spec)
    instruction: str = ""
    model: str = ""
    latency: float = float("nan")
    produced: int = 0
    refusal: str = ""


@dataclass
class Actions:
    """The actions of T images.

    values: float64 [T, D]; known: bool [T], whether there is one at all.
    chunks: by image, where chunks were recorded. missing: why images have none, counted.
    """

    values: np.ndarray
    known: np.ndarray
    spec: ActionSpec
    chunks: list[Chunk | None] | None = None
    missing: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def read_chunk(msg: Any) -> Chunk:
    """Reads an ActionChunk, also of the older form, which has EefDelta steps."""
    read = _read_steps(msg.steps) if hasattr(msg, "steps") else _read_parts(msg)
    return replace(
        read,
        instruction=msg.instruction,
        model=msg.model,
        latency=float(msg.latency_ms),
        produced=msg.produced.sec * NS + msg.produced.nanosec,
    )


def _read_parts(msg: Any) -> Chunk:
    try:
        parts = tuple(
            part_of(p.name, p.kind, p.dims, p.units, p.frame_id.lstrip("/"), p.rotation_convention)
            for p in msg.parts
        )
        spec = ActionSpec(parts, float(msg.dt))
    except VlaError as error:
        return Chunk(np.zeros((0, 7)), refusal=f"a chunk that says: {error.problem}")
    numbers = np.asarray(msg.actions, np.float64)
    if not len(numbers):
        return Chunk(np.zeros((0, len(spec))), spec, refusal="a chunk without steps")
    if len(numbers) % len(spec):
        return Chunk(np.zeros((0, len(spec))), spec, refusal="a chunk with half a step")
    refusal = "" if spec.dt > 0 else "a chunk whose steps last no time"
    return _checked(numbers.reshape(-1, len(spec)), spec, refusal)


def _read_steps(steps: Sequence[Any]) -> Chunk:
    """Reads EefDelta messages."""
    if not len(steps):
        return Chunk(np.zeros((0, 7)), refusal="a chunk without steps")
    rows = []
    for s in steps:
        t, r = s.translation, s.rotation
        rows.append((t.x, t.y, t.z, r.x, r.y, r.z, s.gripper))
    values, refusal = np.array(rows, np.float64), ""
    kinds = {(s.rotation_convention, s.frame_id, s.dt) for s in steps}
    rotation, frame, dt = next(iter(kinds))
    if rotation not in ANGLES or not frame.lstrip("/") or not dt > 0 or len(kinds) > 1:
        refusal = "a chunk whose rotation convention, frame or dt is unknown or changes"
        return Chunk(values, refusal=refusal)
    return _checked(values, eef_delta_spec(rotation, frame.lstrip("/"), dt))


def _checked(values: np.ndarray, spec: ActionSpec, refusal: str = "") -> Chunk:
    if not np.isfinite(values).all():
        refusal = "a chunk with a number that is not finite"
    return Chunk(values, spec, refusal=refusal)


def digest_action(kind: str, msg: Any) -> Any:
    """The part to keep of a chunk, an EefDelta, a twist or a pose."""
    if kind == CHUNK:
        return read_chunk(msg)
    if kind == EEF_DELTA:
        return _read_steps([msg])
    if kind == TWIST:
        v, w = msg.twist.linear, msg.twist.angular
        return (v.x, v.y, v.z, w.x, w.y, w.z), msg.header.frame_id
    p, q = msg.pose.position, msg.pose.orientation
    return (p.x, p.y, p.z, q.x, q.y, q.z, q.w), msg.header.frame_id


def step_length(times: np.ndarray, fallback: float = 0.05) -> float:
    """Usual time between images in seconds."""
    return float(np.median(np.diff(times)) / NS) if len(times) > 1 else fallback


def episode_actions(
    kind: str,
    stream: Stream,
    times: np.ndarray,
    tolerance: int,
    frame: str,
    about: Mapping[str, Any],
    length: float | None = None,
) -> Actions:
    """Actions of the images at `times` (sorted, ns, on the stream's clock).

    tolerance: ns. frame: axes where the messages name neither "base" nor "tool".
    about: our writer's remarks on the spec. length: of a step where actions are velocities or
    poses, s; None: up to the next image. Raises DataError.
    """
    if kind in (CHUNK, EEF_DELTA):
        return _from_chunks(kind, stream, times, tolerance, frame)
    if kind == ARRAY:
        if "spec" not in about:
            raise DataError(
                "nothing says what the numbers of its actions mean",
                "name a topic of ActionChunk, TwistStamped or PoseStamped",
            )
        spec = spec_from_json(about["spec"], "the bag's metadata")
        return _from_arrays(stream, times, tolerance, spec)
    if length is None:
        length = step_length(times, about.get("spec", {}).get("dt", 0.05))
        ends = np.append(times[1:], times[-1:] + round(length * NS))
    else:
        ends = times + round(length * NS)
    notes = []
    if kind == JOINTS:
        frame_id = frame
    else:
        frames = Counter(f for _, f in stream.values)
        if len(frames) > 1:
            raise DataError(
                f"actions are given in several frames ({', '.join(map(repr, frames))})",
                "transform them into one",
            )
        frame_id = next(iter(frames), frame)
    known_frame = _stated_frame(about) or frame_id.lstrip("/")
    if known_frame not in ("base", "tool"):
        notes.append(f"deltas in frame {known_frame!r} are taken for those in the {frame} axes")
        known_frame = frame
    spec = eef_delta_spec("rotvec", known_frame, round(length, 6))
    if kind == TWIST:
        motion, known, reason = _from_twists(stream, times, ends, tolerance, known_frame)
    else:
        make = _from_targets if kind == POSE else _from_poses
        motion, known, reason = make(stream, times, ends, tolerance)
    values = np.column_stack([motion, np.ones(len(times))])
    return Actions(values, known, spec, None, _count(reason, known), notes)


def _missing(tolerance: int) -> str:
    """Why an image has no action. tolerance: [ns]"""
    return f"no action within {tolerance / NS:g} s" if tolerance else "no action answers them"


def _count(reason: str, known: np.ndarray) -> Counter[str]:
    """Why images have no action, and how many."""
    return Counter() if known.all() else Counter({reason: int((~known).sum())})


def _stated_frame(about: Mapping[str, Any]) -> str:
    """Of our writer's remarks on the spec, in either form."""
    spec = about.get("spec")
    return spec_from_json(spec, "the bag's metadata").frame if spec else ""


def _from_chunks(
    kind: str, stream: Stream, times: np.ndarray, tolerance: int, frame: str
) -> Actions:
    index, distance = nearest(stream.times, times)
    if kind == EEF_DELTA:  # no stamp: published after the image it answers
        index = np.searchsorted(stream.times, times)
        inside = index < len(stream)
        index = np.minimum(index, max(0, len(stream) - 1))
        ends = np.append(times[1:], np.iinfo(np.int64).max)
        distance = np.where(inside & (stream.times[index] < ends), 0, tolerance + 1)
    elif stream.stamped and (distance == 0).any():
        tolerance = 0  # they carry the stamps of their images: an unanswered one has none
    known = distance <= tolerance
    missing = _count(_missing(tolerance), known)
    chunks: list[Chunk | None] = []
    for i, at in enumerate(index):
        chunk = stream.values[at] if known[i] else None
        if chunk is not None and chunk.refusal:
            missing[chunk.refusal] += 1
            known[i], chunk = False, None
        chunks.append(chunk)
    specs = list(dict.fromkeys(c.spec for c in chunks if c is not None))
    if len(specs) > 1:
        told = " | ".join(f"{'; '.join(map(str, s.parts))}, {s.dt:g} s" for s in specs)
        raise DataError(f"its actions are of {len(specs)} kinds ({told})", "use bags of one kind")
    spec, notes = specs[0] if specs else eef_delta_spec(frame=frame), []
    if spec.eef and spec.frame not in ("base", "tool"):
        notes.append(f"deltas in frame {spec.frame!r} are taken for those in the {frame} axes")
        parts = [replace(p, frame=frame) if p is spec.eef else p for p in spec.parts]
        spec = replace(spec, parts=tuple(parts))
    empty = np.zeros(len(spec))
    values = np.array([empty if c is None else c.actions[0] for c in chunks])
    return Actions(values.reshape(-1, len(spec)), known, spec, chunks, missing, notes)


def _from_arrays(stream: Stream, times: np.ndarray, tolerance: int, spec: ActionSpec) -> Actions:
    index, distance = nearest(stream.times, times)
    known = distance <= tolerance
    values = np.zeros((len(times), len(spec)))
    for i in np.flatnonzero(known):
        if len(stream.values[index[i]]) != len(spec):
            raise DataError(
                f"an action has {len(stream.values[index[i]])} numbers, {len(spec)} are expected",
                "the bag is damaged",
            )
        values[i] = stream.values[index[i]]
    missing = _count(_missing(tolerance), known)
    return Actions(values, known, spec, None, missing)


# [T, 6] m and rad, which of them are known, and why the others are not
Motion = tuple[np.ndarray, np.ndarray, str]


def _from_twists(
    stream: Stream,
    times: np.ndarray,
    ends: np.ndarray,
    tolerance: int,
    frame: str = "base",
) -> Motion:
    """Integrals of velocities over [times, ends). In the tool's frame each of them acts where the
    ones before have led, as in `join_actions`."""
    at = stream.times
    period = int(np.median(np.diff(at))) if len(at) > 1 else int((ends - times).min())
    until = np.append(at[1:], at[-1:] + period) if len(at) else at
    until = np.minimum(until, at + round(HOLD * period))
    twists = np.array([v for v, _ in stream.values], np.float64).reshape(-1, 6)
    motion, known = np.zeros((len(times), 6)), np.zeros(len(times), bool)
    for i, (begin, end) in enumerate(zip(times, ends, strict=True)):
        first = max(0, int(np.searchsorted(at, begin, "right")) - 1)
        last = int(np.searchsorted(at, end, "left"))
        way, turn = np.zeros(3), Rotation.identity()
        for k in range(first, last):
            seconds = (min(until[k], end) - max(at[k], begin)) / NS
            if seconds > 0:
                step = Rotation.from_rotvec(seconds * twists[k, 3:])
                way, turn = advance(way, turn, seconds * twists[k, :3], step, frame)
                known[i] = True
        motion[i] = [*way, *turn.as_rotvec()]
    if len(at):
        # In silence a controller stands still, between the first command and the last.
        known |= (times >= at[0] - tolerance) & (ends <= until[-1] + tolerance)
    return motion, known, "before the first twist or after the last"


def _from_targets(stream: Stream, times: np.ndarray, ends: np.ndarray, tolerance: int) -> Motion:
    """Differences of targets: the last one before the end minus the last one before the begin."""
    poses = np.array([v for v, _ in stream.values], np.float64).reshape(-1, 7)
    begin = np.searchsorted(stream.times, times, "left") - 1
    end = np.searchsorted(stream.times, ends, "left") - 1
    known = begin >= 0
    return _difference(poses, begin, end, known), known, "no target before it"


def _difference(
    poses: Sequence[Any] | np.ndarray, begin: np.ndarray, end: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """[T, 6] m and rotation vector from the left."""
    motion = np.zeros((len(begin), 6))
    for i in np.flatnonzero(known):
        one, two = poses[begin[i]], poses[end[i]]
        if begin[i] != end[i]:
            motion[i, :3] = two[:3] - one[:3]
            turn = _rotation(two[3:]) * _rotation(one[3:]).inv()
            motion[i, 3:] = turn.as_rotvec()
    return motion


def _rotation(quaternion: np.ndarray) -> Rotation:
    if not np.isfinite(quaternion).all() or not 0.9 < np.linalg.norm(quaternion) < 1.1:
        raise DataError(
            f"a pose's orientation is {quaternion.tolist()}", "quaternions have length 1"
        )
    return Rotation.from_quat(quaternion)


def _from_poses(stream: Stream, times: np.ndarray, ends: np.ndarray, tolerance: int) -> Motion:
    """Differences of measured poses (x y z, quaternion), interpolated."""
    at, poses = stream.times, np.array(stream.values, np.float64).reshape(-1, 7)
    keep = np.append(True, np.diff(at) > 0) if len(at) else np.zeros(0, bool)
    at, poses = at[keep], poses[keep]
    if len(at) < 2:
        return np.zeros((len(times), 6)), np.zeros(len(times), bool), "no measured poses"
    known = (times >= at[0] - tolerance) & (ends <= at[-1] + tolerance)
    for moment in (times, ends):
        known &= nearest(at, moment)[1] <= max(tolerance, int(np.median(np.diff(at))))
    turns = Slerp((at - at[0]) / NS, Rotation.from_quat(poses[:, 3:]))
    found = []
    for moment in (times, ends):
        t = np.clip(moment, at[0], at[-1])
        place = np.column_stack([np.interp(t, at, poses[:, k]) for k in range(3)])
        found.append((place, turns((t - at[0]) / NS)))
    (p0, r0), (p1, r1) = found
    motion = np.column_stack([p1 - p0, (r1 * r0.inv()).as_rotvec()])
    return motion, known, f"no measured pose within {tolerance / NS:g} s"
