"""Bags of the older form: chunks of EefDelta steps, by the definitions of that time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bags import put_image
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_training.datasets.bag.episode_bag import EpisodeBag
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.streams import NS
from vla_training.datasets.bag.writer import _header, _vector

DEFINITIONS = {
    types.EEF_DELTA: """
string ROTVEC=rotvec     # rotation vector: axis times angle, applied from the left
string RPY=rpy           # fixed-axis roll, pitch, yaw
geometry_msgs/Vector3 translation
geometry_msgs/Vector3 rotation
string rotation_convention
float64 gripper
float64 dt
string frame_id
""",
    types.CHUNK: """
std_msgs/Header header
uint64 sequence
string instruction
string model
vla_msgs/EefDelta[] steps
builtin_interfaces/Time produced
float32 latency_ms
string[] stage_names
float32[] stage_ms
""",
}


def old_types() -> Typestore:
    store = get_typestore(Stores.ROS2_JAZZY)
    found = {}
    for name, text in DEFINITIONS.items():
        found.update(get_types_from_msg(text, name))
    store.register(found)
    return store


class OldBag(EpisodeBag):
    """An episode of grey images, each answered by a chunk or an EefDelta."""

    def __init__(self, path: Path, storage: str = "mcap"):
        super().__init__(path, storage)
        self.store = old_types()

    def delta(self, row: np.ndarray, **fields) -> object:
        """row: x y z rx ry rz gripper."""
        usual = {"rotation_convention": "rotvec", "dt": 0.05, "frame_id": "base"}
        return self.make(
            types.EEF_DELTA,
            translation=_vector(self, *row[:3]),
            rotation=_vector(self, *row[3:6]),
            gripper=float(row[6]),
            **{**usual, **fields},
        )

    def chunk(self, stamp: int, deltas: list, **fields) -> None:
        header = _header(self, stamp, "base")
        chunk = self.make(types.CHUNK, header=header, steps=deltas, **fields)
        self.put("/action", types.CHUNK, stamp, chunk)


def write_old_bag(path: Path, rows: np.ndarray, storage: str = "mcap", **fields) -> Path:
    """rows [T, 7]: the first step of each image's chunk, whose second has the gripper closed."""
    bag = OldBag(path, storage)
    for t, row in enumerate(rows):
        stamp = 100 * NS + t * NS // 20
        put_image(bag, "/image", stamp, np.full((16, 16), 20 * t, np.uint8))
        second = bag.delta([*row[:6], 0.0], **fields)
        bag.chunk(stamp, [bag.delta(row, **fields), second], instruction="go", model="old")
    bag._writer.close()
    return path
