"""Message definitions of a bag: its own, else those of ROS 2 Jazzy and this workspace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vla_inference.errors import DataError
from vla_inference.system.prefixes import share_folders

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
CHUNK, PART = "vla_msgs/msg/ActionChunk", "vla_msgs/msg/ActionPart"
EEF_DELTA = "vla_msgs/msg/EefDelta"  # of older bags, which define it
SOURCE = "vla_msgs/msg/CommandSource"
TASK_ESTIMATE = "vla_msgs/msg/TaskEstimate"
REASONING = "vla_msgs/msg/Reasoning"
EPISODE, INFERENCE = "vla_msgs/msg/EpisodeStatus", "vla_msgs/msg/InferenceStatus"
TWIST, POSE = "geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/PoseStamped"
JOINTS, STRING = "sensor_msgs/msg/JointState", "std_msgs/msg/String"
ARRAY, DOUBLE, FLOAT = (f"std_msgs/msg/Float{n}" for n in ("64MultiArray", "64", "32"))

HEADER = "std_msgs/msg/Header"
IDL_RULE = "=" * 80 + "\n"  # between the parts of a definition in IDL


def our_definitions() -> Path | None:
    """Folder of vla_msgs's .msg files, if the workspace is sourced."""
    folders = share_folders("vla_msgs", "msg")
    return next((f for f in folders if any(f.glob("*.msg"))), None)


@lru_cache(maxsize=1)
def known_types() -> Typestore:
    """ROS 2 Jazzy's common types and ours, for writing and for bags without definitions."""
    store = get_typestore(Stores.ROS2_JAZZY)
    folder = our_definitions()
    if folder is not None:
        types: dict[str, Any] = {}
        for path in sorted(folder.glob("*.msg")):
            types.update(get_types_from_msg(path.read_text("utf-8"), f"vla_msgs/msg/{path.stem}"))
        store.register(types)
    return store


def our_types() -> Typestore:
    """`known_types`; raises an error if ours are missing."""
    store = known_types()
    if CHUNK not in store.fielddefs:
        raise DataError("the definitions of vla_msgs are not there", "source the workspace")
    return store


def bag_types(definitions: Mapping[str, MessageDefinition]) -> Typestore:
    """Decoder for a bag's messages. definitions: by type, as stored in the bag."""
    return _bag_types(tuple(sorted(definitions.items())))


@lru_cache(maxsize=16)  # bags of one recorder define the same
def _bag_types(definitions: Iterable[tuple[str, MessageDefinition]]) -> Typestore:
    types: dict[str, Any] = {}
    for name, definition in definitions:
        if definition.format == MessageDefinitionFormat.MSG:
            types.update(get_types_from_msg(definition.data, name))
        elif definition.format == MessageDefinitionFormat.IDL:
            parts = definition.data.split(IDL_RULE)
            for part in parts[1:] if len(parts) > 1 else parts:
                text = part.split("\n", 1)[1] if part.startswith("IDL: ") else part
                types.update(get_types_from_idl(text))
    for name, fields in known_types().fielddefs.items():
        types.setdefault(name, fields)
    types[HEADER] = known_types().fielddefs[HEADER]  # ROS 1's has a number that ROS 2's lacks
    store = get_typestore(Stores.EMPTY)
    store.register(types)
    return store
