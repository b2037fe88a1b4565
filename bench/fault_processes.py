"""A camera and a model that go wrong when told to, for bench/faults.py.

    python bench/fault_processes.py camera|model [--ros-args ...]

Each listens to `camera/fault` or `model/fault` (std_msgs/String), "good" to be well again.
"""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
from geometry_msgs.msg import PoseStamped
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_inference.inference_node import InferenceNode
from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.lifecycle import ManagedNode, spin_node

RATE = 20.0


class Camera(ManagedNode):
    """Noise at 20 Hz, and the pose of an arm that stands still.

    Faults: "freeze" (the same pixels under new stamps), "repeat" (the same message again),
    "garbage" (messages whose data are not what their fields say).
    """

    def __init__(self):
        super().__init__("camera")
        self.fault, self.last = "good", None
        self.random = np.random.default_rng(0)
        self.images = self.create_publisher(Image, "image", qos.IMAGE_OUTPUT)
        self.poses = self.create_publisher(PoseStamped, "current_pose", 1)
        self.create_subscription(String, "camera/fault", self.hear, qos.LATCHED)
        self.create_timer(1 / RATE, self.see)

    def hear(self, msg: String) -> None:
        self.fault = msg.data

    def see(self) -> None:
        stamp = self.get_clock().now().to_msg()
        pose = PoseStamped()
        pose.header.stamp, pose.header.frame_id = stamp, "base_link"
        pose.pose.orientation.w = 1.0
        self.poses.publish(pose)
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


class Model(InferenceNode):
    """The real node. Faults: "hang" (no answer comes any more), "nan" (in its weights)."""

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()
        self.go_on.set()
        self.weights = None
        self.create_subscription(String, "model/fault", self.hear_fault, qos.LATCHED)

    def do_activate(self) -> None:
        predict = self.policy.predict_action

        def may_hang(*args, **kwargs):
            self.go_on.wait()
            return predict(*args, **kwargs)

        self.policy.predict_action = may_hang
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
    sys.exit(spin_node({"camera": Camera, "model": Model}[sys.argv[1]], sys.argv[1:]))
