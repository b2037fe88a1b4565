"""Hears instructions from every kind of publisher, each once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial

from rclpy.node import Node
from std_msgs.msg import String

from vla_inference.ros import qos

ECHO = 1.0  # seconds within which a latched sentence arrives by both subscriptions


class InstructionEars:
    """Two subscriptions to `instruction`, 0 volatile and 1 latched.

    What a latching publisher says reaches both; the second time it says nothing new, even where
    another sentence came between. (Humble's rclpy tells no source time to go by.)
    """

    def __init__(self, node: Node, heard: Callable[[str], None]):
        self._callback = heard
        self._heard: tuple[deque[tuple[float, str]], ...] = (deque(maxlen=32), deque(maxlen=32))
        for ear, profile in enumerate((qos.INSTRUCTION_VOLATILE, qos.INSTRUCTION_LATCHED)):
            node.create_subscription(String, "instruction", partial(self.hear, ear), profile)

    def hear(self, ear: int, message: String) -> None:
        now, other = time.monotonic(), self._heard[1 - ear]
        while other and now - other[0][0] > ECHO:
            other.popleft()
        for entry in other:
            if entry[1] == message.data:
                other.remove(entry)
                return
        self._heard[ear].append((now, message.data))
        self._callback(message.data)
