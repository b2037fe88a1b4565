"""The inference node's inputs: cameras and robot state, synchronised by time stamp."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_inference.errors import ObservationError, VlaError
from vla_inference.inputs.frozen_camera import FrozenWatch
from vla_inference.inputs.history import ImageHistory, past_name
from vla_inference.inputs.image_messages import compressed_to_rgb, image_to_rgb
from vla_inference.inputs.joint_memory import Joint, JointMemory, positions_at
from vla_inference.inputs.robot_state import QuaternionSign, StateLayout
from vla_inference.inputs.synchronise import Synchroniser
from vla_inference.ros import qos
from vla_inference.ros.stamps import stamp_ns, stamp_seconds
from vla_inference.types import Observation

POSE, JOINTS = "current_pose", "joint_states"
OFF = 1 / 3  # of the interval, that a past image may be off its time
MAX_FUTURE = 0.5  # seconds an image's stamp may be ahead of our clock


@dataclass(frozen=True)
class View:
    """Synchronised messages: an image per camera, the first one leading, then the state's."""

    images: tuple[Image | CompressedImage, ...]
    pose: PoseStamped | None = None
    joints: Mapping[str, Joint] | None = None  # of the layout, as last known by then
    arrived: float = 0.0  # when it was complete (monotonic clock)
    past: tuple[tuple[Image | CompressedImage, ...], ...] = ()  # images before these
    lacks: ObservationError | None = None  # why the past is not whole

    @property
    def header(self) -> Any:
        return self.images[0].header

    def age(self, now: int, limit: float) -> float:
        """Age in seconds; raises ObservationError if it is not acceptable.

        now: by the clock that stamps are of, ns. limit: of the age, s; 0: any.
        """
        stamp = stamp_ns(self.header.stamp, "the image")
        if not stamp:
            raise ObservationError("the image has no stamp", "set header.stamp when taking it")
        if not now:
            raise ObservationError("there is no time yet", "publish /clock or unset use_sim_time")
        age = 1e-9 * (now - stamp)
        if limit and age > limit:
            raise ObservationError(
                f"the image is {age:.2f} s old, more than max_image_age ({limit:g} s)",
                "check the camera's clock and the network",
            )
        if age < -MAX_FUTURE:
            raise ObservationError(
                f"the image's stamp is {-age:.2f} s in the future", "synchronise the clocks"
            )
        return age


class Inputs:
    """Subscriptions whose messages come back as `View`s.

    cameras: names of topics, in the order the model takes them; the first one leads.
    transport: raw, or compressed (CAMERA/compressed).
    receive: called with each view, in the executor's thread.
    history, interval: how many views before it, and how far apart [s], come with each.
    """

    def __init__(
        self,
        node: Node,
        *,
        cameras: Sequence[str],
        transport: str,
        layout: StateLayout,
        tolerance: float,
        receive: Callable[[View], None],
        history: int = 0,
        interval: float = 0.0,
    ):
        self._past = partial(ImageHistory, history, interval, OFF * interval)
        self._history: ImageHistory[tuple[Any, ...]] = self._past()
        images = qos.IMAGE_HISTORY if history else qos.IMAGE_INPUT
        self.cameras, self.layout = check_cameras(cameras), layout
        self._node, self._receive = node, receive
        self._frozen = FrozenWatch()
        self._sign = QuaternionSign()
        self._joints = JointMemory(layout.joints)
        self._any_joint = False  # of the layout was heard
        kind, decode = (
            (Image, image_to_rgb) if transport == "raw" else (CompressedImage, compressed_to_rgb)
        )
        self._decode = decode
        kinds = dict.fromkeys(self.cameras, kind)
        kinds |= {POSE: PoseStamped} if layout.needs_pose else {}
        kinds |= {JOINTS: JointState} if layout.needs_joints else {}
        self._synchroniser: Synchroniser[Any] = Synchroniser(list(kinds), tolerance)
        self._begun = time.monotonic()
        self._subscriptions = []
        for name, message in kinds.items():
            topic = name
            if message is CompressedImage:
                # As image_transport does it: remapping `image` moves the compressed one along.
                topic = node.resolve_topic_name(name) + "/compressed"
            # States come fast: the newest alone might be too new for an image that lags.
            profile = images if name in self.cameras else qos.STATE_INPUT
            made = node.create_subscription(
                message, topic, partial(self._put, name), **qos.overridable(profile)
            )
            self._subscriptions.append(made)

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def reset(self) -> None:
        self._synchroniser.reset()
        self._frozen = FrozenWatch()
        self._sign = QuaternionSign()
        self._joints, self._any_joint = JointMemory(self.layout.joints), False
        self._history = self._past()
        self._begun = time.monotonic()

    def _put(self, name: str, message: Any) -> None:
        stamp = stamp_seconds(message.header.stamp, name)
        now = time.monotonic()
        if name == JOINTS:
            message = self._joints.put(message.name, message.position, stamp)
            if message:
                stamp = max(joint.stamp for joint in message.values())
            elif self._any_joint:
                return  # joints of others
            self._any_joint |= bool(message)
        found = self._synchroniser.put(name, stamp, message, now)
        if found is not None:
            by_name = dict(zip(self._synchroniser.names, found, strict=True))
            images = tuple(by_name[c] for c in self.cameras)
            lead = stamp_seconds(images[0].header.stamp)
            view = View(images, by_name.get(POSE), by_name.get(JOINTS), now)
            try:
                view = replace(view, past=tuple(self._history.put(lead, images)))
            except ObservationError as error:  # raised where the view is answered
                view = replace(view, lacks=error)
            self._receive(view)

    def missing(self, patience: float = 1.0) -> str:
        """Describes missing or late inputs; empty: none."""
        now = time.monotonic()
        return self._synchroniser.missing(now, patience) if now - self._begun > patience else ""

    # -- in the model's thread ----------------------------------------------------------------

    def observe(self, view: View, text: str, most_same: float = 0.0) -> Observation:
        """The observation of a view; raises ObservationError that names the faulty input.

        most_same: seconds a camera may show the very same image; 0: any time.
        """
        if view.lacks is not None:
            raise view.lacks
        stamp = stamp_seconds(view.header.stamp)
        images: dict[str, np.ndarray] = {}
        for ago, seen in enumerate((view.images, *view.past)):
            for name, message in zip(self.cameras, seen, strict=True):
                key = past_name(name, ago)
                images[key] = self._image(key, message)
                if most_same and not ago:
                    self._frozen.check(name, message.data, view.arrived, most_same)
        return Observation(images, text, self._state(view), stamp)

    def _image(self, name: str, message: Image | CompressedImage) -> np.ndarray:
        try:
            return self._decode(message)
        except ObservationError as error:
            if len(self.cameras) == 1:
                raise
            raise ObservationError(f"{name}: {error.problem}", error.remedy) from None

    def _state(self, view: View) -> np.ndarray | None:
        if not len(self.layout):
            return None
        pose = None
        if view.pose is not None:
            p, q = view.pose.pose.position, view.pose.pose.orientation
            pose = (p.x, p.y, p.z), (q.x, q.y, q.z, q.w)
        joints = None
        if view.joints is not None:
            at = stamp_seconds(view.header.stamp)
            joints = positions_at(view.joints, self.layout.joints, at)
        state = self.layout.read(pose, joints, self._sign)
        seam = self.layout.seam(pose[1]) if pose is not None else ""
        if seam:
            self._node.get_logger().warning(
                f"{POSE}: {seam}; check that the model was trained with such numbers",
                throttle_duration_sec=60.0,
            )
        return state


def check_cameras(names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(names)
    twice = {n for n in names if names.count(n) > 1}
    if not names or not all(names) or twice:
        what = f"names {', '.join(sorted(twice))} twice" if twice else "is empty"
        raise VlaError(f"parameter 'cameras' {what}", "name each camera's topic, such as image")
    return names
