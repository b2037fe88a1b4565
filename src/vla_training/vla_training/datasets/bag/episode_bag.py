"""Writes one rosbag2 bag: topics as the nodes publish them, with metadata.

Metadata is of version 8: Humble cannot read the later ones, Jazzy reads all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, WriterError
from rosbags.rosbag2 import Writer as RosbagWriter

from vla_inference.errors import DataError
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.topics import OURS

METADATA_VERSION: Final = 8
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}


def qos(latched: bool = False, reliable: bool = True) -> Qos:
    """As our nodes publish."""
    zero = QosTime(0, 0)
    return Qos(
        QosHistory.KEEP_LAST,
        1 if latched else 10,
        QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        zero,
        zero,
        QosLiveliness.AUTOMATIC,
        zero,
        False,
    )


class EpisodeBag:
    """A bag being written into a new folder. Topics are added as they are written.

    storage: one of STORAGES.
    """

    def __init__(self, path: Path, storage: str = "mcap"):
        self.path = path
        self.store = types.our_types()
        self.messages: dict[str, int] = {}
        try:
            self._writer = RosbagWriter(
                path, version=METADATA_VERSION, storage_plugin=STORAGES[storage]
            )
            self._writer.open()
        except WriterError as error:
            raise DataError(f"{path} cannot be created ({error})", "look at the folder") from error
        self._connections: dict[str, Any] = {}

    def write(
        self,
        topic: str,
        kind: str,
        log: int,
        data: bytes | memoryview,
        latched: bool = False,
        reliable: bool = True,
    ) -> None:
        """data: CDR. log: ns."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self.store, offered_qos_profiles=[qos(latched, reliable)]
            )
        self._writer.write(self._connections[topic], log, data)
        self.messages[topic] = self.messages.get(topic, 0) + 1

    def put(self, topic: str, kind: str, log: int, message: Any, latched: bool = False) -> None:
        """A message object of `self.store`."""
        self.write(topic, kind, log, self.store.serialize_cdr(message, kind), latched)

    def make(self, kind: str, /, **fields: Any) -> Any:
        """A message object; fields left out are zero or empty."""
        return make_message(self.store, kind, **fields)

    def close(self, about: dict[str, Any], readable: dict[str, str]) -> None:
        """about: metadata for our reader, as JSON. readable: metadata for people."""
        # In ASCII, for YAML takes some other characters (U+0085, U+2028) for ends of lines.
        self._writer.set_custom_data(OURS, json.dumps(about))
        for key, value in readable.items():
            self._writer.set_custom_data(key, value)
        self._writer.close()

    def abort(self) -> None:
        self._writer.abort()
        shutil.rmtree(self.path, ignore_errors=True)


ZEROS = {"string": "", "bool": False, "float32": 0.0, "float64": 0.0}


def make_message(store: Any, kind: str, /, **given: Any) -> Any:
    """A message with all fields that are not given empty."""
    _, fields = store.fielddefs[kind]
    values = {}
    for name, (node, inner) in fields:
        if name in given:
            values[name] = given.pop(name)
        elif node.name == "NAME":
            values[name] = make_message(store, inner)
        elif node.name == "BASE":
            values[name] = ZEROS.get(inner[0], 0)
        else:  # an array of numbers, or a list
            base = inner[0][1][0] if inner[0][0].name == "BASE" else "string"
            values[name] = [] if base == "string" else np.zeros(0, base)
    if given:
        raise KeyError(f"{kind} has no {', '.join(given)}")
    return store.types[kind](**values)
