"""Finds the topics of a bag that are colour cameras."""

from __future__ import annotations

from collections.abc import Mapping

from vla_inference.errors import DataError, ObservationError
from vla_inference.inputs.image_messages import (
    ENCODINGS,
    GREY,
    UNPACK_VIDEO,
    packed_refusal,
    refusal,
)
from vla_training.datasets.bag.files.message_types import COMPRESSED, IMAGE
from vla_training.datasets.bag.files.storage import BagFile

IMAGES = (COMPRESSED, IMAGE)
VIDEOS = (
    "foxglove_msgs/msg/CompressedVideo",
    "ffmpeg_image_transport_msgs/msg/FFMPEGPacket",
    "theora_image_transport/msg/Packet",
)
OPTION = "--image-topic"


def camera_name(topic: str) -> str:
    """/front/color/image_raw/compressed -> color; /image -> image."""
    parts = [p for p in topic.split("/") if p]
    while len(parts) > 1 and (parts[-1] == "compressed" or parts[-1].startswith("image")):
        parts.pop()
    return parts[-1]


def choose_cameras(
    bag: BagFile, given: str | None, noted: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Topic of each camera, first the one that sets the steps, and what was left out and why.

    given: topics asked for. noted: cameras by the bag's metadata. Raises DataError.
    """
    if given is None and noted:
        return {name: topic for name, topic in noted.items() if topic in bag.topics}, []
    notes: list[str] = []
    if given is not None:
        names = given.replace(",", " ").split()
        topics = [_asked(bag, name) for name in names]
    else:
        topics, notes = _readable(bag)
    found: dict[str, str] = {}
    known = {topic: name for name, topic in noted.items()}
    for topic in topics:
        name = known.get(topic) or camera_name(topic)
        found[name if name not in found else topic.strip("/").replace("/", "_")] = topic
    return found, notes


def _asked(bag: BagFile, name: str) -> str:
    topic = named_topic(bag, OPTION, name, (*IMAGES, *VIDEOS))
    refused = _refusal(bag, topic)
    if refused is not None:
        raise DataError(f"{bag.path}, {topic}: {refused.problem}", refused.remedy)
    return topic


def _readable(bag: BagFile) -> tuple[list[str], list[str]]:
    """Topics whose images can be read, colour before grey; notes on the others."""
    topics, left_out, remedy = [], [], ""
    for name in sorted(n for n, t in bag.topics.items() if t.type in (*IMAGES, *VIDEOS)):
        refused = _refusal(bag, name)
        if refused is None and "depth" in name.lower():
            refused = ObservationError("depth, by its name", f"ask for it with {OPTION}")
        if refused is not None:
            left_out.append(f"{name}: {refused.problem}")
            remedy = refused.remedy or ""
        else:
            topics.append(name)
    # of one camera the raw images, which lost nothing
    topics = [
        n
        for n in topics
        if n.removesuffix("/compressed") == n or n.removesuffix("/compressed") not in topics
    ]
    if not topics:
        if left_out:
            raise DataError(
                f"{bag.path} has no images that can be read ({'; '.join(left_out)})", remedy
            )
        raise DataError(f"{bag.path} has no images", contents(bag))
    notes = [f"left out: {why}" for why in left_out]
    ordered = sorted(topics, key=lambda topic: _is_grey(bag, topic)) if topics[1:] else topics
    if ordered[0] != topics[0]:
        notes.append(f"{ordered[0]} sets the steps: {topics[0]} is grey ({OPTION})")
    return ordered, notes


def _refusal(bag: BagFile, topic: str) -> ObservationError | None:
    """Why a topic's images cannot be read, by its first message; None: they can."""
    kind = bag.topics[topic].type
    if kind in VIDEOS:
        return ObservationError(f"video ({kind.replace('/msg/', '/')})", UNPACK_VIDEO)
    first = bag.first(topic)
    if first is None:
        return None
    return refusal(first.encoding) if kind == IMAGE else packed_refusal(first.format)


def _is_grey(bag: BagFile, topic: str) -> bool:
    first = bag.first(topic)
    if first is None:
        return True  # nothing to see
    packed = bag.topics[topic].type == COMPRESSED
    name = first.format.partition(";")[0].strip() if packed else first.encoding
    return name in ENCODINGS and ENCODINGS[name].take == GREY


def given_topic(bag: BagFile, option: str, name: str | None, kinds: tuple[str, ...]) -> str | None:
    """The topic named by an option, if it exists and has one of these types."""
    return None if name is None else named_topic(bag, option, name, kinds)


def named_topic(bag: BagFile, option: str, name: str, kinds: tuple[str, ...]) -> str:
    """The topic of that name, if it is there and of one of these types."""
    topic = bag.topics.get(name) or bag.topics.get("/" + name)
    if topic is None:
        raise DataError(f"{bag.path} has no topic {name!r} ({option})", contents(bag))
    if topic.type not in kinds:
        raise DataError(
            f"{bag.path}: {topic.name} is {topic.type}, {option} takes {', '.join(kinds)}",
            contents(bag),
        )
    return topic.name


def contents(bag: BagFile) -> str:
    """The content of a bag, as a remedy."""
    return f"it contains {bag.listing()}"
