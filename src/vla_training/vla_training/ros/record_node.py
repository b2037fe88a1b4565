"""The recorder node: writes a bag for each episode."""

from __future__ import annotations

import importlib
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosbags.rosbag2 import WriterError
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vla_inference.errors import DataError, VlaError
from vla_inference.options import option
from vla_inference.ros.lifecycle import ManagedNode, configured, deferred, spin_node
from vla_inference.ros.parameters import image_transport
from vla_msgs.msg import ActionChunk, CommandSource, EpisodeStatus
from vla_training.ros.recording import ReceivedMessage, Recording

LOOK = 0.1  # s between looks for publishers
DEPTH = 100
UNWRITABLE = (OSError, WriterError, sqlite3.Error)
LATEST = ("instruction", "source")  # roles whose latest message holds until the next
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
LATCHED, VOLATILE = DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """The node's parameters."""

    output: str = option("", "folder that gets a bag for each episode")
    storage: str = option("mcap", "mcap or sqlite3")
    images: str = option(
        "png", "raw images as png (lossless), jpeg or raw; compressed ones are kept"
    )
    image_transport: str = image_transport()
    split: str = option(
        "status",
        "episodes by status (vla_msgs/EpisodeStatus), by service (~/record), or off: one bag",
    )
    episodes: int = option(0, "stop after this many episodes; 0: never", low=0, high=1_000_000)
    topics: tuple[str, ...] = option(
        (
            "reward",
            "estimate",
            "inference/reasoning",
            "delta_twist",
            "target_pose",
            "gripper",
            "current_pose",
            "state",
        ),
        "more topics to record, of any type, once they are published",
    )


class RecordNode(ManagedNode):
    """Subscribes with the publishers' QoS, like rosbag2: reliable and latched if all are."""

    TASK = "recorder"

    def __init__(self, name: str = "recorder", **kwargs):
        super().__init__(name, RecordConfig, **kwargs)
        self._config = RecordConfig()
        self.exit_status: int | None = None
        self._recording: Recording | None = None
        # topic -> role, message class, subscription and what it asks for
        self._wanted: dict[str, tuple[str, Any]] = {}
        self._recorded: dict[str, tuple[Any, tuple]] = {}
        self._refused: set[str] = set()
        self.create_service(SetBool, "~/record", self._by_hand)
        self._timer = None

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._config = config = self.read(RecordConfig)
        if not config.output:
            raise VlaError("parameter 'output' is empty", "set it to a folder")
        output = Path(config.output).expanduser()
        with deferred():  # its lock and hidden folder go with it
            self._recording = Recording(
                output, config.storage, config.images, config.split, self._saved
            )
        for path in self._recording.left_behind:
            self.get_logger().warning(f"a recorder was killed; what it had is in {path}")
        image = self.resolve_topic_name("image")
        compressed = config.image_transport == "compressed"
        if compressed:
            image += "/compressed"
        self._wanted = {
            image: ("image", CompressedImage if compressed else Image),
            self.resolve_topic_name("action"): ("action", ActionChunk),
            self.resolve_topic_name("instruction"): ("instruction", String),
            self.resolve_topic_name("sim/episode"): ("episode", EpisodeStatus),
            self.resolve_topic_name("human_action"): ("human_action", ActionChunk),
            self.resolve_topic_name("command/source"): ("source", CommandSource),
        }
        for topic in filter(None, config.topics):
            self._wanted.setdefault(self.resolve_topic_name(topic), ("", None))

    def do_activate(self) -> None:
        for topic, (role, kind) in self._wanted.items():
            if kind is not None:  # before the first publisher, so that nothing is missed
                latched = LATCHED if role in LATEST else VOLATILE
                self._subscribe(topic, role, kind, (RELIABLE, latched))
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still
        self._timer = self.create_timer(LOOK, self._guard(self._look), clock=steady)
        self.get_logger().info(f"ready to record into {self._config.output}")

    def do_deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        for subscription, _ in self._recorded.values():
            self.destroy_subscription(subscription)
        self._recorded.clear()

    def do_cleanup(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.close()
            if recording.late:
                self.get_logger().warning(
                    f"{recording.late} messages are in no bag: they belong to episodes closed "
                    "before they came; check clocks and network"
                )

    # -- subscriptions ------------------------------------------------------------------------

    def _look(self) -> None:
        """Looks for publishers and their QoS."""
        configured(self._recording).tick(time.monotonic_ns())
        for topic, (role, kind) in self._wanted.items():
            publishers = self.get_publishers_info_by_topic(topic)
            if not publishers or topic in self._refused:
                continue
            kind = kind or self._find_type(topic, publishers[0].topic_type)
            if kind is None:
                continue
            offers = [p.qos_profile for p in publishers]
            wish = (
                RELIABLE if all(o.reliability == RELIABLE for o in offers) else BEST_EFFORT,
                LATCHED if all(o.durability == LATCHED for o in offers) else VOLATILE,
            )
            if topic not in self._recorded or self._recorded[topic][1] != wish:
                self._subscribe(topic, role, kind, wish)

    def _find_type(self, topic: str, name: str) -> Any:
        """The class of "std_msgs/msg/Float32", if it can be written."""
        try:
            if name not in configured(self._recording).store.fielddefs:
                raise VlaError(f"the type {name} is not known", "")
            package, _, kind = name.split("/")
            return getattr(importlib.import_module(f"{package}.msg"), kind)
        except (VlaError, ImportError, AttributeError) as error:
            self._refused.add(topic)
            self.get_logger().error(f"{topic} is not recorded: {error}")
            return None

    def _subscribe(self, topic: str, role: str, kind: Any, wish: tuple) -> None:
        if topic in self._recorded:
            self.destroy_subscription(self._recorded[topic][0])
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=DEPTH, reliability=wish[0], durability=wish[1]
        )
        package = kind.__module__.split(".")[0]
        hear = partial(
            self._hear, role, topic, f"{package}/msg/{kind.__name__}", wish[1] == LATCHED
        )
        subscription = self.create_subscription(kind, topic, self._guard(hear), profile, raw=True)
        self._recorded[topic] = (subscription, wish)

    def _hear(self, role: str, topic: str, kind: str, latched: bool, data: bytes) -> None:
        now = self.get_clock().now().nanoseconds
        try:
            configured(self._recording).hear(
                ReceivedMessage(role, topic, kind, now, bytes(data), latched, time.monotonic_ns())
            )
        except UNWRITABLE:
            raise
        except Exception as error:  # arbitrary bytes may raise anything in decoders and rosbags
            raise DataError(
                f"a message on {topic} is left out: {error}", "check its publisher"
            ) from None

    def _guard(self, callback: Any) -> Any:
        """Wraps a callback so that its errors end the node: a recorder must not fail silently."""

        def guarded(*args):
            if self._recording is None or self.exit_status is not None:
                return
            try:
                callback(*args)
            except UNWRITABLE as error:
                self.get_logger().error(f"cannot record: {error}")
                self.exit_status = 2

        return guarded

    # -- episodes -----------------------------------------------------------------------------

    def _saved(self, path: Path, about: dict[str, Any], counts: dict[str, int]) -> None:
        told = ", ".join(f"{n} {t}" for t, n in sorted(counts.items()))
        print(f"{path}  {about.get('outcome', '')}  {told}", flush=True)
        limit = self._config.episodes
        if limit and self._recording is not None and self._recording.count >= limit:
            self.exit_status = 0

    def _by_hand(self, request, response):
        now = self.get_clock().now().nanoseconds
        try:
            if self._recording is None:
                raise VlaError("the recorder is not configured", "configure it first")
            if self._config.split != "service":
                raise VlaError("episodes are not split by service", "set split:=service")
            if request.data:
                response.message = self._recording.begin(now)
            else:
                self._recording.end(now, at=time.monotonic_ns())
            response.success = True
        except VlaError as error:
            response.message = str(error)
        return response


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(RecordNode, args)


if __name__ == "__main__":
    sys.exit(main())
