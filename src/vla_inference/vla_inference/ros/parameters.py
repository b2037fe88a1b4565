"""Declares and reads ROS parameters: the fields of dataclasses that are options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from vla_inference.errors import VlaError
from vla_inference.options import Option, check_options, option, options

Config = TypeVar("Config")
Value = Callable[[str], Any]  # gives a parameter's value by its name


def image_transport() -> str:
    help = "raw (topic image) or compressed (topic image/compressed)"
    return option("raw", help, choices=("raw", "compressed"))


def seconds(default: float, help: str, live: bool = False) -> float:
    return option(default, help, low=0, high=3600, live=live)


def fields_of(*configs: type) -> dict[str, tuple[Field, Option]]:
    """The parameters by name; two configs may share one if both declare it the same."""
    found: dict[str, tuple[Field, Option]] = {}
    for config in configs:
        for field, about in options(config):
            before, said = found.setdefault(field.name, (field, about))
            if (before.default, said) != (field.default, about):
                raise VlaError(
                    f"{config.__module__}.{config.__name__} declares parameter {field.name!r} "
                    "another way",
                    "rename it there",
                )
    return found


def defaults(*configs: type) -> dict[str, Any]:
    """What a parameter file would say of them."""
    return {name: _to_ros(field.default) for name, (field, _) in fields_of(*configs).items()}


def declare(node: Node, *configs: type, prefix: str = "", **descriptor: Any) -> None:
    """Declare all of them; rclpy itself refuses what is out of range or of another type.

    prefix: of their names, such as "left_arm.".
    """
    for name, (field, about) in fields_of(*configs).items():
        described = ParameterDescriptor(description=about.help, **descriptor)
        described.additional_constraints = " or ".join(about.choices)
        if about.low is not None and about.high is not None and not described.dynamic_typing:
            _set_range(described, field.default, about.low, about.high)
        node.declare_parameter(prefix + name, _to_ros(field.default), described)


def _set_range(described: ParameterDescriptor, default: Any, low: float, high: float) -> None:
    if isinstance(default, float):
        bounds = FloatingPointRange(from_value=float(low), to_value=float(high))
        described.floating_point_range = [bounds]
    else:
        described.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]


def read(config: type[Config], value: Value) -> Config:
    """The config that parameters describe; VlaError where one is not what its field allows."""
    found = config(**{field.name: _from_ros(value(field.name)) for field, _ in options(config)})
    check_options(found, called="parameter {}".format)
    return found


def _to_ros(default: Any) -> Any:
    """A tuple as a list; [""] stands for an empty one, which launch files cannot say."""
    return (list(default) or [""]) if isinstance(default, tuple) else default


def _from_ros(value: Any) -> Any:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return value
    found = tuple(value)
    return () if found == ("",) else found
