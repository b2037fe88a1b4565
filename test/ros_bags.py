"""Small bags written by rosbags alone, without this project's code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

NS = 1_000_000_000
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINTS, STRING = "sensor_msgs/msg/JointState", "std_msgs/msg/String"
TWIST, POSE = "geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/PoseStamped"
FLOAT = "std_msgs/msg/Float64"
CAMERA, SERVO = "/camera/color/image_raw", "/servo_node/delta_twist_cmds"

Message = tuple[str, str, float, Any]  # topic, type, when it was recorded [s], message


class Ros:
    """Messages of a ROS distribution by short calls. time: header's stamp, s."""

    def __init__(self, store: str = "ROS2_JAZZY"):
        self.store = get_typestore(getattr(Stores, store))
        self.types = self.store.types

    def header(self, time: float, frame: str = "") -> Any:
        ns = round(time * NS)
        stamp = self.types["builtin_interfaces/msg/Time"](ns // NS, ns % NS)
        kind = self.types["std_msgs/msg/Header"]
        first = (0,) if "seq" in kind.__dataclass_fields__ else ()  # ROS 1
        return kind(*first, stamp, frame)

    def image(
        self, time: float, encoding: str, height: int, width: int, step: int, data: Any
    ) -> Any:
        flat = np.asarray(data, np.uint8).ravel()
        return self.types[IMAGE](self.header(time, "cam"), height, width, encoding, 0, step, flat)

    def grey(self, time: float, level: int, size: int = 32) -> Any:
        return self.image(time, "rgb8", size, size, 3 * size, np.full((size, size, 3), level))

    def compressed(self, time: float, form: str, data: bytes) -> Any:
        return self.types[COMPRESSED](
            self.header(time, "cam"), form, np.frombuffer(data, np.uint8)
        )

    def twist(
        self, time: float, linear: Sequence[float], angular=(0, 0, 0), frame: str = "base_link"
    ) -> Any:
        vector = self.types["geometry_msgs/msg/Vector3"]
        inner = self.types["geometry_msgs/msg/Twist"](
            vector(*map(float, linear)), vector(*map(float, angular))
        )
        return self.types[TWIST](self.header(time, frame), inner)

    def joints(self, time: float, names: Sequence[str], positions: Sequence[float]) -> Any:
        empty = np.zeros(0)
        return self.types[JOINTS](
            self.header(time), list(names), np.array(positions, float), empty, empty
        )

    def string(self, words: str) -> Any:
        return self.types[STRING](words)


def usual(ros: Ros, count: int = 6, dt: float = 0.1, begin: float = 100.0) -> list[Message]:
    """Images of grey 20 i at begin + i dt, a twist of 0.1 i m/s with each, one sentence."""
    found: list[Message] = [("/task", STRING, begin - 1, ros.string("pick up the cup"))]
    for i in range(count):
        t = begin + dt * i
        found.append((CAMERA, IMAGE, t, ros.grey(t, 20 * i)))
        found.append((SERVO, TWIST, t + 0.001, ros.twist(t + 0.001, (0.1 * i, 0, 0))))
    return found


def write_bag(
    path: Path,
    ros: Ros,
    messages: Iterable[Message],
    storage: str = "SQLITE3",
    compress: str | None = None,
) -> Path:
    """compress: MESSAGE, FILE or STORAGE, by zstd."""
    writer = Writer(path, version=8, storage_plugin=getattr(StoragePlugin, storage))
    if compress:
        writer.set_compression(getattr(CompressionMode, compress), CompressionFormat.ZSTD)
    with writer:
        connections: dict[str, Any] = {}
        for topic, kind, log, message in sorted(messages, key=lambda m: m[2]):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=ros.store)
            data = ros.store.serialize_cdr(message, kind)
            writer.write(connections[topic], round(log * NS), data)
    return path
