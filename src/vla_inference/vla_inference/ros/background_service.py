"""A service that answers after seconds while its node keeps running."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


class BackgroundService:
    """Serves `name` like a service of `node`, one call at a time, in its own thread.

    A node's callbacks all belong to one executor, and an awaiting one keeps rclpy's busy: hence a
    second, hidden node (its name begins with an underscore) in the same process.
    """

    def __init__(self, node: Node, kind: Any, name: str, callback: Callable[[Any, Any], Any]):
        self._node = Node(
            f"_{node.get_name()}_service",
            namespace=node.get_namespace(),
            context=node.context,
            use_global_arguments=False,  # else launch's name for the node would be ours too
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._node.create_service(kind, node.resolve_service_name(name), callback)
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._node)
        # A daemon: a long load must not hold up the process's end.
        self._thread = threading.Thread(target=self._spin, name="service", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self, timeout: float = 0.5) -> None:
        self._executor.shutdown(timeout)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self._node.destroy_node()
