"""A bag's topics as arrays over time; images are read from the bag on access.

A message's time is its header's stamp, or, where it has none, when it was recorded. Streams of
both kinds are compared by the time that both have.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_inference.errors import DataError, ObservationError
from vla_inference.inputs.image_messages import compressed_to_rgb, image_to_rgb
from vla_training.datasets.bag.files.message_types import COMPRESSED, SOURCE
from vla_training.datasets.bag.files.storage import BagFile
from vla_training.datasets.bag.topics import BagTopics

NS = 1_000_000_000
HEADERLESS = ("std_msgs/", "vla_msgs/msg/EefDelta")


@dataclass
class Stream:
    """Messages of a topic in order of time.

    stamps, logs: int64 [N] ns, when it was and when it was recorded. stamped: whether the messages
    have stamps of their own. disordered: how many were recorded after a later one.
    """

    stamps: np.ndarray
    logs: np.ndarray
    values: list[Any]
    stamped: bool
    disordered: int = 0

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def times(self) -> np.ndarray:
        return self.stamps if self.stamped else self.logs


@dataclass
class _Collected:
    stamps: list[int] = field(default_factory=list)
    logs: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def stream(self, stamped: bool, from_zero: bool = False) -> Stream:
        """from_zero: a stamp of 0 is one, too: before a simulation's clock began."""
        stamps, logs = np.array(self.stamps, np.int64), np.array(self.logs, np.int64)
        stamped = stamped and bool(len(stamps)) and bool((stamps > 0).all() or from_zero)
        if not stamped:
            stamps = logs
        recorded = stamps[np.argsort(logs, kind="stable")]
        late = int((recorded < np.maximum.accumulate(recorded)).sum()) if len(stamps) else 0
        order = np.lexsort((logs, stamps))
        return Stream(stamps[order], logs[order], [self.values[i] for i in order], stamped, late)


def header_stamp(data: bytes) -> int:
    """Stamp in ns of a message that begins with a std_msgs/Header, without decoding it."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds * NS + nanoseconds


def read_streams(
    bag: BagFile, topics: BagTopics, digest: Callable[[str, Any], Any]
) -> dict[str, Stream]:
    """Topic -> its stream. digest: (topic, decoded message) -> what is kept of it; of images
    nothing is."""
    images = set(topics.cameras.values())
    wanted = images | set(topics.small)
    collected = {topic: _Collected() for topic in wanted}
    for message in bag.messages(wanted):
        into, kind = collected[message.topic], bag.topics[message.topic].type
        stamped = not kind.startswith(HEADERLESS)
        value = None
        if message.topic not in images:
            value = digest(message.topic, bag.decode(message))
        into.stamps.append(header_stamp(message.data) if stamped else message.log)
        into.logs.append(message.log)
        into.values.append(value)
    return {
        topic: c.stream(
            not bag.topics[topic].type.startswith(HEADERLESS), bag.topics[topic].type == SOURCE
        )
        for topic, c in collected.items()
    }


def nearest(times: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `at` [M] the index of the nearest of sorted `times` [N], and its distance."""
    if not len(times):
        return np.zeros(len(at), int), np.full(len(at), np.iinfo(np.int64).max)
    right = np.clip(np.searchsorted(times, at), 0, len(times) - 1)
    left = np.maximum(right - 1, 0)
    index = np.where(np.abs(times[left] - at) <= np.abs(times[right] - at), left, right)
    return index, np.abs(times[index] - at)


def held(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """For each of `at` the index of the last of sorted `times` that is not later; -1: none."""
    return np.searchsorted(times, at, side="right") - 1


# -- images ---------------------------------------------------------------------------------


def decode_image(kind: str, msg: Any, where: str) -> np.ndarray:
    """uint8 [H, W, 3] RGB of a decoded Image or CompressedImage; raises DataError."""
    try:
        return compressed_to_rgb(msg) if kind == COMPRESSED else image_to_rgb(msg)
    except ObservationError as error:
        raise DataError(f"{where}: {error.problem}", error.remedy) from error
