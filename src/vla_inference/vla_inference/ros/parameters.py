"""Declares ROS parameters from a table: name -> (default, description, range or None)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

Table = Mapping[str, tuple[Any, str, Any]]


def real(low: float, high: float) -> FloatingPointRange:
    return FloatingPointRange(from_value=low, to_value=high)


SECONDS = real(0.0, 3600.0)


def declare(node: Node, table: Table, read_only: bool = False) -> None:
    """Declare all of them; rclpy itself refuses what is out of range or of another type."""
    for name, (default, description, bounds) in table.items():
        about = ParameterDescriptor(description=description, read_only=read_only)
        if isinstance(bounds, FloatingPointRange):
            about.floating_point_range = [bounds]
        elif isinstance(bounds, IntegerRange):
            about.integer_range = [bounds]
        node.declare_parameter(name, default, about)


def names(value: Any) -> tuple[str, ...]:
    """A list of strings, without the empty one that stands for an empty list in launch files."""
    return tuple(v for v in value if v)
