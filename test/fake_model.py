"""A minimal model node for tests: answers every image with steps of no motion.

Run it with the behaviour as its first argument.
"""

from __future__ import annotations

import contextlib
import sys
import time

import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import ExternalShutdownException
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_inference.ros.messages import chunk_to_msg
from vla_inference.ros.qos import CHUNK, IMAGE_OUTPUT, LATCHED
from vla_inference.types import ActionChunk, base_twist_spec, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg

BEHAVIOURS = {
    "good": "answers at once",
    "timed": "answers once it has heard the time, for which it listens from the first image on",
    "wrong_stamp": "answers thrice, first with another stamp and with one before 1970",
    "late": "answers three images, then keeps silent",
    "wrong_text": "answers to an instruction that nobody gave, every other time",
    "deaf": "always answers to an instruction that nobody gave",
    "nan": "answers with numbers that are not finite",
    "nan_later": "the same, but for its first answer",
    "gossip": "from its third answer on answers a frame of some other simulation as well",
    "short": "answers with fewer steps than others",
    "tool": "answers in the tool's frame",
    "forwards": "drives a base straight ahead, once it has heard the time",
}


class FakeModel:
    def __init__(self, behaviour: str):
        self.node = rclpy.create_node("inference")
        self.behaviour, self.count, self.text = behaviour, 0, ""
        self.clock, self.times = None, []
        self.out = self.node.create_publisher(ActionChunkMsg, "action", CHUNK)
        self.node.create_subscription(String, "instruction", self.hear, LATCHED)
        self.node.create_subscription(Image, "image", self.see, IMAGE_OUTPUT)

    def hear(self, msg: String) -> None:
        self.text = msg.data

    def see(self, msg: Image) -> None:
        if not self.text:
            return
        if self.behaviour in ("timed", "forwards") and not self.has_time():
            return
        self.count += 1
        if self.behaviour == "late" and self.count > 3:
            return
        if self.behaviour == "wrong_stamp":
            self.answer(12345, 678, self.text)
            self.answer(-1, 0, self.text)
        wrong = self.behaviour == "deaf" or (self.behaviour == "wrong_text" and self.count % 2)
        stamp = msg.header.stamp
        if self.behaviour == "gossip" and self.count > 2:
            self.answer(stamp.sec + 1, stamp.nanosec, self.text)
        self.answer(stamp.sec, stamp.nanosec, "do the dishes" if wrong else self.text)

    def has_time(self) -> bool:
        if self.clock is None:
            self.clock = self.node.create_subscription(
                Clock, "/clock", self.times.append, qos_profile_sensor_data
            )
        return bool(self.times)

    def answer(self, sec: int, nanosec: int, text: str) -> None:
        spec = eef_delta_spec(frame="tool" if self.behaviour == "tool" else "base")
        steps = 3 if self.behaviour == "short" else 8
        row = [0, 0, 0.001, 0, 0, 0, 1]
        if self.behaviour == "forwards":
            spec, row = base_twist_spec(), [0.5, 0.0]
        actions = ActionChunk([row] * steps, spec, timing={"total": 1.0})
        stamp = Time(sec=sec, nanosec=nanosec)
        chunk = chunk_to_msg(actions, stamp, instruction=text, model="fake")
        chunk.latency_ms = 1.0
        if self.behaviour == "nan" or (self.behaviour == "nan_later" and self.count > 1):
            chunk.actions[2] = float("nan")
        time.sleep(0.001)
        self.out.publish(chunk)


def main() -> None:
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(FakeModel(sys.argv[1]).node)
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
