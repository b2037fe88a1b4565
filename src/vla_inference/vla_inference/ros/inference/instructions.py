"""The inference node's current instruction: heard on a topic, set by service or parameter."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from std_msgs.msg import String

from vla_inference.errors import ObservationError
from vla_inference.ros import qos
from vla_inference.types import check_instruction
from vla_msgs.srv import SetInstruction

ECHO = 1.0  # seconds within which a latched sentence arrives by both subscriptions
LOOK = 0.2  # s between looks for latching publishers
STAY = 5.0  # s that a latched subscription is kept for what they said before
TOPIC = "instruction"


class Instructions:
    """Keeps the current instruction and publishes it on ~/active_instruction.

    changed: called after each change. refused: called with the reason where a sentence won't do.
    remark: what is to be said about a sentence that is followed all the same; empty: nothing.
    """

    def __init__(
        self,
        node: Node,
        changed: Callable[[], None],
        refused: Callable[[str], None],
        remark: Callable[[str], str] = lambda _: "",
    ):
        self.text = ""
        self._remark = remark
        self._log, self._changed, self._refused = node.get_logger(), changed, refused
        self._active = node.create_publisher(String, "~/active_instruction", qos.LATCHED)
        self.subscriber = InstructionSubscriber(node, self._hear)
        node.create_service(SetInstruction, "~/set_instruction", self._set)

    def follow(self, text: str) -> None:
        """Sets the current instruction; empty: none."""
        self.text = text
        self._active.publish(String(data=text))
        # Some tasks change their sentence with every frame: the log need not.
        self._log.info(f"instruction: {text!r}", throttle_duration_sec=10.0)
        if self._remark(text):
            self._log.warning(self._remark(text), throttle_duration_sec=10.0)
        self._changed()

    def _hear(self, sentence: str) -> None:
        try:
            text = check_instruction(sentence)
        except ObservationError as error:
            # Whoever sent it no longer wants what was asked before.
            self.follow("")
            self._refused(str(error))
            return
        if text != self.text:
            self.follow(text)

    def _set(self, request, response):
        try:
            self.follow(check_instruction(request.instruction))
            response.success, response.message = True, self._remark(self.text)
        except ObservationError as error:
            response.success, response.message = False, str(error)
        return response


class InstructionSubscriber:
    """Two subscriptions to `instruction`, 0 volatile and 1 latched.

    The latched one is there only after a latching publisher has come, for what that has said
    before: a volatile publisher (`ros2 topic pub`) does not match it, and both sides warn. What a
    latching publisher says reaches both; the second time it says nothing new, even where another
    sentence came between. (Humble's rclpy tells no source time to go by.)
    """

    def __init__(self, node: Node, heard: Callable[[str], None]):
        self._node, self._callback = node, heard
        self._heard: tuple[deque[tuple[float, str]], ...] = (deque(maxlen=32), deque(maxlen=32))
        self._listen(0, qos.INSTRUCTION_VOLATILE)
        self._latched = None
        self._leave = 0.0  # when the latched one goes (monotonic)
        self._met: set[tuple[int, ...]] = set()  # latching publishers
        node.create_timer(LOOK, self.look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _listen(self, channel: int, profile):
        return self._node.create_subscription(String, TOPIC, partial(self.hear, channel), profile)

    def look(self) -> None:
        """Looks for new latching publishers."""
        now, topic = time.monotonic(), self._node.resolve_topic_name(TOPIC)
        there = {
            tuple(p.endpoint_gid)
            for p in self._node.get_publishers_info_by_topic(topic)
            if p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        }
        if there - self._met:
            self._leave = now + STAY
            self._latched = self._latched or self._listen(1, qos.INSTRUCTION_LATCHED)
        elif self._latched is not None and now > self._leave:
            self._node.destroy_subscription(self._latched)
            self._latched = None
        self._met = there

    def hear(self, channel: int, message: String) -> None:
        now, other = time.monotonic(), self._heard[1 - channel]
        while other and now - other[0][0] > ECHO:
            other.popleft()
        for entry in other:
            if entry[1] == message.data:
                other.remove(entry)
                return
        self._heard[channel].append((now, message.data))
        self._callback(message.data)
