"""Which of the published chunks the robot executes, as the command node's status tells."""

from __future__ import annotations

import math

from rclpy.node import Node
from rclpy.subscription import Subscription

from vla_inference.policies.base import Policy
from vla_inference.policies.chunking import RunningChunk
from vla_inference.ros import qos
from vla_inference.ros.stamps import stamp_seconds
from vla_inference.types import ActionChunk, Observation
from vla_msgs.msg import CommandSource, CommandStatus

TOPIC = "command/status"


class ExecutedChunks:
    """Real-time chunking for a node, between `begin` and `end`; else each chunk is on its own.

    A chunk counts as executed while the command node is enabled, until it stops or refuses one, or
    a person takes over; after that those for images since the model was given back.
    `act` and `published` are called in the model's thread, the rest in the executor's.
    """

    def __init__(self, node: Node):
        self._node = node
        self._running: RunningChunk | None = None
        self._subscription: Subscription | None = None
        self._status = False, 0, 0
        self._by_hand, self._given_back = False, -math.inf  # when: by the images' clock

    def begin(self, running: RunningChunk | None) -> None:
        """running: what is to be remembered; None: real-time chunking is off."""
        self._running, self._status = running, (False, 0, 0)
        if running is not None:
            self._subscription = self._node.create_subscription(
                CommandStatus, TOPIC, self._heard, qos.LATCHED
            )

    def end(self) -> None:
        self._running = None
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def drop(self) -> None:
        """The next answer begins anew."""
        if self._running is not None:
            self._running.drop()

    def _heard(self, msg: CommandStatus) -> None:
        before, self._by_hand = self._by_hand, msg.source == CommandSource.HUMAN
        if before and not self._by_hand:  # from its next period on
            period = 1.0 / msg.nominal_rate if msg.nominal_rate > 0 else 0.0
            self._given_back = stamp_seconds(msg.header.stamp, TOPIC) + 2 * period
        enabled = msg.state == CommandStatus.ENABLED and not self._by_hand
        status = enabled, sum(msg.stop_counts), msg.refused
        if not enabled or status != self._status:
            self.drop()
        self._status = status

    def act(self, policy: Policy, seen: Observation) -> ActionChunk:
        running = self._running
        after = running.after(seen.stamp, seen.instruction) if running is not None else None
        return policy.act(seen) if after is None else policy.continue_chunk(seen, after)

    def published(self, chunk: ActionChunk, seen: Observation, now: float) -> None:
        """now: seconds by the clock of the images' stamps."""
        if (running := self._running) is None:
            return
        running.answered(seen.stamp, now)
        if self._status[0] and seen.stamp > self._given_back:
            running.executed(chunk, seen.stamp, seen.instruction)

    @property
    def remark(self) -> str:
        """Why no chunk counts as executed; empty: there is nothing to say."""
        topic = self._subscription.topic_name if self._subscription is not None else ""
        if not topic or self._node.count_publishers(topic):
            return ""
        return f"chunking has no effect: no command node publishes {topic}"
