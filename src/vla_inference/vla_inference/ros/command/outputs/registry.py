"""The registry of controller outputs, which other packages may extend.

They bring them by entry points of group `vla.controllers`, whose value is a subclass of `Output`
(`my_package.outputs:MyOutput`). The node declares an output's parameters and uses what they ask
for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node

from vla_inference.errors import VlaError
from vla_inference.ros.command.outputs.base import Output, Value
from vla_inference.ros.parameters import fields_of
from vla_inference.system.plugins import find_plugins, load_plugin

GROUP = "vla.controllers"
_HERE = "vla_inference.ros.command.outputs"
OUTPUTS = {
    "twist": f"{_HERE}.motion:TwistOutput",
    "pose": f"{_HERE}.motion:PoseOutput",
    "gripper": f"{_HERE}.gripper:GripperTopicOutput",
    "gripper_action": f"{_HERE}.gripper:GripperActionOutput",
    "joint_trajectory": f"{_HERE}.joint_trajectory:JointTrajectoryOutput",
    "follow_joint_trajectory": f"{_HERE}.trajectory_action:FollowJointTrajectoryOutput",
    "joint_positions": f"{_HERE}.joint_arrays:JointPositionsOutput",
    "joint_velocities": f"{_HERE}.joint_arrays:JointVelocitiesOutput",
    "base_twist": f"{_HERE}.base_twist:BaseTwistOutput",
    "base_twist_stamped": f"{_HERE}.base_twist:BaseTwistStampedOutput",
}


def output_kinds(takes: str) -> list[type[Output]]:
    """All installed outputs that take MOTION or JOINTS."""
    kinds = [load_plugin(point) for point in find_plugins(GROUP, OUTPUTS).values()]
    return [kind for kind in kinds if kind.takes == takes]


def output_configs(takes: str) -> tuple[type, ...]:
    """The parameters of all of them."""
    return tuple(kind.CONFIG for kind in output_kinds(takes))


def switched_on(takes: str, value: Value) -> list[type[Output]]:
    """The outputs that the parameters enable."""
    return [kind for kind in output_kinds(takes) if kind.on(value)]


def chosen(takes: str, value: Value) -> list[type[Output]]:
    """The same; VlaError if there are none."""
    found = switched_on(takes, value)
    if not found:
        known = fields_of(*output_configs(takes))
        names = sorted(name for name in known if name.startswith("publish_"))
        raise VlaError("no output is on", f"set {' or '.join(names)}")
    return found


def part_outputs(kind: str = "") -> dict[str, type[Output]]:
    """By name, all installed outputs that a part may have. kind: of part; empty: any."""
    loaded = {name: load_plugin(p) for name, p in find_plugins(GROUP, OUTPUTS).items()}
    return {name: o for name, o in loaded.items() if o.drives and kind in ("", o.drives)}


def output_of_part(part: str, name: str) -> type[Output]:
    """The output of a part; VlaError if there is none of this name that a part may have."""
    found = part_outputs()
    if name not in found:
        raise VlaError(f"parameter '{part}.output' is {name!r}", f"use one of {', '.join(found)}")
    return found[name]


class Outputs:
    """Outputs of a configured node or of one of its parts, used as one."""

    def __init__(self, node: Node, value: Value, kinds: Sequence[type[Output]], part: str = ""):
        self._all: list[Output] = []
        more = (part,) if part else ()
        try:
            for kind in kinds:
                self._all.append(kind(node, value, *more))
        except BaseException:
            self.close()
            raise

    def told(self) -> str:
        return ", ".join(output.told() for output in self._all)

    def send(self, command: object, stamp: Time, in_tool: bool = False) -> None:
        self._each(lambda output: output.send(command, stamp, in_tool))

    def stop(self) -> None:
        self._each(lambda output: output.stop())

    def missing(self) -> str:
        return next((why for o in self._all if (why := o.missing())), "")

    def fault(self) -> str:
        return next((why for o in self._all if (why := o.fault())), "")

    def others(self) -> list[str]:
        return [who for o in self._all if (who := o.others())]

    @property
    def remark(self) -> str:
        return next((told for o in self._all if (told := o.remark())), "")

    def flush(self, timeout: Duration) -> None:
        self._each(lambda output: output.flush(timeout))

    def close(self) -> None:
        self._each(lambda output: output.close())
        self._all = []

    def _each(self, call: Callable[[Output], None]) -> None:
        each_of(call, self._all)


T = TypeVar("T")


class OutputFailed(RuntimeError):
    """Names the output."""


def each_of(call: Callable[[T], None], things: Sequence[T]) -> None:
    """Calls it for all, whatever one of them does; then raises OutputFailed, which stops the
    robot: an output's VlaError is no refusal of something that came in."""
    failed: list[tuple[T, Exception]] = []
    for thing in things:
        try:
            call(thing)
        except Exception as error:  # a halt has to reach the others all the same
            failed.append((thing, error))
    if failed:
        thing, first = failed[0]
        if isinstance(first, OutputFailed):
            raise first
        raise OutputFailed(f"{type(thing).__name__} failed: {first}") from first
