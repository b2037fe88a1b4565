"""Storage of one bag (MCAP, SQLite, ROS 1) and its metadata, without ROS.

A whole bag is read by `rosbags`. Of one that is damaged, or that `rosbags` does not know, all that
is readable is read record by record, and `lost` says what is not. Messages come as ROS 2 has them,
whatever recorded them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2 import Reader as Ros2Reader

from vla_inference.errors import DataError, VlaError
from vla_training.datasets.bag.files.message_types import bag_types
from vla_training.datasets.bag.files.paths import METADATA, ROS1, files_of, storage
from vla_training.datasets.bag.files.salvage import salvage
from vla_training.datasets.bag.files.unpack import plain, unpacked

ROOT = "rosbag2_bagfile_information"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_OPEN = 8
CDR, ROS1_ENCODING = "cdr", "ros1"
T = TypeVar("T")
Reader = Ros1Reader | Ros2Reader

_open_readers: dict[tuple, Reader] = {}  # the last ones used, the newest at the end


def _identity(path: Path) -> tuple:
    """Identifies the current files, because another bag may replace them."""
    about = path.stat()
    return path, about.st_ino, about.st_mtime_ns


def _texts(given: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in dict(given or {}).items()}


@dataclass(frozen=True)
class Topic:
    name: str
    type: str
    count: int


class Message(NamedTuple):
    """log: when it was recorded [ns]; data: CDR."""

    topic: str
    log: int
    data: bytes


class BagFile:
    """One bag. Can be pickled.

    topics: by name. custom: custom_data of its metadata. lost: what cannot be read, for people.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lost: list[str] = []
        self.topics: dict[str, Topic] = {}
        self.custom: dict[str, str] = {}
        self.ros1 = storage(path) == ROS1
        self._ros1_topics: set[str] = set()  # of a ROS 2 storage
        self._definitions: dict[str, MessageDefinition] = {}
        self._salvaged: list[Path] | None = None
        try:
            self._open()
        except Exception as error:  # rosbags raises all kinds on damaged files
            self._fall_back(error)

    def _open(self) -> None:
        """Opens by metadata.yaml if possible: opening the storage takes 50 times longer."""
        if self.path.is_dir():
            info = self._metadata()
            self.custom = _texts(info.get("custom_data"))
            for topic in map(_topic, info["topics_with_message_count"]):
                self.topics.setdefault(topic.name, topic)
            return
        for c in self._reader().connections:
            self.topics.setdefault(c.topic, Topic(c.topic, c.msgtype, c.msgcount))

    def _reader(self) -> Reader:
        """An open reader, kept while it is among the last ones used."""
        key = _identity(self.path)
        reader = _open_readers.pop(key, None)
        if reader is None:
            reader = (Ros1Reader if self.ros1 else Ros2Reader)(self.path)
            reader.open()
            for c in reader.connections:
                if c.msgdef.format != MessageDefinitionFormat.NONE:
                    self._definitions[c.msgtype] = c.msgdef
        _open_readers[key] = reader
        while len(_open_readers) > MOST_OPEN:
            _open_readers.pop(next(iter(_open_readers))).close()
        return reader

    def _metadata(self) -> dict[str, Any]:
        return yaml.load((self.path / METADATA).read_text("utf-8"), LOADER)[ROOT]

    def reading(self, work: Callable[[], T]) -> T:
        """The result of `work`, which reads messages; repeated if the bag proves damaged."""
        if self._salvaged is None:
            try:
                return work()
            except VlaError:
                raise
            except Exception as error:  # as on opening
                self._fall_back(error)
        return work()

    def messages(
        self, topics: Collection[str], start: int | None = None, stop: int | None = None
    ) -> Iterator[Message]:
        """Messages of these topics recorded in [start, stop) ns, in no particular order."""
        if self._salvaged is not None:
            for path in self._salvaged:
                for m in salvage(unpacked(path)[0]).messages():
                    late = stop is not None and m.log >= stop
                    if m.topic in topics and not late and (start is None or m.log >= start):
                        yield Message(m.topic, m.log, self._cdr(m.topic, m.data))
            return
        reader = self._reader()
        wanted = [c for c in reader.connections if c.topic in topics]
        found: Counter[str] = Counter()
        if wanted:
            for connection, log, data in reader.messages(wanted, start, stop):
                found[connection.topic] += 1
                yield Message(connection.topic, log, self._cdr(connection.topic, data))
        if start is None and stop is None:
            for topic in topics:
                if found[topic] < self.topics[topic].count:
                    raise EOFError(f"{self.path} has {found[topic]} messages of {topic}")

    def _cdr(self, topic: str, data: bytes) -> bytes:
        """A message's bytes in ROS 2's serialisation."""
        kind = self.topics[topic].type
        try:
            if self.ros1 or topic in self._ros1_topics:
                return bytes(bag_types(self._definitions).ros1_to_cdr(data, kind))
            return plain(data)
        except Exception as error:  # as in `decode`
            raise DataError(
                f"{self.path}: a message of {topic} is not a {kind} ({error})",
                "the bag is damaged: copy it again",
            ) from error

    def decode(self, message: Message) -> Any:
        """The message as an object with the fields of its type; raises DataError."""
        kind = self.topics[message.topic].type
        if self._salvaged is None and not self._definitions:
            self._reader()  # brings them; a pickled copy may not have read anything yet
        try:
            return bag_types(self._definitions).deserialize_cdr(message.data, kind)
        except KeyError as error:
            raise DataError(
                f"{self.path}: the type {kind} of {message.topic} is defined nowhere",
                "record it with definitions (MCAP), or source the workspace it is from",
            ) from error
        except Exception as error:  # struct.error, IndexError ...: from arbitrary bytes
            raise DataError(
                f"{self.path}: a message of {message.topic} is not a {kind} ({error})",
                "the bag is damaged: copy it again",
            ) from error

    def first(self, topic: str) -> Any:
        """The first message of a topic, decoded; None if it has none."""
        for message in self.messages({topic}):
            return self.decode(message)
        return None

    def listing(self) -> str:
        """Its topics, for messages."""
        if not self.topics:
            return "nothing"
        return ", ".join(
            f"{t.name} ({t.type.replace('/msg/', '/')}, {t.count})"
            for t in sorted(self.topics.values(), key=lambda t: t.name)
        )

    # -- damaged bags -------------------------------------------------------------------------

    def _fall_back(self, error: Exception) -> None:
        """Switches to reading what is readable, and finds out what is not."""
        self.lost, self.topics, self._definitions = [], {}, {}
        reader = _open_readers.pop(_identity(self.path), None)
        if reader is not None:
            with contextlib.suppress(Exception):  # what broke may not close
                reader.close()
        if self.ros1:
            raise DataError(
                f"{self.path} cannot be read ({error})",
                "repair it with ROS 1 (`rosbag reindex`, `rosbag fix`), then try again",
            )
        self.topics = self._read_metadata()  # one that was cut off before its first message too
        expected = {t.name: t.count for t in self.topics.values()}
        files = [self.path] if self.path.is_file() else files_of(self.path)
        files = [f for f in files if storage(f)]
        if not files:
            raise DataError(
                f"{self.path} cannot be read ({error})", "it has no .mcap or .db3: copy it again"
            )
        self._salvaged = files
        counts: Counter[str] = Counter()
        foreign: dict[str, str] = {}
        for file in files:
            path, lost = unpacked(file)
            found = salvage(path)
            counts.update(m.topic for m in found.messages())
            self._definitions.update(found.definitions)
            self.lost += [f"{file.name}: {what}" for what in (lost, *found.lost) if what]
            for name, kind in found.types.items():
                encoding = found.encodings.get(name, CDR)
                if encoding == ROS1_ENCODING:
                    self._ros1_topics.add(name)
                elif encoding != CDR:
                    foreign[name], kind = encoding, f"{kind} in {encoding}"
                self.topics[name] = Topic(name, kind, 0)
        if not counts:
            raise DataError(
                f"{self.path} is damaged and nothing in it can be read ({error}; "
                f"{'; '.join(self.lost) or 'it is empty'})",
                "copy or record it again",
            )
        if not set(counts) - set(foreign):
            raise DataError(
                f"{self.path} contains messages in {', '.join(sorted(set(foreign.values())))}, "
                "none "
                "of ROS",
                f"record its topics with ROS 2; it contains {self.listing()}",
            )
        self.topics = {n: Topic(n, t.type, counts[n]) for n, t in self.topics.items()}
        for name, count in expected.items():
            if counts[name] < count:
                self.lost.append(f"{count - counts[name]} of {count} messages of {name}")

    def _read_metadata(self) -> dict[str, Topic]:
        """The topics and message counts there should be; fills in `custom`."""
        if not self.path.is_dir():
            return {}
        try:
            info = self._metadata()
            self.custom = _texts(info.get("custom_data"))
            return {t.name: t for t in map(_topic, info["topics_with_message_count"])}
        except FileNotFoundError:
            self.lost.append(f"{METADATA} is missing: the recorder may have been killed")
        except Exception as error:  # any YAML may stand in it, or none
            self.lost.append(f"{METADATA} cannot be read ({type(error).__name__})")
        return {}


def _topic(entry: Mapping[str, Any]) -> Topic:
    """As metadata has it."""
    about = entry["topic_metadata"]
    return Topic(about["name"], about["type"], int(entry["message_count"]))
