"""A camera, an arm and a model that fail on request, for test/robustness/faults.py.

    python test/robustness/fault_processes.py camera|model|arm|joints [--ros-args ...]

Each listens to `camera/fault`, `arm/fault` or `model/fault` (std_msgs/String), "good" to be well
again.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.publisher import Publisher
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.inference.node import InferenceNode
from vla_inference.ros.lifecycle import ManagedNode, spin_node

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from six_axes import HOME

RATE = 20.0


class Camera(ManagedNode):
    """Noise at 20 Hz.

    Faults: "freeze" (the same pixels under new stamps), "repeat" (the same message again),
    "garbage" (messages whose data are not what their fields say), "negative" (stamps before 1970;
    "one_negative": of a single image).
    """

    def __init__(self):
        super().__init__("camera")
        self.fault, self.last = "good", None
        self.random = np.random.default_rng(0)
        self.images = self.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
        self.create_subscription(String, "camera/fault", self.hear, qos.LATCHED)
        self.create_timer(1 / RATE, self.see)

    def hear(self, msg: String) -> None:
        self.fault = msg.data

    def see(self) -> None:
        stamp = self.get_clock().now().to_msg()
        if self.fault in ("negative", "one_negative"):
            stamp.sec = -1
            self.last = None
            self.fault = "good" if self.fault == "one_negative" else self.fault
        if self.fault == "good" or self.last is None:
            pixels = self.random.integers(0, 256, (48, 64, 3), np.uint8)
            self.last = rgb_to_image(pixels, stamp, "camera")
        if self.fault == "freeze":
            self.last.header.stamp = stamp
        if self.fault == "garbage":
            pixels = self.random.integers(0, 256, (48, 64, 3), np.uint8)
            bad = rgb_to_image(pixels, stamp, "camera")
            bad.height = int(self.random.integers(0, 2**31))
            bad.encoding = self.random.choice(["rgb8", "bayer_grbg8", "\x00\xff"])
            self.images.publish(bad)
            return
        self.images.publish(self.last)


class Arm(ManagedNode):
    """An arm that goes where `delta_twist` sends it, and tells its pose at 50 Hz.

    Faults: "freeze" (the same pose under new stamps), "repeat" (the same message again), "jump"
    (half a metre away), "negative" (stamps before 1970); "one_jump" and "one_negative": once.
    """

    PERIOD = 0.02

    def __init__(self):
        super().__init__("arm")
        self.fault, self.twist, self.heard = "good", TwistStamped().twist, -math.inf
        self.at, self.turn = np.zeros(3), Rotation.identity()
        self.last: PoseStamped | None = None
        self.poses = self.create_publisher(PoseStamped, "current_pose", 1)
        self.create_subscription(String, "arm/fault", self.hear, qos.LATCHED)
        self.create_subscription(TwistStamped, "delta_twist", self.follow, qos.COMMAND)
        self.create_timer(self.PERIOD, self.move)

    def hear(self, msg: String) -> None:
        self.fault = msg.data

    def follow(self, msg: TwistStamped) -> None:
        self.twist, self.heard = msg.twist, time.monotonic()

    def move(self) -> None:
        if time.monotonic() - self.heard < 0.2:
            linear, angular = self.twist.linear, self.twist.angular
            self.at = self.at + self.PERIOD * np.array([linear.x, linear.y, linear.z])
            turn = self.PERIOD * np.array([angular.x, angular.y, angular.z])
            self.turn = Rotation.from_rotvec(turn) * self.turn
        if self.last is None or self.fault not in ("freeze", "repeat"):
            self.last = self.measure()
        elif self.fault == "freeze":
            self.last.header.stamp = self.get_clock().now().to_msg()
        self.poses.publish(self.last)
        if self.fault.startswith("one_"):
            self.fault = "good"

    def measure(self) -> PoseStamped:
        msg, (x, y, z) = PoseStamped(), self.at.tolist()
        msg.header.stamp, msg.header.frame_id = self.get_clock().now().to_msg(), "base_link"
        if self.fault in ("negative", "one_negative"):
            msg.header.stamp.sec = -1
        p, q = msg.pose.position, msg.pose.orientation
        p.x, p.y, p.z = x + 0.5 * (self.fault in ("jump", "one_jump")), y, z
        q.x, q.y, q.z, q.w = self.turn.as_quat().tolist()
        return msg


class Joints(ManagedNode):
    """Joints that follow `joint_trajectory` as a joint_trajectory_controller does, at 50 Hz.

    Faults: "stray" (a second publisher tells zeros between), "one_stray" (one such message, by
    the arm's own publisher), "negative", "one_negative".
    """

    PERIOD = 0.02

    def __init__(self):
        super().__init__("arm")
        self.fault, self.other = "good", None
        self.at, self.goal, self.due = HOME.copy(), HOME.copy(), 0.0
        self.names = [f"j{i}" for i in range(len(HOME))]
        self.states = self.create_publisher(JointState, "joint_states", 10)
        self.create_subscription(String, "arm/fault", self.hear, qos.LATCHED)
        self.create_subscription(JointTrajectory, "joint_trajectory", self.follow, qos.COMMAND)
        self.create_timer(self.PERIOD, self.move)

    def hear(self, msg: String) -> None:
        self.fault = msg.data
        if self.fault == "stray" and self.other is None:
            self.other = self.create_publisher(JointState, "joint_states", 10)
        if self.fault != "stray" and self.other is not None:
            self.destroy_publisher(self.other)
            self.other = None

    def follow(self, msg: JointTrajectory) -> None:
        (point,) = msg.points
        self.goal = np.array(point.positions)
        self.due = time.monotonic() + 1e-9 * point.time_from_start.nanosec

    def move(self) -> None:
        left = max(self.due - time.monotonic(), self.PERIOD)
        self.at = self.at + (self.goal - self.at) * (self.PERIOD / left)
        if self.fault == "stray":
            self.tell(self.other, np.zeros(len(HOME)))
        if self.fault == "one_stray":
            self.tell(self.states, np.zeros(len(HOME)))
        self.tell(self.states, self.at, self.fault in ("negative", "one_negative"))
        if self.fault.startswith("one_"):
            self.fault = "good"

    def tell(self, publisher: Publisher, at: np.ndarray, negative: bool = False) -> None:
        msg = JointState(name=self.names, position=at.tolist())
        msg.header.stamp = self.get_clock().now().to_msg()
        if negative:
            msg.header.stamp.sec = -1
        publisher.publish(msg)


class Model(InferenceNode):
    """The real node. Faults: "hang" (no answer comes any more), "nan" (in its weights)."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()
        self.go_on.set()
        self.weights = None
        self.create_subscription(String, "model/fault", self.hear_fault, qos.LATCHED)

    def do_activate(self) -> None:
        predict = self.policy.predict

        def may_hang(*args, **kwargs):
            self.go_on.wait()
            return predict(*args, **kwargs)

        self.policy.predict = may_hang
        super().do_activate()

    def hear_fault(self, msg: String) -> None:
        weight = self.policy.model.language_model.model.norm.weight if self.policy else None
        if msg.data == "hang":
            self.go_on.clear()
        elif msg.data == "nan":
            self.weights = weight.clone()
            weight.fill_(float("nan"))
        else:
            self.go_on.set()
            if self.weights is not None:
                weight.copy_(self.weights)
                self.weights = None


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    made = {"camera": Camera, "model": Model, "arm": Arm, "joints": Joints}
    sys.exit(spin_node(made[sys.argv[1]], sys.argv[1:]))
