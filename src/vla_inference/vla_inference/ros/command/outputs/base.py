"""The interface of a controller output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node

from vla_inference.ros import qos
from vla_inference.ros.parameters import Value

MOTION, JOINTS, JOINT_TARGETS, BASE = "motion", "joints", "joint_targets", "base"
EEF, GRIPPER, JOINT_PART, BASE_PART = "eef", "gripper", "joints", "base"
DRIVEN = (EEF, GRIPPER, JOINT_PART, BASE_PART)


@dataclass(frozen=True)
class JointCommand:
    """Target positions of joints by name [rad, m]."""

    names: Sequence[str]
    positions: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """Of an output without parameters."""


class Output:
    """Sends commands to one controller; exists while its node is configured.

    takes: MOTION, a `Command` (of the command node), or JOINTS, a `JointCommand` (of the IK node,
    and of a part of the command node). JOINT_TARGETS and BASE are a part's alone: `JointTargets`,
    and a `Command` for a base.
    drives: the kind of part that may have it as its output: one of DRIVEN; empty: none.
    CONFIG: a dataclass whose options are its own parameters, beside the node's; two outputs may
    share one that both declare in the same way. PART_CONFIG: the same as the output of a part.
    needs_pose: whether it sends `Command.target`, for which `current_pose` must be known.
    by_velocity: whether it sends joint velocities alone.
    plans: whether it sends `JointTargets.ahead` as well; then PART_CONFIG has an option `horizon`.
    """

    takes: ClassVar[str] = MOTION
    drives: ClassVar[str] = ""
    CONFIG: ClassVar[type] = NoConfig
    PART_CONFIG: ClassVar[type] = NoConfig
    needs_pose: ClassVar[bool] = False
    by_velocity: ClassVar[bool] = False
    plans: ClassVar[bool] = False

    def __init__(self, node: Node, value: Value, part: str = ""):
        """Raises VlaError where the parameters contradict. part: whose output it is, and whose
        parameters `value` gives; empty: the node's."""

    @classmethod
    def on(cls, value: Value) -> bool:
        """Whether the node's parameters enable it; a part's output is named by its own."""
        return False

    def remark(self) -> str:
        """What went wrong last, in words; empty: nothing."""
        return ""

    def told(self) -> str:
        """Describes what it sends and where."""
        raise NotImplementedError

    def send(self, command: Any, stamp: Time, in_tool: bool = False) -> None:
        """Called in each period with a command. in_tool: whether twists are in tool axes."""
        raise NotImplementedError

    def stop(self) -> None:
        """Called while nothing may move: ends motion that is still in progress."""

    def missing(self) -> str:
        """Why no controller would receive it, which prevents enabling; empty: one would."""
        return ""

    def fault(self) -> str:
        """Why what it sends is not executed, which stops the robot; empty: it is. Asked for in
        each period while the robot may move."""
        return ""

    def others(self) -> str:
        """Describes other nodes that command the same controller, which stops the robot; empty:
        none."""
        return ""

    def flush(self, timeout: Duration) -> None:
        """Waits until sent messages have arrived."""

    def close(self) -> None:
        """Removes it from the graph."""


class TopicOutput(Output):
    """An output that publishes on one topic, whose name users remap; a part's is below its
    name."""

    topic: ClassVar[str]
    message: ClassVar[Any]

    def __init__(self, node: Any, value: Value, part: str = ""):
        """node: a managed one."""
        self.node = node
        topic = f"{part}/{self.topic}" if part else self.topic
        self.publisher = node.create_lifecycle_publisher(
            self.message, topic, **qos.overridable(qos.COMMAND)
        )

    def told(self) -> str:
        return f"{self.topic} on {self.publisher.topic_name}"

    def others(self) -> str:
        topic = self.publisher.topic_name
        n = self.node.count_publishers(topic) - 1
        return f"{n} more publish on {topic}" if n > 0 else ""

    def flush(self, timeout: Duration) -> None:
        self.publisher.wait_for_all_acked(timeout)

    def close(self) -> None:
        self.node.destroy_publisher(self.publisher)
