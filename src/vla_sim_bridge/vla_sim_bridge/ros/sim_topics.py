"""The simulation node's publishers and their messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float32, String

from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.qos import CHUNK, IMAGE_OUTPUT, LATCHED
from vla_msgs.msg import EpisodeStatus, SimStatus
from vla_sim_bridge.evaluation.run import ClosedLoopEvaluation

FINGERS = ["finger_joint1", "finger_joint2"]


class SimTopics:
    """Publishers of one simulation. Stamps are integers, nanoseconds of `time`, the node's clock
    or a simulated one."""

    def __init__(
        self, node: Node, cameras: Sequence[str], state: bool = False, past: Sequence[str] = ()
    ):
        """cameras: the one of `image`, and perhaps one of `image_wrist`. state: whether the
        robot's is published as well. past: topics of past images."""
        self.node, self.frame_id = node, f"{cameras[0]}_optical"
        self._cameras = {
            camera: (
                node.create_publisher(Image, f"image{name}", IMAGE_OUTPUT),
                node.create_publisher(CameraInfo, f"camera_info{name}", IMAGE_OUTPUT),
            )
            for camera, name in zip(cameras, ("", "_wrist"), strict=False)
        }
        self._image = self._cameras[cameras[0]][0]
        self._past = {name: node.create_publisher(Image, name, IMAGE_OUTPUT) for name in past}
        self._pose = node.create_publisher(PoseStamped, "current_pose", CHUNK) if state else None
        self._joints = node.create_publisher(JointState, "joint_states", CHUNK) if state else None
        self.last_stamp = 0
        self.time = lambda: node.get_clock().now().nanoseconds
        self._text: str | None = None
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

    def frame(self, camera: str, image: np.ndarray, matrix: np.ndarray, stamp: int) -> None:
        """image: uint8 [H, W, 3]; matrix: 3 x 3 pinhole, pixels."""
        images, infos = self._cameras[camera]
        msg = rgb_to_image(image, Time(nanoseconds=stamp).to_msg(), f"{camera}_optical")
        images.publish(msg)
        infos.publish(camera_info(msg, matrix))

    def past(self, topic: str, image: np.ndarray, camera: str, stamp: int) -> None:
        """A past image, with the stamp of the present ones that it comes with."""
        time = Time(nanoseconds=stamp).to_msg()
        self._past[topic].publish(rgb_to_image(image, time, f"{camera}_optical"))

    def robot(self, state: np.ndarray, stamp: int) -> None:
        """state: [8], position m, axis angle rad (up to 2 pi), both fingers m."""
        if self._pose is None or self._joints is None:
            return
        pose = pose_message(state)
        pose.header.stamp, pose.header.frame_id = Time(nanoseconds=stamp).to_msg(), "world"
        joints = JointState(header=pose.header, name=FINGERS, position=state[6:8].tolist())
        self._joints.publish(joints)
        self._pose.publish(pose)

    def reward(self, value: float) -> None:
        self._reward.publish(Float32(data=float(value)))

    def episode(self, evaluation: ClosedLoopEvaluation) -> None:
        self._episode.publish(self.episode_message(evaluation))

    def episode_message(self, evaluation: ClosedLoopEvaluation) -> EpisodeStatus:
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

    def status(self, evaluation: ClosedLoopEvaluation, state: str, message: str) -> None:
        e = evaluation
        msg = SimStatus(state=state, message=message, episode=self.episode_message(e))
        msg.header.stamp = self.node.get_clock().now().to_msg()
        msg.episodes_done, msg.episodes_total = len(e.counted), e.episodes
        msg.successes, msg.ever_successes = e.successes, e.ever_successes
        msg.frames_total, msg.action_rate = e.frames, float(e.recent_rate)
        self._status.publish(msg)


def pose_message(state: np.ndarray) -> PoseStamped:
    """The quaternion has the sign that the axis angle tells: w below 0 beyond pi."""
    msg, angle = PoseStamped(), float(np.linalg.norm(state[3:6]))
    axis = state[3:6] / angle if angle else np.zeros(3)
    p, q = msg.pose.position, msg.pose.orientation
    p.x, p.y, p.z = map(float, state[:3])
    q.x, q.y, q.z = map(float, axis * np.sin(angle / 2))
    q.w = float(np.cos(angle / 2))
    return msg


def camera_info(image: Image, matrix: np.ndarray) -> CameraInfo:
    """matrix: 3 x 3 pinhole, pixels."""
    info = CameraInfo(header=image.header, width=image.width, height=image.height)
    info.distortion_model, info.d = "plumb_bob", [0.0] * 5
    info.k = matrix.ravel().tolist()
    info.r = np.eye(3).ravel().tolist()
    info.p = np.hstack([matrix, np.zeros((3, 1))]).ravel().tolist()
    return info
