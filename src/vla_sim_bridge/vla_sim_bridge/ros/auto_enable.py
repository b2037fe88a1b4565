"""Enables the command node around each episode, as an operator would.

A reset puts the arm elsewhere, so the command node is disabled before it and enabled after it. In
real time only once the model has answered to what is now to be seen: older answers, still under
way, are void then. In lock step refusals are counted: the command node may not have heard from a
model yet. What the command node's watchdogs stop stays stopped for the episode.
"""

from __future__ import annotations

import time

from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros.qos import LATCHED
from vla_msgs.msg import CommandStatus

ASK_AGAIN = 0.2  # s
ANSWER = 5.0  # s until a service's answer counts as lost


class Operator:
    """Call `begin` at every reset and `poll` until it says that the robot may move."""

    def __init__(self, node: Node, timeout: float):
        self.node, self.timeout = node, timeout
        self.ready = False
        self.refusals = 0  # how many times enabling was refused in this episode
        self.status: CommandStatus | None = None
        self._client = node.create_client(SetBool, "command/enable")
        node.create_subscription(CommandStatus, "command/status", self._on_status, LATCHED)
        self._wanted = False
        self._future: Future | None = None
        self._asked, self._begun, self._reason = 0.0, 0.0, ""

    def begin(self) -> None:
        self.ready = self._wanted = False
        self.refusals = 0
        self._future, self._asked = None, 0.0
        self._begun, self._reason = time.monotonic(), ""

    @property
    def stopped(self) -> bool:
        return self.status is not None and self.status.state == CommandStatus.STOPPED

    def _on_status(self, msg: CommandStatus) -> None:
        self.status = msg

    def poll(self, seen: bool) -> bool:
        """seen: whether the model has answered for the new scene, if that is awaited."""
        now = time.monotonic()
        if self.ready:
            return True
        if self._future is not None and self._future.done():
            answer, self._future = self._future.result(), None
            if answer.success and self._wanted:
                self.ready = True
                return True
            if answer.success:
                self._wanted, self._asked = True, 0.0
            else:
                self._reason = answer.message
                self.refusals += 1
        if now - self._begun > self.timeout:
            topic = self.node.resolve_topic_name("command/enable")
            raise VlaError(
                f"the command node was not enabled within {self.timeout:g} s"
                + (f": {self._reason}" if self._reason else ""),
                f"is it running and active? {topic} is called at every episode's beginning",
            )
        lost = self._future is not None and now - self._asked > ANSWER
        due = self._future is None and now - self._asked > ASK_AGAIN
        if (lost or due) and (seen or not self._wanted) and self._client.service_is_ready():
            self._future = self._client.call_async(SetBool.Request(data=self._wanted))
            self._asked = now
        return False


class ByHand(Operator):
    """Where people enable: the robot may move while the command node is enabled.

    A reset disables, since it puts the arm elsewhere: a person has to enable it again.
    """

    def begin(self) -> None:
        super().begin()
        if self._enabled and self._client.service_is_ready():
            self._client.call_async(SetBool.Request(data=False))

    @property
    def _enabled(self) -> bool:
        return self.status is not None and self.status.state == CommandStatus.ENABLED

    def poll(self, seen: bool) -> bool:
        self.ready = seen and self._enabled
        return self.ready
