"""A command node by parts in a real ROS graph, and a robot whose joints go where they are sent.

Test files import it by its plain name (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from graphs import NodeGraph
from sensor_msgs.msg import JointState
from six_axes import HOME, urdf
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, ActionSpec, joint_part
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import CommandStatus

SIX = [f"j{i}" for i in range(6)]
TYPES = {
    "joint_trajectory": JointTrajectory,
    "joint_positions": Float64MultiArray,
    "joint_velocities": Float64MultiArray,
    "gripper": Float64MultiArray,
    "delta_twist": TwistStamped,
    "target_pose": PoseStamped,
}


class Robot(NodeGraph):
    """A command node by parts, and joints that go where they are sent.

    topics: of the node's outputs, such as "left_arm/joint_trajectory", and their types.
    """

    def __init__(self, parts: dict[str, dict[str, Any]], topics: dict[str, type], **more: Any):
        base = {"align": "arrival", "max_period": 5.0, "pose_timeout": 2.0}
        base |= {"stall_timeout": 10.0, "max_image_age": 10.0}
        own = {
            f"{part}.{k}": value for part, values in parts.items() for k, value in values.items()
        }
        super().__init__(CommandNode, {**base, **more, **own, "parts": list(parts)})
        self.heard: dict[str, list[Any]] = {topic: [] for topic in topics}
        self.status = CommandStatus()
        self.joints: dict[str, np.ndarray] = {}
        self.names: dict[str, list[str]] = {}
        self.silent: set[str] = set()  # parts of which nothing is measured
        self.held: set[str] = set()  # and that do not follow
        make = self.client.create_subscription
        for topic, kind in topics.items():
            make(kind, topic, lambda m, t=topic: self._hear(t, m), 100)
        make(CommandStatus, "command/status", self._keep, qos.LATCHED)
        self.actions = self.client.create_publisher(ActionChunkMsg, "action", qos.CHUNK)
        self.states = {}
        for part, values in parts.items():
            if "joints" in values:
                topic = f"{part}/joint_states"
                self.states[part] = self.client.create_publisher(JointState, topic, 10)
                self.joints[part] = HOME[: len(values["joints"])].copy()
                self.names[part] = values["joints"]
        self.client.create_timer(0.02, self._tell_joints)
        self.enabler = self.client.create_client(SetBool, "command/enable")
        assert self.start_node(), self.node.failure
        self.until(self.actions.get_subscription_count, "the node's subscription")
        self.until(lambda: self.client.count_publishers("action"), "discovery")
        self.until(lambda: self.status.state == "disabled", "a status")
        assert self.enabler.wait_for_service(self.patience)

    def _keep(self, status: CommandStatus) -> None:
        self.status = status

    def said(self) -> CommandStatus:
        return self.status

    def _hear(self, topic: str, msg: Any) -> None:
        self.heard[topic].append(msg)
        part, _, output = topic.partition("/")
        if part in self.held:
            return
        if output == "joint_trajectory":
            self.joints[part] = np.array(msg.points[0].positions)
        elif output == "joint_positions":
            self.joints[part] = np.array(msg.data)
        elif output == "joint_velocities":
            self.joints[part] = self.joints[part] + np.array(msg.data) / 50

    def _tell_joints(self) -> None:
        for part, publisher in self.states.items():
            if part not in self.silent:
                msg = JointState(name=self.names[part], position=self.joints[part].tolist())
                msg.header.stamp = self.client.get_clock().now().to_msg()
                publisher.publish(msg)

    def send(self, spec: ActionSpec, rows: np.ndarray) -> None:
        now = self.client.get_clock().now().to_msg()
        self.actions.publish(chunk_to_msg(ActionChunk(rows, spec), now))

    def enable(self, on: bool = True) -> str:
        future = self.enabler.call_async(SetBool.Request(data=on))
        self.until(future.done, "an answer to enable")
        return future.result().message

    def ready(self, spec: ActionSpec, rows: np.ndarray) -> None:
        heard = self.status.chunks
        self.send(spec, rows)
        self.until(lambda: self.status.chunks > heard, "a chunk")
        self.until(lambda: not self.enable(), "leave to move")

    def stopped(self, kind: str) -> str:
        self.until(lambda: self.status.state == "stopped", f"a stop by {kind}")
        assert self.status.stop_kind == kind
        return self.status.stop_reason


def six(output: str, **more) -> dict[str, Any]:
    return {"output": output, "joints": SIX, "robot_description": urdf(), **more}


def arm_spec(kind: str = "joint_position", dt: float = 0.1) -> ActionSpec:
    return ActionSpec((joint_part("arm", SIX, kind),), dt)
