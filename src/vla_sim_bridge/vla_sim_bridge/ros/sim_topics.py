"""The simulation node's publishers and their messages."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Float32, String

from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.qos import CHUNK, IMAGE_OUTPUT, LATCHED
from vla_msgs.msg import EpisodeStatus, SimStatus
from vla_sim_bridge.evaluation.run import Evaluation


class SimTopics:
    """Publishers of one simulation. Stamps are integers, nanoseconds of `time`, the node's clock
    or a simulated one."""

    def __init__(self, node: Node, camera: str):
        self.node, self.frame_id = node, f"{camera}_optical"
        self.last_stamp = 0
        self.time = lambda: node.get_clock().now().nanoseconds
        self._text: str | None = None
        self._image = node.create_publisher(Image, "image", IMAGE_OUTPUT)
        self._info = node.create_publisher(CameraInfo, "camera_info", IMAGE_OUTPUT)
        self._instruction = node.create_publisher(String, "instruction", LATCHED)
        self._reward = node.create_publisher(Float32, "reward", CHUNK)
        self._episode = node.create_publisher(EpisodeStatus, "~/episode", CHUNK)
        self._status = node.create_publisher(SimStatus, "~/status", LATCHED)

    @property
    def viewers(self) -> int:
        """Number of subscribers to the images."""
        return self._image.get_subscription_count()

    def now(self) -> int:
        """A unique stamp."""
        self.last_stamp = max(self.time(), self.last_stamp + 1)
        return self.last_stamp

    def instruction(self, text: str) -> None:
        """Publishes the instruction if it changed, latched for late subscribers."""
        if text != self._text:
            self._text = text
            self._instruction.publish(String(data=text))

    def frame(self, image: np.ndarray, matrix: np.ndarray, stamp: int) -> None:
        """image: uint8 [H, W, 3]; matrix: 3 x 3 pinhole, pixels."""
        msg = rgb_to_image(image, Time(nanoseconds=stamp).to_msg(), self.frame_id)
        self._image.publish(msg)
        info = CameraInfo(header=msg.header, width=msg.width, height=msg.height)
        info.distortion_model, info.d = "plumb_bob", [0.0] * 5
        info.k = matrix.ravel().tolist()
        info.r = np.eye(3).ravel().tolist()
        info.p = np.hstack([matrix, np.zeros((3, 1))]).ravel().tolist()
        self._info.publish(info)

    def reward(self, value: float) -> None:
        self._reward.publish(Float32(data=float(value)))

    def episode(self, evaluation: Evaluation) -> None:
        self._episode.publish(self.episode_message(evaluation))

    def episode_message(self, evaluation: Evaluation) -> EpisodeStatus:
        run, sim = evaluation.episode, evaluation.sim
        msg = EpisodeStatus(task=sim.task.name)
        msg.header.stamp = Time(nanoseconds=self.last_stamp).to_msg()
        msg.header.frame_id = self.frame_id
        if run is None:  # none has begun
            return msg
        msg.seed, msg.index = run.seed, run.index
        msg.step, msg.horizon, msg.reward = run.step_count, run.horizon, float(run.reward)
        msg.success, msg.done, msg.outcome = run.outcome == "success", run.done, run.outcome
        msg.instruction = sim.instruction
        return msg

    def status(self, evaluation: Evaluation, state: str, message: str) -> None:
        e = evaluation
        msg = SimStatus(state=state, message=message, episode=self.episode_message(e))
        msg.header.stamp = self.node.get_clock().now().to_msg()
        msg.episodes_done, msg.episodes_total = len(e.counted), e.episodes
        msg.successes, msg.ever_successes = e.successes, e.ever_successes
        msg.frames_total, msg.action_rate = e.frames, float(e.recent_rate)
        self._status.publish(msg)
