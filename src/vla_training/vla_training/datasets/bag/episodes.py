"""Splits a bag's streams into episodes and matches messages to images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_inference.episodes.estimates import UNKNOWN
from vla_inference.errors import DataError
from vla_inference.types import ActionSpec
from vla_training.datasets.bag.actions import Actions, Chunk, episode_actions
from vla_training.datasets.bag.files.message_types import CHUNK, JOINTS
from vla_training.datasets.bag.files.storage import BagFile
from vla_training.datasets.bag.options import BagOptions
from vla_training.datasets.bag.roles import CONTINUOUS, Roles, check_used, digest
from vla_training.datasets.bag.streams import NS, Stream, held, nearest, read_streams
from vla_training.datasets.bag.takeover import (
    UNTOLD,
    Turns,
    find_turns,
    persons_spec,
    spread,
    take_in,
)
from vla_training.datasets.bag.topics import BagTopics, choose_topics

RUNNING = "running"
OLD = 1.0  # s after which an estimate is of another moment
SLACK = 0.2  # of the gripper's range: what stays below never opens, what is outside is another's
INFINITE = np.iinfo(np.int64).max


@dataclass
class BagEpisode:
    """T steps without their images.

    images: camera -> int64 [T, 2], stamp and time of recording by which an image is found.
    stamps: int64 [T] ns. actions: float64 [T, D]. executed: control steps after each image, by
    EpisodeStatus. flags: bits 1 first, 2 last, 4 terminal, as our writer stores them. acted: bool
    [T], whether a person did; None where the bag does not say. estimates: [T, 2], as column
    "estimate" has them; None where there are none.
    """

    images: dict[str, np.ndarray]
    stamps: np.ndarray
    actions: np.ndarray
    instructions: list[str]
    rewards: np.ndarray
    chunks: list[Chunk] | None = None
    states: np.ndarray | None = None
    executed: np.ndarray | None = None
    flags: np.ndarray | None = None
    acted: np.ndarray | None = None
    estimates: np.ndarray | None = None
    terminal: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.stamps)


@dataclass
class BagReading:
    episodes: list[BagEpisode]
    topics: BagTopics
    spec: ActionSpec
    notes: list[str]
    state_names: tuple[str, ...] = ()  # of its joints, where it is one of joint states

    def __len__(self) -> int:
        return len(self.episodes)


def read_bag(bag: BagFile, options: BagOptions) -> BagReading:
    """All episodes of a bag. Raises DataError if there are none."""
    topics = bag.reading(lambda: choose_topics(bag, options))
    kinds = {t: bag.topics[t].type for t in topics.small}
    if kinds[topics.action] == JOINTS and options.robot_model is None:
        raise DataError(
            f"{bag.path}: {topics.action} has joint states", "give --robot-model and its tip"
        )
    check_used(str(bag.path), options, topics, kinds)
    streams = bag.reading(
        lambda: read_streams(bag, topics, lambda topic, msg: digest(kinds[topic], msg))
    )
    roles = Roles(str(bag.path), options, topics, kinds, streams)
    return _Cutter(bag, options, topics, kinds, streams, roles).cut()


class _Cutter:
    def __init__(
        self,
        bag: BagFile,
        options: BagOptions,
        topics: BagTopics,
        kinds: Mapping[str, str],
        streams: Mapping[str, Stream],
        roles: Roles,
    ) -> None:
        self.bag, self.options, self.topics, self.kinds = bag, options, topics, kinds
        self.streams, self.roles = streams, roles
        self.tolerance = round(options.tolerance * NS)
        self.missing: Counter[str] = Counter()
        self.notes: list[str] = [*topics.notes, *roles.notes]

    def cut(self) -> BagReading:
        primary = next(iter(self.topics.cameras.values()))
        frames = self.streams[primary]
        spec, episodes = None, []
        spans = self._spans(frames)
        for begin, end, remarks in spans:
            inside = np.flatnonzero((frames.stamps >= begin) & (frames.stamps <= end))
            if not len(inside):
                continue
            episode, kind = self._episode(frames, inside, remarks)
            if episode is not None:
                episodes.append(episode)
                spec = spec or kind
        self._tell(frames)
        if spec is None:
            why = "; ".join(self.notes) or "it has no images"
            raise DataError(
                f"{self.bag.path} has no step that could be used ({why})",
                f"it contains {self.bag.listing()}",
            )
        return BagReading(episodes, self.topics, spec, self.notes, self.roles.state_names)

    # -- where episodes are -------------------------------------------------------------------

    def _spans(self, frames: Stream) -> list[tuple[int, int, dict[str, Any]]]:
        """(first stamp, last stamp, metadata) of each episode."""
        status = self.streams.get(self.topics.episode) if self.topics.episode else None
        if status is not None and len(status) and not self.topics.about.get("episodes"):
            return self._spans_by_status(status)
        about = dict(self.topics.about.get("metadata", {}))
        if not len(frames):
            return []
        if self.topics.about.get("episodes") == 1:
            return [(0, INFINITE, about)]
        gap = round(self.options.episode_gap * NS)
        breaks = np.flatnonzero(np.diff(frames.stamps) > gap)
        begins = [frames.stamps[0], *frames.stamps[breaks + 1]]
        ends = [*frames.stamps[breaks], frames.stamps[-1]]
        return [(int(b), int(e), dict(about)) for b, e in zip(begins, ends, strict=True)]

    def _spans_by_status(self, status: Stream) -> list[tuple[int, int, dict[str, Any]]]:
        spans: list[tuple[int, int, dict[str, Any]]] = []
        begin, last = None, None
        for stamp, msg in zip(status.stamps.tolist(), status.values, strict=True):
            if begin is not None and not msg.done and msg.step == 0 and last and last.step > 0:
                spans.append((begin, stamp - 1, _remarks(last)))  # its end was not recorded
                begin = None
            if begin is None:
                # with a first status that is not of step 0 the recording began in the middle
                fresh = msg.step == 0 and not msg.done
                begin = stamp if fresh else 0 if not spans else spans[-1][1] + 1
            if msg.done:
                spans.append((begin, stamp, _remarks(msg)))
                begin = None
            last = msg
        if begin is not None:
            spans.append((begin, INFINITE, _remarks(last)))
        return spans

    # -- one episode --------------------------------------------------------------------------

    def _episode(
        self, frames: Stream, inside: np.ndarray, remarks: dict[str, Any]
    ) -> tuple[BagEpisode | None, ActionSpec]:
        logs, stamps = frames.logs[inside], frames.stamps[inside]
        kind = self.kinds[self.topics.action]
        turns = self._turns(frames, inside)
        found = self._actions(frames, inside, turns)
        if self.options.frame == "tool" and found.spec.frame != "tool":
            raise DataError(
                f"{self.bag.path}: its deltas name the frame {found.spec.frame}, so --frame tool "
                "changes nothing",
                "leave it out",
            )
        self.missing.update(found.missing)
        for note in found.notes:
            if note not in self.notes:
                self.notes.append(note)
        keep = found.known.copy()
        images = {next(iter(self.topics.cameras)): np.column_stack([stamps, logs])}
        for camera, topic in list(self.topics.cameras.items())[1:]:
            other = self.streams[topic]
            index, distance = nearest(other.times, stamps if other.stamped else logs)
            bad = keep & (distance > self.tolerance)
            if bad.any():
                self.missing[f"no image of {camera}"] += int(bad.sum())
                keep &= ~bad
            if len(other):
                images[camera] = np.column_stack([other.stamps[index], other.logs[index]])
        states, keep = self._states(stamps, logs, keep)
        if not keep.any():
            return None, found.spec
        actions = found.values
        if kind in CONTINUOUS:
            actions[:, 6] = self._gripper(stamps, logs)
        picked = np.flatnonzero(keep)
        chunks = None if found.chunks is None else [found.chunks[i] for i in picked]
        texts = self._instructions(logs[picked], chunks, remarks)
        episode = BagEpisode(
            {c: p[picked] for c, p in images.items()},
            stamps[picked],
            actions[picked],
            texts,
            self._rewards(stamps, logs)[picked],
            chunks,
            None if states is None else states[picked],
            self._executed(stamps[picked]),
            self._flags(len(inside), picked),
            None if turns is None else turns.acted[picked],
            self._estimates(stamps, logs, picked, texts),
            remarks.get("outcome") in ("success", "aborted"),
            remarks,
        )
        return episode, found.spec

    def _turns(self, frames: Stream, inside: np.ndarray) -> Turns | None:
        """Which images are a person's; None where nothing says it."""
        topics = self.topics
        if topics.source is not None and len(source := self.streams[topics.source]):
            return find_turns(source, _on_clock(frames, inside, source))
        if topics.action != topics.human:
            return None
        return find_turns(None, _on_clock(frames, inside, self.roles.action))

    def _actions(self, frames: Stream, inside: np.ndarray, turns: Turns | None) -> Actions:
        stream, kind = self.roles.action, self.kinds[self.topics.action]
        times = _on_clock(frames, inside, stream)

        def recorded(times: np.ndarray) -> Actions:
            return episode_actions(
                kind,
                stream,
                times,
                self.tolerance,
                self.options.frame,
                self.topics.about,
                self.options.step_length,
            )

        if turns is None or kind != CHUNK:
            return recorded(times)
        alone = self.topics.action == self.topics.human  # the model's actions are not there
        others = ~turns.acted & (not alone)
        found = recorded(times[others])
        if self.topics.human is None:
            found.missing.update({UNTOLD: n} if (n := int(turns.acted.sum())) else {})
            return spread(found, others)
        human = self.streams[self.topics.human]
        if not found.known.any():
            of_human = persons_spec(human, times, self.options.step_length)
            spec = next((c.spec for c in stream.values if not c.refusal), None)
            found.spec = (None if alone else spec) or of_human or found.spec
        found = spread(found, others)
        take_in(found, turns, human, _on_clock(frames, inside, human), self.options.frame)
        return found

    def _states(
        self, stamps: np.ndarray, logs: np.ndarray, keep: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """float64 [T, S], and which images have a state; other rows are 0."""
        stream = self.roles.state
        if stream is None:
            return None, keep
        index, distance = nearest(stream.times, stamps if stream.stamped else logs)
        near = distance <= self.tolerance
        sizes = {len(stream.values[i]) for i in index[keep & near]}
        if len(sizes) > 1:
            raise DataError(
                f"{self.bag.path}: states of {self.topics.state} have {sorted(sizes)} numbers",
                "name another topic with --state-topic",
            )
        rows = np.zeros((len(keep), *sizes))
        for i in np.flatnonzero(keep & near):
            rows[i] = stream.values[index[i]]
        finite = np.isfinite(rows).all(axis=-1) if sizes else near
        for reason, good in (("no state", near), ("a state that is not finite", finite)):
            if bad := int((keep & ~good).sum()):
                self.missing[reason] += bad
                keep = keep & good
        return (rows if keep.any() else None), keep

    def _gripper(self, stamps: np.ndarray, logs: np.ndarray) -> np.ndarray:
        """[T], 1 open: the value that holds at the end of the image's time."""
        closed, opened = self.options.gripper_range
        stream = self.roles.gripper
        if stream is None:
            self._note("no topic tells of the gripper: taken for open (--gripper-topic)")
            return np.ones(len(stamps))
        at = stamps if stream.stamped else logs
        ends = np.append(at[1:], at[-1:] + (at[-1] - at[-2] if len(at) > 1 else NS))
        index = held(stream.times, ends - 1)
        if not len(stream) or (index < 0).any():
            self._note("until the gripper's first message it is taken for open")
        scaled = [(v - closed) / (opened - closed) for v in stream.values]
        lowest, highest = min(scaled, default=0.0), max(scaled, default=1.0)
        if not (lowest > -SLACK and SLACK < highest < 1 + SLACK):
            low, high = sorted((min(stream.values), max(stream.values)))
            self._note(
                f"the gripper says {low:g} to {high:g}, where {closed:g} is closed and {opened:g} "
                "open (--gripper-range)"
            )
        return np.array([scaled[i] if i >= 0 else 1.0 for i in index])

    def _instructions(
        self, logs: np.ndarray, chunks: Any, remarks: Mapping[str, Any]
    ) -> list[str]:
        """The instruction of each image, from the chunk or from the last message before it.

        Chunks of a person may have none; without messages it is that of the chunk before.
        """
        fallback = str(remarks.get("instruction", ""))
        own = [] if chunks is None else [c.instruction for c in chunks]
        if any(own):
            if not all(own):
                others = self._instructions(logs, None, remarks)
                own = [text or other for text, other in zip(own, others, strict=True)]
            before = next(filter(None, own))
            return [before := text or before for text in own]
        if self.topics.instruction is None or not len(self.streams[self.topics.instruction]):
            return [fallback] * len(logs)
        stream = self.streams[self.topics.instruction]
        index = held(stream.logs, logs)
        early = int((index < 0).sum())
        if early and not fallback:
            self._note("images before the first instruction are given that one")
        return [stream.values[i] if i >= 0 else fallback or stream.values[0] for i in index]

    def _rewards(self, stamps: np.ndarray, logs: np.ndarray) -> np.ndarray:
        """[T]: the last reward before the next image, 0 if there is none."""
        stream, values = None, []
        if self.topics.reward is not None:
            stream = self.streams[self.topics.reward]
            values = [float(v) for v in stream.values]
        elif self.topics.episode is not None:
            stream = self.streams[self.topics.episode]
            values = [float(v.reward) for v in stream.values]
        if stream is None or not len(stream):
            return np.zeros(len(stamps))
        at = stamps if stream.stamped else logs
        ends = np.append(at[1:], INFINITE)
        index = held(stream.times, ends - 1)
        fresh = (index >= 0) & (stream.times[np.maximum(index, 0)] >= at)
        return np.array([values[i] if ok else 0.0 for i, ok in zip(index, fresh, strict=True)])

    def _executed(self, stamps: np.ndarray) -> np.ndarray | None:
        """[T] control steps after each image; None without EpisodeStatus."""
        if self.topics.episode is None or not len(stamps):
            return None
        stream = self.streams[self.topics.episode]
        steps = np.array([v.step for v in stream.values], np.int64)
        ends = np.append(stamps[1:], INFINITE)
        count = np.zeros(len(stamps), np.int64)
        for i, (begin, end) in enumerate(zip(stamps, ends, strict=True)):
            inside = (stream.stamps >= begin) & (stream.stamps < end)
            # of the last image only what belongs to its own episode
            values = steps[inside]
            if len(values):
                falls = np.flatnonzero(np.diff(values) < 0)
                values = values[: falls[0] + 1] if len(falls) else values
                count[i] = len(np.unique(values[values > 0]))
        return count

    def _estimates(
        self, stamps: np.ndarray, logs: np.ndarray, picked: np.ndarray, texts: Sequence[str]
    ) -> np.ndarray | None:
        """[T, 2]: the last estimate of each picked image or of one before, if it is not too old,
        of this episode, whose images stamps and logs are of, and of the same instruction."""
        if self.topics.estimate is None or not len(stream := self.streams[self.topics.estimate]):
            return None
        at = stamps if stream.stamped else logs
        begin, at = at.min(), at[picked]
        index = held(stream.times, at)
        made = stream.times[np.maximum(index, 0)]
        fresh = (index >= 0) & (made >= begin) & (at - made <= round(OLD * NS))
        told = [stream.values[i] for i in index]
        same = np.array([t[2] == text for t, text in zip(told, texts, strict=True)])
        values = np.array([t[:2] for t in told], np.float32)
        return np.where((fresh & same)[:, None], values, np.float32(UNKNOWN))

    def _flags(self, total: int, picked: np.ndarray) -> np.ndarray | None:
        text = str(self.topics.about.get("flags", ""))
        if len(text) != total or not text.isdigit():
            return None
        return np.array([int(c) for c in text])[picked]

    # -- what to tell -------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _tell(self, frames: Stream) -> None:
        self.notes += [f"damaged, lost: {what}" for what in self.bag.lost]
        if not frames.stamped and len(frames):
            self.notes.append(
                "the images have no stamps: those of the recording are taken, but the inference "
                "node refuses such images"
            )
        for topic, stream in sorted(self.streams.items()):
            if stream.disordered:
                self.notes.append(
                    f"{stream.disordered} messages of {topic} were out of order: sorted by stamp"
                )
        for reason, count in sorted(self.missing.items()):
            self.notes.append(f"{count} of {len(frames)} images left out: {reason}")


def _on_clock(frames: Stream, inside: np.ndarray, other: Stream) -> np.ndarray:
    """Times of images, ns, on the clock of another stream."""
    both = frames.stamped and other.stamped
    return (frames.stamps if both else frames.logs)[inside]


def _remarks(msg: Any) -> dict[str, Any]:
    """An episode's metadata from its last EpisodeStatus."""
    outcome = msg.outcome if msg.done else "unfinished"
    return {
        "task": msg.task,
        "seed": int(msg.seed),
        "episode_index": int(msg.index),
        "outcome": outcome,
        "success": bool(msg.success),
        "instruction": msg.instruction,
    }
