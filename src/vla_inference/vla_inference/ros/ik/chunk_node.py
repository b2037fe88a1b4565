"""The chunk IK node: chunks of end-effector deltas in, chunks of joint positions out.

It stands between a model that speaks of the end effector and a command node whose part takes
joints. All that decides is in `vla_inference.control.chunk_ik`; stamps, instruction and gripper go
through unchanged. A chunk that cannot be converted is passed on as it is: the command node refuses
it, and stops.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sensor_msgs.msg import JointState

from vla_inference.control.chunk_ik import KINDS, ChunkIk
from vla_inference.errors import VlaError
from vla_inference.inputs.joint_memory import JointMemory
from vla_inference.options import option
from vla_inference.ros import qos
from vla_inference.ros.diagnostics import Report
from vla_inference.ros.ik.base import ArmConfig, ArmNode
from vla_inference.ros.lifecycle import spin_node
from vla_inference.ros.messages import chunk_to_msg, msg_to_chunk
from vla_inference.ros.stamps import stamp_ns
from vla_msgs.msg import ActionChunk

REMEMBERED = 5.0  # s of joint states: the longest that an answer takes


@dataclass(frozen=True, kw_only=True)
class ChunkIkConfig(ArmConfig):
    kind: str = option("joint_position", "kind of the joints' numbers", choices=KINDS)
    joint_timeout: float = option(
        0.2,
        "maximum time between a chunk's image and the joint states that it starts from [s]",
        low=0.01,
        high=10,
    )
    follow: float = option(
        1.0, "share of a delta that the robot covers within its step", low=0, high=1
    )


class ChunkIkNode(ArmNode):
    TASK = "chunk_ik"

    def __init__(self, name: str = "chunk_ik", **kwargs):
        super().__init__(name, ChunkIkConfig, **kwargs)
        self._ik: ChunkIk | None = None
        self._past: deque[tuple[float, np.ndarray]] = deque()  # stamp s, positions [n]
        self._output = self.create_publisher(ActionChunk, "joint_action", qos.CHUNK)
        self.create_subscription(ActionChunk, "action", self._on_chunk, qos.CHUNK)

    def do_configure(self) -> None:
        config = self.read(ChunkIkConfig)
        self._timeout = config.joint_timeout
        self._ik = ChunkIk(
            config.arm(),
            config.base_frame,
            config.tool_frame,
            config.kind,
            config.damping,
            config.rotation_length,
            config.follow,
        )
        self._memory = JointMemory(self._ik.arm.names)
        self._past.clear()
        self._sent, self._remark = 0, ""

    def do_cleanup(self) -> None:
        self._ik = None

    def _on_joints(self, msg: JointState) -> None:
        if self._ik is None:
            return
        stamp = 1e-9 * stamp_ns(msg.header.stamp, "joint_states")
        known = self._memory.put(msg.name, list(msg.position), stamp)
        names, past = self._ik.arm.names, self._past
        if any(n not in known for n in names):
            return
        while past and past[-1][0] >= stamp:  # repeated, or the clock was set back
            past.pop()
        while past and past[0][0] < stamp - REMEMBERED:
            past.popleft()
        past.append((stamp, np.array([known[n].position for n in names])))

    def _on_chunk(self, msg: ActionChunk) -> None:
        ik = self._ik
        if ik is None or self.state != "active":
            return
        try:
            chunk = ik.convert(msg_to_chunk(msg), self._joints(msg))
        except VlaError:
            self._output.publish(msg)
            raise
        found = chunk_to_msg(chunk, msg.header.stamp, instruction=msg.instruction, model=msg.model)
        found.sequence, found.produced = msg.sequence, msg.produced
        found.latency_ms = msg.latency_ms
        self._output.publish(found)
        self._sent, self._remark = self._sent + 1, ""

    def _joints(self, msg: ActionChunk) -> np.ndarray:
        """Measured [n] when the chunk's image was taken; VlaError where that is not known."""
        topic = self.resolve_topic_name("joint_states")
        if not self._past:
            raise VlaError("the joints' positions are not known", f"check {topic}")
        image = 1e-9 * stamp_ns(msg.header.stamp, "the chunk")
        stamp, positions = min(self._past, key=lambda known: abs(known[0] - image))
        if abs(stamp - image) > self._timeout:
            raise VlaError(
                f"joint states are {abs(stamp - image):.2f} s from the chunk's image",
                f"check {topic}, its rate and its clock",
            )
        return positions

    def diagnose(self) -> Report:
        return self.report({"chunks": self._sent})


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(ChunkIkNode, args)


if __name__ == "__main__":
    sys.exit(main())
