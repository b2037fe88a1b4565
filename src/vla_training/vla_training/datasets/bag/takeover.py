"""Who commanded at each image of a bag, and what a person did.

An image's time goes on until the next image. The one who commanded for the larger part of it acted
in its step; of equal parts the person. Before the first `CommandSource` that was the model.

The person's action is the first step of the chunk on `human_action` that has the image's stamp and
steps of the action's length. Else it is what such chunks make of an action's length, from where
the person's longest stretch of the image's time begins. A chunk holds until the next one, as long
as it has steps; then the person stands still.

| kind | of several chunks in that time |
|---|---|
| eef_delta, joint_delta | their deltas one after the other, each by its share of time |
| joint_velocity, base_twist | the mean |
| joint_position, eef_pose, gripper | the last; where there is none, as in the step before |

A part that the person does not command stands still as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.errors import DataError
from vla_inference.types import ActionPart, ActionSpec
from vla_training.datasets.action_form import advance, angles_of, turns_of
from vla_training.datasets.bag.actions import Actions, Chunk, step_length
from vla_training.datasets.bag.streams import NS, Stream

MODEL, HUMAN = "model", "human"  # of CommandSource
DELTAS, RATES = ("eef_delta", "joint_delta"), ("joint_velocity", "base_twist")
OTHER = "a person's action of other parts than the model's"
UNTOLD = "a person commanded, and no message on human_action tells what"
NOT_YET = "a person had not commanded yet"


@dataclass(frozen=True)
class Turns:
    """The person's part of T images' times.

    acted: bool [T], whether the person acted. begins, ends: int64 [T] ns, the longest stretch in
    which the person commanded. since: int64 [T] ns, when the person had taken over.
    """

    acted: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    since: np.ndarray


def find_turns(source: Stream | None, times: np.ndarray) -> Turns:
    """The turns of images at `times` [T] ns, on the source's clock. source: of texts; None: the
    person always commanded. Raises DataError."""
    usual = round(step_length(times) * NS)
    ends = np.append(times[1:], times[-1:] + usual)
    if source is None:
        return Turns(np.ones(len(times), bool), times, ends, np.full(len(times), times[0]))
    stretches = np.array(list(_stretches(source)), np.int64).reshape(-1, 2)
    if not len(stretches):
        return Turns(np.zeros(len(times), bool), times, times, times)
    begins = np.maximum(times[:, None], stretches[:, 0])
    until = np.minimum(ends[:, None], stretches[:, 1])
    parts = (until - begins).clip(0)
    total, row, best = parts.sum(1), np.arange(len(times)), parts.argmax(1)
    acted = (total > 0) & (2 * total >= ends - times)
    return Turns(acted, begins[row, best], until[row, best], stretches[best, 0])


def _stretches(source: Stream) -> Iterator[tuple[int, int]]:
    """(from, to) ns of each time in which the person commanded."""
    begin = None
    for time, who in zip(source.times.tolist(), source.values, strict=True):
        if who not in (MODEL, HUMAN):
            raise DataError(
                f"who commands is {who!r} in a CommandSource", f"it is {MODEL} or {HUMAN}"
            )
        if who == HUMAN and begin is None:
            begin = time
        if who == MODEL and begin is not None:
            yield begin, time
            begin = None
    if begin is not None:
        yield begin, np.iinfo(np.int64).max


def persons_spec(human: Stream, times: np.ndarray, length: float | None) -> ActionSpec | None:
    """What the person's actions mean where there are no others; None: there are none.

    A step lasts as long as the chunks' that answer images; else `length` s, or up to the next
    image.
    """
    good = [c for c in human.values if not c.refusal]
    if not good:
        return None
    answers = [
        c
        for c, time in zip(human.values, human.times, strict=True)
        if not c.refusal and time in times
    ]
    if answers:
        return answers[0].spec
    return replace(good[0].spec, dt=round(length or step_length(times, good[0].spec.dt), 6))


def spread(found: Actions, chosen: np.ndarray) -> Actions:
    """Actions of the images `chosen` (bool [T]) among T images; the others are not known."""
    values = np.zeros((len(chosen), len(found.spec)))
    known = np.zeros(len(chosen), bool)
    if found.known.any():
        values[chosen] = found.values
        known[chosen] = found.known
    chunks: list[Chunk | None] = [None] * len(chosen)
    for i, chunk in zip(np.flatnonzero(chosen), found.chunks or (), strict=True):
        chunks[i] = chunk
    return replace(found, values=values, known=known, chunks=chunks)


def take_in(found: Actions, turns: Turns, human: Stream, times: np.ndarray, frame: str) -> None:
    """Puts the person's actions into those of the images at `times` in which a person acted.

    frame: the axes of deltas whose frame is neither "base" nor "tool".
    """
    person = _Person(found.spec, human, frame)
    empty = np.zeros(len(found.spec))
    for i in np.flatnonzero(turns.acted):
        before = found.values[i - 1] if i and found.known[i - 1] else None
        span = int(turns.begins[i]), int(turns.ends[i]), int(turns.since[i])
        action, why = person.action(int(times[i]), *span, before)
        found.known[i] = action is not None
        found.values[i] = empty if action is None else action
        if found.chunks is not None:
            found.chunks[i] = None if action is None else Chunk(action[None], found.spec)
        found.missing.update([why] if why else [])
    found.notes += person.notes


@dataclass(frozen=True)
class _Piece:
    """A step of a chunk while it holds: its numbers by part, for `share` of its length and
    `seconds`."""

    parts: dict[str, np.ndarray]
    share: float
    seconds: float


class _Person:
    def __init__(self, spec: ActionSpec, human: Stream, frame: str):
        self.spec, self.frame = spec, frame
        self.chunks: list[Chunk] = human.values
        self.times = human.times
        self.length = round(spec.dt * NS)
        self.notes: list[str] = []

    def action(
        self, time: int, begin: int, end: int, since: int, before: np.ndarray | None
    ) -> tuple[np.ndarray | None, str]:
        """[D], or None and why there is none. before: that of the step before, if it is known."""
        first = int(np.searchsorted(self.times, since))
        last = int(np.searchsorted(self.times, min(begin + self.length, end)))
        held = int(np.searchsorted(self.times, begin, "right")) - 1
        used = self.chunks[max(first, held) : last]
        for chunk in used:
            if chunk.refusal or not self._fits(chunk.spec):
                return None, chunk.refusal or OTHER
        answers = begin == time and held >= first and self.times[held] == time
        if answers and abs(self.chunks[held].spec.dt - self.spec.dt) < 1e-9:
            chunk = self.chunks[held]
            pieces = [_Piece(self._by_part(chunk, 0), 1.0, self.spec.dt)]
        else:
            pieces = list(self._pieces(max(first, held), last, begin, end))
        told = pieces[-1].parts if pieces else {}
        if used and not told:  # its steps are over: where it led to
            told = self._by_part(used[-1], len(used[-1].actions) - 1)
        return self._joined(pieces, told, before)

    def _pieces(self, first: int, last: int, begin: int, end: int) -> Iterator[_Piece]:
        """What holds in an action's length from `begin`, at most up to `end`."""
        end = min(end, begin + self.length)
        for k in range(first, last):
            until = min(end, int(self.times[k + 1])) if k + 1 < len(self.times) else end
            dt, start = self.chunks[k].spec.dt, int(self.times[k])
            for step in range(len(self.chunks[k].actions)):
                a, b = start + round(step * dt * NS), start + round((step + 1) * dt * NS)
                covered = min(b, until) - max(a, begin)
                if covered > 0:
                    share = self.length / (end - begin) * covered
                    yield _Piece(self._by_part(self.chunks[k], step), share / (b - a), share / NS)

    def _joined(
        self, pieces: list[_Piece], told: dict[str, np.ndarray], before: np.ndarray | None
    ) -> tuple[np.ndarray | None, str]:
        parts = {}
        for part in self.spec.parts:
            mine = [p for p in pieces if part.name in p.parts]
            if part.kind == "eef_delta":
                parts[part.name] = _moved(part, mine)
            elif part.kind in DELTAS:
                parts[part.name] = sum((p.share * p.parts[part.name] for p in mine), _still(part))
            elif part.kind in RATES:
                whole = sum((p.seconds * p.parts[part.name] for p in mine), _still(part))
                parts[part.name] = whole * NS / self.length
            elif part.name in told:
                parts[part.name] = told[part.name]
            elif before is not None:
                parts[part.name] = before[self.spec.slice(part.name)]
            elif part.kind == "gripper":
                self._note(f"a person had not commanded {part.name} yet: taken for open")
                parts[part.name] = np.ones(len(part))
            else:
                return None, NOT_YET
        return self.spec.join(parts), ""

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # -- what a chunk says of the parts of the action ------------------------------------------

    def _fits(self, spec: ActionSpec) -> bool:
        """Whether it commands some of the action's parts, and nothing else."""
        named = {p.name: p for p in self.spec.parts}
        return all(p.name in named and self._alike(p, named[p.name]) for p in spec.parts)

    def _alike(self, one: ActionPart, other: ActionPart) -> bool:
        if (one.kind, self._frame(one)) != (other.kind, self._frame(other)):
            return False
        return bool(one.rotation) or [d.name for d in one.dims] == [d.name for d in other.dims]

    def _frame(self, part: ActionPart) -> str:
        known = not part.frame or part.frame in ("base", "tool")
        return part.frame if known else self.frame

    def _by_part(self, chunk: Chunk, step: int) -> dict[str, np.ndarray]:
        """The numbers of a step, with angles in the action's convention."""
        found = chunk.spec.split(chunk.actions[step].copy())
        for part in chunk.spec.parts:
            wanted = self.spec.part(part.name).rotation
            if part.rotation != wanted:
                values = found[part.name]
                angles = angles_of(turns_of(values[3:], part.rotation), wanted)
                found[part.name] = np.concatenate([values[:3], angles])
        return found


def _still(part: ActionPart) -> np.ndarray:
    return np.zeros(len(part))


def _moved(part: ActionPart, pieces: list[_Piece]) -> np.ndarray:
    """An end effector's deltas one after the other; the only one unchanged."""
    if len(pieces) == 1 and pieces[0].share == 1:
        return pieces[0].parts[part.name]
    way, turn = np.zeros(3), Rotation.identity()
    for piece in pieces:
        values = piece.parts[part.name]
        whole = turns_of(values[3:], part.rotation).as_rotvec()
        step = Rotation.from_rotvec(piece.share * whole)
        way, turn = advance(way, turn, piece.share * values[:3], step, part.frame)
    return np.concatenate([way, angles_of(turn, part.rotation)])
