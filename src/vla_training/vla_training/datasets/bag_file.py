"""The storage of one rosbag2 bag (MCAP or SQLite, Humble's and Jazzy's metadata), without ROS.

A whole bag is read by `rosbags`. Of one that is damaged, all that is readable is read record by
record, and `lost` says what is not.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader

from vla_inference.errors import DataError, VlaError
from vla_training.datasets.bag_salvage import Salvage, salvage_mcap, salvage_sqlite
from vla_training.datasets.bag_types import bag_types

METADATA, ROOT = "metadata.yaml", "rosbag2_bagfile_information"
SUFFIXES = (".mcap", ".db3")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_OPEN = 8
T = TypeVar("T")

_open_readers: dict[tuple, Reader] = {}  # the last ones used, the newest at the end


def _identity(path: Path) -> tuple:
    """Of what stands there now: another bag may come to the same place."""
    about = path.stat()
    return path, about.st_ino, about.st_mtime_ns


def is_bag(path: Path) -> bool:
    """Whether this is one bag: its folder, or its storage file."""
    if path.is_dir():
        return any(f.suffix in SUFFIXES or f.name == METADATA for f in _files(path))
    return path.suffix in SUFFIXES


def find_bags(path: Path) -> list[Path]:
    """The bags at `path`: itself, or those in its folders, by name."""
    if is_bag(path):
        return [path]
    if not path.is_dir():
        return []
    found: list[Path] = []
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != "."):
        found += find_bags(folder)
    return found


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_file()]


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
        self._definitions: dict[str, MessageDefinition] = {}
        self._salvaged: list[tuple[Callable[..., Salvage], Path]] | None = None
        try:
            self._open()
        except Exception as error:  # rosbags raises all kinds on damaged files
            self._fall_back(error)

    def _open(self) -> None:
        """From metadata.yaml, where that is there: opening the storage takes 50 times longer."""
        if self.path.is_dir():
            info = self._metadata()
            self.custom = _texts(info.get("custom_data"))
            for t in info["topics_with_message_count"]:
                name, kind = t["topic_metadata"]["name"], t["topic_metadata"]["type"]
                self.topics.setdefault(name, Topic(name, kind, int(t["message_count"])))
            return
        for c in self._reader().connections:
            self.topics.setdefault(c.topic, Topic(c.topic, c.msgtype, c.msgcount))

    def _reader(self) -> Reader:
        """Opened, and kept so while it is among the last ones used."""
        key = _identity(self.path)
        reader = _open_readers.pop(key, None)
        if reader is None:
            reader = Reader(self.path)
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
        """What `work`, which reads messages, returns; done again if the bag proves damaged."""
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
        """Those of these topics recorded in [start, stop) ns, in no particular order."""
        if self._salvaged is not None:
            for read, path in self._salvaged:
                for m in read(path).messages():
                    late = stop is not None and m.log >= stop
                    if m.topic in topics and not late and (start is None or m.log >= start):
                        yield Message(m.topic, m.log, m.data)
            return
        reader = self._reader()
        wanted = [c for c in reader.connections if c.topic in topics]
        if wanted:
            for connection, log, data in reader.messages(wanted, start, stop):
                yield Message(connection.topic, log, data)

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
        except Exception as error:  # struct.error, IndexError ...: whatever its bytes bring about
            raise DataError(
                f"{self.path}: a message of {message.topic} is no {kind} ({error})",
                "the bag is damaged: copy it again",
            ) from error

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
        """Read what can be read, and find out what cannot."""
        self.lost, self.topics, self._definitions = [], {}, {}
        reader = _open_readers.pop(_identity(self.path), None)
        if reader is not None:
            with contextlib.suppress(Exception):  # what broke may not close
                reader.close()
        expected = self._read_metadata()
        files = [self.path] if self.path.is_file() else sorted(_files(self.path))
        files = [f for f in files if f.suffix in SUFFIXES]
        if not files:
            raise DataError(
                f"{self.path} cannot be read ({error})", "it holds no .mcap or .db3: copy it again"
            )
        self._salvaged = []
        counts: Counter[str] = Counter()
        for file in files:
            read = salvage_mcap if file.suffix == ".mcap" else salvage_sqlite
            found = read(file)
            counts.update(m.topic for m in found.messages())
            self._salvaged.append((read, file))
            self._definitions.update(found.definitions)
            self.lost += [f"{file.name}: {what}" for what in found.lost]
            for name, kind in found.types.items():
                self.topics[name] = Topic(name, kind, 0)
        if not counts:
            raise DataError(
                f"{self.path} is damaged and nothing in it can be read ({error}; "
                f"{'; '.join(self.lost) or 'it is empty'})",
                "copy or record it again",
            )
        self.topics = {n: Topic(n, t.type, counts[n]) for n, t in self.topics.items()}
        for name, count in expected.items():
            if counts[name] < count:
                self.lost.append(f"{count - counts[name]} of {count} messages of {name}")

    def _read_metadata(self) -> dict[str, int]:
        """Messages there should be by topic; fills in `custom`."""
        if not self.path.is_dir():
            return {}
        try:
            info = self._metadata()
            self.custom = _texts(info.get("custom_data"))
            return {
                t["topic_metadata"]["name"]: int(t["message_count"])
                for t in info["topics_with_message_count"]
            }
        except FileNotFoundError:
            self.lost.append(f"{METADATA} is not there: the recorder may have been killed")
        except Exception as error:  # any YAML may stand in it, or none
            self.lost.append(f"{METADATA} cannot be read ({type(error).__name__})")
        return {}
