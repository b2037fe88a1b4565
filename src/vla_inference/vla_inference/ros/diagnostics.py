"""Publishes `/diagnostics` at 1 Hz for `diagnostic_aggregator` and rqt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

PERIOD = 1.0
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

Report = tuple[bytes, str, Mapping[str, Any]]  # level, one line, further values


class Diagnostics:
    """Publishes the result of `report` once a second, by a steady clock."""

    def __init__(self, node: Node, task: str, report: Callable[[], Report]):
        self._node, self._task, self._report = node, task, report
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        node.create_timer(PERIOD, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _publish(self) -> None:
        level, message, values = self._report()
        name = self._node.get_fully_qualified_name()
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        status = DiagnosticStatus(level=level, message=message, hardware_id=name)
        status.name = f"{name.lstrip('/')}: {self._task}"
        status.values = [KeyValue(key=str(k), value=str(v)) for k, v in values.items()]
        array.status = [status]
        self._publisher.publish(array)
