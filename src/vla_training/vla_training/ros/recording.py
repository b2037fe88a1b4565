"""Sorts messages into bags, one per episode. No ROS here; time is passed in.

Messages of different topics come in any order. Those with a stamp go to the episode in which they
were made, however late they come; a bag is closed `GRACE` seconds after its episode has ended.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.errors import DataError, VlaError
from vla_inference.system.files import LOCK, FileLock, HiddenFolder, sync, sync_tree, take_over
from vla_training.datasets.bag.cameras import camera_name
from vla_training.datasets.bag.episode_bag import STORAGES, EpisodeBag
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.streams import NS, decode_image, header_stamp
from vla_training.datasets.images import encode_image

GRACE = 1.0  # s
MOST_PENDING = 500  # messages kept between two episodes
SPLITS = ("status", "service", "off")
KEPT = ("png", "jpeg", "raw")
LOSSLESS = ("rgb8", "bgr8", "mono8", "rgba8", "bgra8")  # what three channels of PNG can hold
STAMPED = (
    types.IMAGE,
    types.COMPRESSED,
    types.CHUNK,
    types.EPISODE,
    types.TWIST,
    types.POSE,
    types.JOINTS,
    types.SOURCE,
    types.TASK_ESTIMATE,
    types.REASONING,
)
NOTED = ("action", "instruction", "human_action", "source")  # roles whose topics a bag names
HOLD = ("source", "human_action")  # roles whose message holds until the next, also into an episode
MOST_HELD = 100  # of each: as many as the command node tells who joins late
UNFINISHED = "unfinished"
PLACE, FOLDER_LOCK = ".recording-", ".recording.lock"
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # a name that something has already


@dataclass(frozen=True)
class ReceivedMessage:
    """A received message. role: "image", "episode", one of `NOTED` or "".

    log: ns, by the clock that stamps are of. arrived: ns, by a clock that never stands still, by
    which `GRACE` counts; 0: `log`.
    """

    role: str
    topic: str
    type: str
    log: int
    data: bytes
    latched: bool = False
    arrived: int = 0

    @property
    def at(self) -> int:
        return self.arrived or self.log

    @property
    def stamp(self) -> int:
        """ns; 0 if it has none."""
        return header_stamp(self.data) if self.type in STAMPED else 0


@dataclass
class _Open:
    """An episode's bag. begin, end: first and last stamp."""

    bag: EpisodeBag
    name: str
    begin: int
    end: int = 0
    deadline: int = 0
    step: int = 0
    topics: dict[str, str] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


class Recording:
    """split: an episode by EpisodeStatus ("status"), by `begin` and `end` ("service"), or all in
    one bag ("off"). images: raw ones as PNG (lossless), JPEG, or as they are.
    saved: told (path, episode's metadata, messages by topic) of each bag that is complete.

    Raises DataError where nothing can be written.
    """

    def __init__(
        self,
        folder: Path,
        storage: str = "mcap",
        images: str = "png",
        split: str = "status",
        saved: Callable[[Path, dict[str, Any], dict[str, int]], None] = lambda *_: None,
    ):
        known_values = {
            "storage": (storage, tuple(STORAGES)),
            "images": (images, KEPT),
            "split": (split, SPLITS),
        }
        for what, (value, known) in known_values.items():
            if value not in known:
                raise VlaError(f"unknown {what} {value!r}", f"use {', '.join(known)}")
        self.folder, self.storage, self.images, self.split = folder, storage, images, split
        self.saved, self.count = saved, 0
        self.store = types.our_types()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / FOLDER_LOCK)
            try:
                self._place = HiddenFolder(folder, PLACE)
            except OSError:
                self._lock.release()
                raise
        except BlockingIOError:
            raise DataError(
                f"another recorder writes into {folder}", "end it, or choose another --output"
            ) from None
        except OSError as error:
            raise DataError(
                f"cannot write into {folder} ({error.strerror})", "choose another --output"
            ) from error
        used = [int(p.name[8:]) for p in folder.glob("episode_*") if p.name[8:].isdigit()]
        self._next = max(used, default=-1) + 1
        self._current: _Open | None = None
        self._closing: list[_Open] = []  # ended, the first one first; what is late still comes
        self._pending: deque[ReceivedMessage] = deque(maxlen=MOST_PENDING)
        self._instruction: ReceivedMessage | None = None
        self._held = {role: deque[ReceivedMessage](maxlen=MOST_HELD) for role in HOLD}
        self._ended = 0  # stamp at which the last episode ended
        self.late = 0  # messages that belong to no episode

    @property
    def left_behind(self) -> list[Path]:
        """Unclosed but readable bags of killed recorders."""
        found = []
        for place in sorted(self.folder.glob(f"{PLACE}*")):
            lock = take_over(place)
            if lock is not None:
                found += sorted(p for p in place.iterdir() if p.name != LOCK)
                lock.release()
        return found

    @property
    def recording(self) -> bool:
        return self._current is not None

    # -- what comes in ------------------------------------------------------------------------

    def hear(self, message: ReceivedMessage) -> None:
        if message.role == "instruction":
            self._instruction = message
        if self.split == "off" and self._current is None:
            self._begin(message.log, 0)
        if message.role == "episode" and self.split == "status":
            self._follow(message)
        elif message.role in HOLD:
            self._hold(message)
        else:
            self._file(message)
        self.tick(message.at)

    def _follow(self, message: ReceivedMessage) -> None:
        """Handles an EpisodeStatus, which may begin or end an episode."""
        status: Any = self.store.deserialize_cdr(message.data, types.EPISODE)
        stamp, current = message.stamp, self._current
        if current is not None and status.step == 0 and not status.done and current.step > 0:
            self._end(stamp - 1, message.at)  # its end was not heard
            current = None
        if current is None and not status.done:
            # with a step above 0 the recording begins in the middle
            self._begin(message.log, stamp if status.step == 0 else self._ended + 1)
            current = self._current
        if current is None:
            return
        current.step = int(status.step)
        current.metadata = {
            "task": status.task,
            "seed": int(status.seed),
            "episode_index": int(status.index),
            "outcome": status.outcome if status.done else UNFINISHED,
            "success": bool(status.success),
            "instruction": status.instruction,
        }
        self._write(current, message)
        self._settle(lambda m: m.stamp <= stamp)
        if status.done:
            self._end(stamp, message.at)

    def _file(self, message: ReceivedMessage) -> None:
        """Writes a message to its episode's bag, or keeps it until that is known."""
        stamp, current = message.stamp, self._current
        ended = [bag for bag in self._closing if stamp <= bag.end]
        if ended and (stamp or current is None):
            self._write(ended[0] if stamp else ended[-1], message)
        elif current is None or (stamp and self.split == "status"):
            # whether the episode was over by then only its next status tells
            if current is not None and len(self._pending) == MOST_PENDING:
                self._write(current, self._pending.popleft())
            self._pending.append(message)
        elif not stamp or stamp >= current.begin:
            self._write(current, message)
        else:
            self.late += 1

    def _settle(self, due: Callable[[ReceivedMessage], bool]) -> None:
        """Writes waiting messages that certainly belong to the current episode."""
        waiting, current = list(self._pending), self._under_way()
        self._pending.clear()
        for message in waiting:
            if message.stamp and message.stamp < current.begin:
                self.late += 1
            elif not message.stamp or due(message):
                self._write(current, message)
            else:
                self._pending.append(message)

    # -- episodes -----------------------------------------------------------------------------

    def begin(self, now: int) -> str:
        """Starts an episode by hand; returns the bag's name."""
        if self._current is not None:
            raise VlaError(f"{self._current.name} is being recorded", "end it first")
        self._pending.clear()
        return self._begin(now, now).name

    def end(self, now: int, outcome: str = "", at: int = 0) -> None:
        """now, at: as a message's `log` and `arrived`."""
        if self._current is None:
            raise VlaError("nothing is being recorded", "begin an episode first")
        self._settle(lambda _: True)
        self._current.metadata.setdefault("outcome", outcome or UNFINISHED)
        self._end(now, at or now)

    def _under_way(self) -> _Open:
        """The current episode, where there is one for sure."""
        assert self._current is not None
        return self._current

    def _begin(self, now: int, stamp: int) -> _Open:
        name = f"episode_{self._next:06d}"
        self._next += 1
        self._current = _Open(EpisodeBag(self._place.path / name, self.storage), name, stamp)
        before = [] if self._instruction is None else [self._instruction]
        for message in (*before, *self._holding(stamp)):
            latched = message.role != "human_action"
            self._write(self._current, replace(message, log=now, latched=latched))
        self._pending = deque((m for m in self._pending if m.role != "instruction"), MOST_PENDING)
        return self._current

    def _hold(self, message: ReceivedMessage) -> None:
        """Writes it to every bag in which it may hold, however late it comes."""
        self._held[message.role].append(message)
        for bag in self._closing:
            if message.stamp <= bag.end or message.role == "source":
                self._write(bag, message)
        if self._current is not None:
            self._write(self._current, message)

    def _holding(self, stamp: int) -> list[ReceivedMessage]:
        """What holds at that time, as far as it was heard, and all that came after it."""
        found: list[ReceivedMessage] = []
        for messages in self._held.values():
            last = max((m.stamp for m in messages if m.stamp <= stamp), default=0)
            found += [m for m in messages if m.stamp >= last]
        return found

    def _end(self, stamp: int, now: int) -> None:
        ended, self._current = self._under_way(), None
        ended.end, ended.deadline = stamp, now + round(GRACE * NS)
        self._closing.append(ended)
        self._ended = stamp

    def tick(self, now: int) -> None:
        """Closes bags when it is time; messages that waited long enough go to the current
        episode. now: as a message's `at`."""
        if self._pending and self._current is not None:
            long_ago = now - round(GRACE * NS)
            self._settle(lambda m: m.at <= long_ago)
        while self._closing and now >= self._closing[0].deadline:
            self._close(self._closing.pop(0))

    def close(self) -> None:
        """Closes all bags; a running episode is kept as unfinished."""
        if self._current is not None:
            self._settle(lambda _: True)
            self._closing.append(self._current)
            self._current = None
        failed: list[OSError] = []
        for bag in self._closing:
            bag.metadata.setdefault("outcome", UNFINISHED)
            try:
                self._close(bag)
            except OSError as error:
                failed.append(error)
        self._closing.clear()
        self._place.remove_empty()  # what could not be moved stays
        self._lock.release()
        if failed:
            raise failed[0]

    def _close(self, done: _Open) -> None:
        if "action" not in done.topics and not done.cameras:
            done.bag.abort()  # nothing but words
            return
        about = {
            "episodes": 1,
            "topics": {"cameras": done.cameras, **done.topics},
            "metadata": done.metadata,
        }
        readable = {
            "instruction": str(done.metadata.get("instruction", "")),
            "outcome": str(done.metadata.get("outcome", "")),
        }
        counts = dict(done.bag.messages)
        done.bag.close(about, readable)
        path = self._move(done)
        self.count += 1
        self.saved(path, done.metadata, counts)

    def _move(self, done: _Open) -> Path:
        """Gives a complete bag its name, or the next free one."""
        sync_tree(done.bag.path)
        path = self.folder / done.name
        while True:
            try:
                os.rename(done.bag.path, path)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                path = self.folder / f"episode_{self._next:06d}"
                self._next += 1
            else:
                sync(self.folder)
                return path

    # -- messages -----------------------------------------------------------------------------

    def _write(self, into: _Open, message: ReceivedMessage) -> None:
        topic, kind = message.topic, message.type
        data: bytes | memoryview = message.data
        if message.role == "image":
            if kind == types.IMAGE and self.images != "raw":
                topic, kind, data = self._compress(message)
            frame = _frame_id(message.data)
            name = frame.removesuffix("_optical") if frame.endswith("_optical") else ""
            into.cameras.setdefault(name or camera_name(topic), topic)
        elif message.role in NOTED:
            into.topics[message.role] = topic
        into.bag.write(topic, kind, message.log, data, latched=message.latched)

    def _compress(self, message: ReceivedMessage) -> tuple[str, str, bytes | memoryview]:
        image: Any = self.store.deserialize_cdr(message.data, types.IMAGE)
        if image.encoding not in LOSSLESS:
            return message.topic, message.type, message.data
        pixels = decode_image(types.IMAGE, image, message.topic)
        packed = self.store.types[types.COMPRESSED](
            header=image.header,
            format=f"rgb8; {self.images} compressed bgr8",
            data=np.frombuffer(encode_image(pixels, self.images), np.uint8),
        )
        data = self.store.serialize_cdr(packed, types.COMPRESSED)
        return f"{message.topic}/compressed", types.COMPRESSED, data


def _frame_id(data: bytes) -> str:
    """The frame_id of a message that begins with a header."""
    length = int.from_bytes(data[12:16], "little" if data[1] & 1 else "big")
    return data[16 : 16 + max(0, length - 1)].decode("utf-8", "replace")
