"""`~/reasoning`: what a model that reasons thinks, published while it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vla_inference.policies.base import Policy
from vla_inference.policies.reasoning import TAGS, Reasoning
from vla_inference.ros import qos
from vla_msgs.msg import Reasoning as ReasoningMsg

if TYPE_CHECKING:
    from rclpy.node import Node
    from std_msgs.msg import Header


class Thoughts:
    """Publishes reasonings; of one that is kept for later images, once that it is."""

    def __init__(self, node: Node):
        self._publisher = node.create_publisher(ReasoningMsg, "~/reasoning", qos.LATCHED)
        self._last: Reasoning | None = None

    @contextmanager
    def about(self, policy: Policy, header: Header, instruction: str) -> Iterator[Any]:
        """Publishes what the policy thinks within; gives what to call with the answer's."""

        def tell(reasoning: Reasoning | None) -> None:
            if reasoning is not None and reasoning != self._last:
                self._last = reasoning
                self._publish(reasoning, policy.name, header, instruction)

        policy.on_reasoning = tell
        try:
            yield tell
        finally:
            policy.on_reasoning = None

    def _publish(self, reasoning: Reasoning, model: str, header: Header, instruction: str) -> None:
        said = {name: getattr(reasoning, name) for name in TAGS.values()}
        msg = ReasoningMsg(instruction=instruction, model=model, **said)
        msg.whole, msg.kept, msg.tokens = reasoning.whole, reasoning.kept, reasoning.tokens
        msg.header.stamp, msg.header.frame_id = header.stamp, header.frame_id
        self._publisher.publish(msg)
