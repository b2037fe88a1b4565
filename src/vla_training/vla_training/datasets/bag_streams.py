"""What a bag's topics say, as arrays over time; pictures stay in the bag until they are asked for.

A message's time is its header's stamp, or, where it has none, when it was recorded. Streams of
both kinds are compared by the time that both have.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_inference.errors import DataError, ObservationError
from vla_inference.ros.images import ENCODINGS, compressed_to_rgb, image_to_rgb
from vla_training.datasets.bag_file import BagFile, Message
from vla_training.datasets.bag_topics import BagTopics
from vla_training.datasets.bag_types import COMPRESSED

NS = 1_000_000_000
HEADERLESS = ("std_msgs/", "vla_msgs/msg/EefDelta")
# encoding -> channels, and OpenCV's name of the conversion to RGB
CONVERTED = {
    "8UC1": (1, "GRAY2RGB"), "8UC3": (3, "BGR2RGB"), "8UC4": (4, "BGRA2RGB"),
    "bayer_rggb8": (1, "BayerBG2RGB"), "bayer_bggr8": (1, "BayerRG2RGB"),
    "bayer_gbrg8": (1, "BayerGR2RGB"), "bayer_grbg8": (1, "BayerGB2RGB"),
    "yuv422": (2, "YUV2RGB_UYVY"), "uyvy": (2, "YUV2RGB_UYVY"),
    "yuv422_yuy2": (2, "YUV2RGB_YUY2"), "yuyv": (2, "YUV2RGB_YUY2"),
}  # fmt: skip
WIDE = {"rgb16": "rgb8", "bgr16": "bgr8", "mono16": "mono8", "rgba16": "rgba8", "bgra16": "bgra8"}


@dataclass
class Stream:
    """Messages of a topic in the order of their time.

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

    def stream(self, stamped: bool) -> Stream:
        stamps, logs = np.array(self.stamps, np.int64), np.array(self.logs, np.int64)
        stamped = stamped and bool(len(stamps)) and bool((stamps > 0).all())
        if not stamped:
            stamps = logs
        recorded = stamps[np.argsort(logs, kind="stable")]
        late = int((recorded < np.maximum.accumulate(recorded)).sum()) if len(stamps) else 0
        order = np.lexsort((logs, stamps))
        return Stream(stamps[order], logs[order], [self.values[i] for i in order], stamped, late)


def header_stamp(data: bytes) -> int:
    """ns, of a message that begins with a std_msgs/Header; without decoding it."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds * NS + nanoseconds


def read_streams(
    bag: BagFile, topics: BagTopics, digest: Callable[[str, Any, Message], Any]
) -> dict[str, Stream]:
    """Topic -> its stream. digest: (topic, decoded message, message) -> what is kept of it; of
    pictures nothing is."""
    pictures = set(topics.cameras.values())
    wanted = pictures | set(topics.small)
    collected = {topic: _Collected() for topic in wanted}
    for message in bag.messages(wanted):
        into, kind = collected[message.topic], bag.topics[message.topic].type
        stamped = not kind.startswith(HEADERLESS)
        value = None
        if message.topic not in pictures:
            value = digest(message.topic, bag.decode(message), message)
        into.stamps.append(header_stamp(message.data) if stamped else message.log)
        into.logs.append(message.log)
        into.values.append(value)
    return {
        topic: c.stream(not bag.topics[topic].type.startswith(HEADERLESS))
        for topic, c in collected.items()
    }


def nearest(times: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `at` [M] the index of the nearest of sorted `times` [N], and how far it is."""
    if not len(times):
        return np.zeros(len(at), int), np.full(len(at), np.iinfo(np.int64).max)
    right = np.clip(np.searchsorted(times, at), 0, len(times) - 1)
    left = np.maximum(right - 1, 0)
    index = np.where(np.abs(times[left] - at) <= np.abs(times[right] - at), left, right)
    return index, np.abs(times[index] - at)


def held(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """For each of `at` the index of the last of sorted `times` that is not later; -1: none."""
    return np.searchsorted(times, at, side="right") - 1


# -- pictures ---------------------------------------------------------------------------------


def decode_image(kind: str, msg: Any, where: str) -> np.ndarray:
    """uint8 [H, W, 3] RGB of a decoded Image or CompressedImage; raises DataError."""
    try:
        if kind == COMPRESSED:
            return compressed_to_rgb(msg)
        if msg.encoding in ENCODINGS:
            return image_to_rgb(msg)
        return _convert(msg)
    except ObservationError as error:
        raise DataError(f"{where}: {error.problem}", error.remedy) from error


def _convert(msg: Any) -> np.ndarray:
    import cv2

    if msg.encoding in WIDE:
        return image_to_rgb(_narrowed(msg))
    if msg.encoding not in CONVERTED:
        known = ", ".join((*ENCODINGS, *CONVERTED, *WIDE))
        raise ObservationError(f"the picture's encoding is {msg.encoding!r}", f"known: {known}")
    channels, code = CONVERTED[msg.encoding]
    pixels = _rows(msg, msg.width * channels).reshape(msg.height, msg.width, channels)
    pixels = np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels)
    return cv2.cvtColor(pixels, getattr(cv2, f"COLOR_{code}"))


def _rows(msg: Any, used: int) -> np.ndarray:
    """uint8 [H, used]: the rows without their padding."""
    flat = np.frombuffer(msg.data, np.uint8)
    if not msg.height or not msg.width or msg.step < used or flat.size < msg.step * msg.height:
        raise ObservationError(
            f"a {msg.width}x{msg.height} picture in {msg.encoding} with rows of {msg.step} bytes "
            f"has {flat.size} bytes",
            "mend the publisher",
        )
    return flat[: msg.step * msg.height].reshape(msg.height, msg.step)[:, :used]


@dataclass(frozen=True)
class _Plain:
    encoding: str
    height: int
    width: int
    step: int
    data: np.ndarray


def _narrowed(msg: Any) -> _Plain:
    """16 bits a channel -> 8, the upper ones."""
    narrow = WIDE[msg.encoding]
    used = msg.width * ENCODINGS[narrow][0]
    rows = np.ascontiguousarray(_rows(msg, 2 * used))
    wide = rows.view(">u2" if msg.is_bigendian else "<u2")
    small = (wide >> 8).astype(np.uint8)
    return _Plain(narrow, msg.height, msg.width, used, small.ravel())


def values_of(msg: Any, joint: str | None = None) -> Sequence[float]:
    """The numbers of an array, a number, joint states (one joint's, if named) or a pose."""
    if hasattr(msg, "position") and hasattr(msg, "name"):
        if joint is None:
            return [float(v) for v in msg.position]
        names = list(msg.name)
        if joint not in names:
            raise DataError(f"there is no joint {joint!r}", f"joints: {', '.join(names)}")
        return [float(msg.position[names.index(joint)])]
    if hasattr(msg, "pose"):
        return pose_values(msg)
    data = msg.data
    return [float(v) for v in data] if np.ndim(data) else [float(data)]


def pose_values(msg: Any) -> list[float]:
    """x y z (m), quaternion x y z w of a PoseStamped."""
    p, q = msg.pose.position, msg.pose.orientation
    return [p.x, p.y, p.z, q.x, q.y, q.z, q.w]
