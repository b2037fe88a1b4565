"""A short life in a ROS graph: a hidden node, and waiting for what it wants to find."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_inference.cli.main import complain
from vla_inference.errors import VlaError
from vla_inference.ros.cli.interfaces import nearest

LEAST, SETTLED = 1.5, 0.5  # s that a list takes at least, and then stays without a change
PATIENCE = 3.0  # s that a named thing may take to be found


class Session:
    """node: ours, hidden from lists. Everything happens in the calling thread."""

    def __init__(self, node: Node):
        self.node = node
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(node)

    def spin(self, seconds: float = 0.1) -> None:
        self.executor.spin_once(timeout_sec=seconds)

    def wait(self, until: float) -> None:
        """Spins until this moment of `time.monotonic`."""
        while (left := until - time.monotonic()) > 0:
            self.spin(min(left, 0.1))

    def now(self) -> Any:
        return self.node.get_clock().now().to_msg()

    def until(self, condition: Callable[[], Any], seconds: float | None = None) -> Any:
        """What `condition` gives, as soon as that is true; its last answer after `seconds`."""
        end = None if seconds is None else time.monotonic() + seconds
        while not (found := condition()) and (end is None or time.monotonic() < end):
            self.spin()
        return found

    def settled(self, look: Callable[[], Any], most: float = 3.0) -> Any:
        """What `look` gives once it has not changed for a while: the graph is found bit by bit."""
        begun = changed = time.monotonic()
        found = look()
        while (now := time.monotonic()) - begun < most:
            if now - begun > LEAST and now - changed > SETTLED:
                break
            self.spin(0.05)
            if (seen := look()) != found:
                found, changed = seen, time.monotonic()
        return found

    def absolute(self, name: str) -> str:
        """A topic's, service's or action's whole name: /NAME."""
        return name if name.startswith("/") else f"/{name}"

    def type_of(self, what: str, name: str, look: Callable[[], dict[str, list[str]]]) -> str:
        """The type of a topic, service or action in the graph.

        Raises VlaError where nobody offers it, with the names that come near.
        """
        found = self.until(lambda: look().get(name), PATIENCE)
        if not found:
            raise VlaError(
                f"there is no {what} {name} in this graph (ROS_DOMAIN_ID "
                f"{os.environ.get('ROS_DOMAIN_ID') or 0})",
                nearest(name, look()),
            )
        if len(found) > 1:
            raise VlaError(
                f"{what} {name} has several types: {', '.join(found)}", "let one publish alone"
            )
        return found[0]

    def topics(self) -> dict[str, list[str]]:
        return dict(self.node.get_topic_names_and_types())

    def services(self) -> dict[str, list[str]]:
        return dict(self.node.get_service_names_and_types())

    def call(self, kind: Any, name: str, request: Any, seconds: float | None = None) -> Any:
        """A service's response. seconds: most that the answer may take; None: as long as it takes.

        Raises VlaError where the service is not there or gives no answer.
        """
        client = self.node.create_client(kind, name)
        try:
            if not self.until(client.service_is_ready, PATIENCE):
                # `name` is ours; those of hidden nodes are nobody's business
                others = [n for n in self.services() if n != name and "/_" not in n]
                remedy = nearest(name, others) if others else "start its node in this domain"
                raise VlaError(f"nobody offers the service {name}", remedy)
            future = client.call_async(request)
            if not self.until(future.done, seconds):
                raise VlaError(f"{name} gave no answer within {seconds:g} s", "look at its node")
            return future.result()
        finally:
            self.node.destroy_client(client)


@contextmanager
def session() -> Iterator[Session]:
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node(
            f"_vla_cli_{os.getpid()}", start_parameter_services=False, enable_rosout=False
        )
        one = Session(node)
        try:
            yield one
        finally:
            one.executor.shutdown(timeout_sec=0.5)
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def tell(text: str) -> None:
    """A remark beside the output, on stderr."""
    complain("vla", text)
