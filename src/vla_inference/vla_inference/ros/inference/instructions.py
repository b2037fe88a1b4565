"""The inference node's current instruction, set by topic, service or parameter."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from std_msgs.msg import String

from vla_inference.errors import ObservationError
from vla_inference.ros import qos
from vla_inference.ros.inference.instruction_subscriber import InstructionSubscriber
from vla_inference.types import check_instruction
from vla_msgs.srv import SetInstruction


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
