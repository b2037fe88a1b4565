"""Reads what is intact of a damaged MCAP or SQLite file, record by record."""

from __future__ import annotations

import io
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import lz4.frame
import zstandard
from mcap.records import Channel, Chunk, McapRecord, Schema
from mcap.records import Message as McapMessage
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat

FORMATS = {
    "ros1msg": MessageDefinitionFormat.MSG,
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "omgidl": MessageDefinitionFormat.IDL,
}
CHUNK_RECORD = 0x06
MOST_ERRORS = 1000  # rows that cannot be read, one after the other, before giving up


class Found(NamedTuple):
    topic: str
    log: int
    data: bytes


@dataclass
class Salvage:
    """What can be read of a damaged file.

    types: topic -> type, definitions: type -> definition, lost: for people. encodings: topic
    -> how its messages are written ("cdr", "ros1", "protobuf" ...), where that is said.

    All are complete only once `messages` was gone through.
    """

    messages: Callable[[], Iterator[Found]]
    types: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, MessageDefinition] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    encodings: dict[str, str] = field(default_factory=dict)


def salvage(path: Path) -> Salvage:
    """The readable part of a storage file."""
    return salvage_mcap(path) if path.suffix == ".mcap" else salvage_sqlite(path)


# -- MCAP -------------------------------------------------------------------------------------


def salvage_mcap(path: Path) -> Salvage:
    result = Salvage(lambda: _mcap_messages(path, result))
    return result


def _mcap_messages(path: Path, result: Salvage) -> Iterator[Found]:
    result.lost.clear()
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    for record in _mcap_records(path, result.lost):
        if isinstance(record, Schema):
            schemas[record.id] = record
            if record.encoding in FORMATS:
                result.definitions[_type_name(record.name)] = MessageDefinition(
                    FORMATS[record.encoding], record.data.decode("utf-8", "replace")
                )
        elif isinstance(record, Channel):
            channels[record.id] = record
            if record.schema_id in schemas:
                result.types[record.topic] = _type_name(schemas[record.schema_id].name)
                result.encodings[record.topic] = record.message_encoding
        elif isinstance(record, McapMessage) and record.channel_id in channels:
            topic = channels[record.channel_id].topic
            if topic in result.types:
                yield Found(topic, record.log_time, record.data)


def _type_name(name: str) -> str:
    """As ROS 2 has it: geometry_msgs/Twist -> geometry_msgs/msg/Twist."""
    package, _, kind = name.partition("/")
    return f"{package}/msg/{kind}" if kind and "/" not in kind else name


def _mcap_records(path: Path, lost: list[str]) -> Iterator[McapRecord]:
    """Every record, also in chunks; what cannot be read goes to `lost`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        records = StreamReader(file, emit_chunks=True, record_size_limit=None).records
        while True:
            position = file.tell()
            try:
                record = next(records, None)
            except Exception as error:  # cut short, or no record at all
                file.seek(position)
                rest = file.read()
                lost.append(
                    f"the file breaks off at byte {position} of {size} "
                    f"({type(error).__name__}): what came after is gone"
                )
                if rest[:1] == bytes([CHUNK_RECORD]):
                    yield from _inside(rest[9:])
                return
            if record is None:
                return
            if not isinstance(record, Chunk):
                yield record
                continue
            try:
                inner = list(breakup_chunk(record, validate_crc=True))
            except Exception as error:  # mcap, lz4 and zstandard each have kinds of their own
                lost.append(f"a chunk at byte {position} is damaged ({type(error).__name__})")
                yield from _readable(_unpack(record.data, record.compression))
            else:
                yield from inner


def _inside(content: bytes) -> Iterator[McapRecord]:
    """Records at the start of a truncated chunk."""
    try:
        (length,) = struct.unpack_from("<I", content, 28)
        compression = content[32 : 32 + length].decode()
    except (struct.error, UnicodeDecodeError):
        return
    yield from _readable(_unpack(content[32 + length + 8 :], compression))


def _unpack(data: bytes, compression: str) -> bytes:
    """The part of a chunk that can be decompressed."""
    whole = io.BytesIO()
    try:
        if not compression:
            return data
        if compression == "zstd":
            machine = zstandard.ZstdDecompressor().decompressobj()
        elif compression == "lz4":
            machine = lz4.frame.LZ4FrameDecompressor()
        else:
            return b""
        for i in range(0, len(data), 4096):  # so that an error takes no more than its own block
            whole.write(machine.decompress(data[i : i + 4096]))
    except Exception:  # as above: what came before the damage counts
        pass
    return whole.getvalue()


def _readable(content: bytes) -> Iterator[McapRecord]:
    try:
        yield from StreamReader(io.BytesIO(content), skip_magic=True).records
    except Exception:  # the records before the damage were yielded
        return


# -- SQLite -----------------------------------------------------------------------------------


def salvage_sqlite(path: Path) -> Salvage:
    result = Salvage(lambda: _sqlite_messages(path, result))
    return result


def _sqlite_messages(path: Path, result: Salvage) -> Iterator[Found]:
    result.lost.clear()
    database = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    database.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        # A file shorter than its header says is opened only so.
        database.execute("PRAGMA writable_schema=ON")
        try:
            topics = dict[int, str]()
            for number, name, kind in database.execute("SELECT id, name, type FROM topics"):
                topics[number] = name
                result.types[name] = kind
        except sqlite3.Error as error:
            result.lost.append(f"its topics cannot be read ({error})")
            return
        _sqlite_definitions(database, result)
        unreadable = row = errors = 0
        while errors < MOST_ERRORS:
            row += 1
            try:
                found = database.execute(
                    "SELECT topic_id, timestamp, data FROM messages WHERE id = ?", (row,)
                ).fetchone()
            except sqlite3.Error:
                errors += 1
                continue
            if found is None:
                # rows are numbered without gaps, unless somebody deleted some
                found_next = _next_row(database, row)
                if found_next is None:
                    break
                row = found_next - 1
                continue
            unreadable, errors = unreadable + errors, 0
            if found[0] in topics and isinstance(found[2], bytes):
                yield Found(topics[found[0]], found[1], found[2])
        if unreadable:
            result.lost.append(f"{unreadable} rows of messages in between cannot be read")
        if errors:
            result.lost.append(f"the table of messages breaks off at row {row - errors + 1}")
    finally:
        database.close()


def _next_row(database: sqlite3.Connection, row: int) -> int | None:
    try:
        return database.execute("SELECT min(id) FROM messages WHERE id > ?", (row,)).fetchone()[0]
    except sqlite3.Error:
        return None


def _sqlite_definitions(database: sqlite3.Connection, result: Salvage) -> None:
    """Humble has no such table: then there are none."""
    try:
        rows = database.execute(
            "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
        ).fetchall()
    except sqlite3.Error:
        return
    for kind, encoding, text in rows:
        if encoding in FORMATS:
            result.definitions[kind] = MessageDefinition(FORMATS[encoding], text)
