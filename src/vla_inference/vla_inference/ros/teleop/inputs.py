"""The devices as topics and keys, each as what a person wants at a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import JointState
from sensor_msgs.msg import Joy as JoyMsg

from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.lifecycle import ManagedNode
from vla_inference.ros.teleop.human import HumanAction
from vla_inference.teleop.joy import Joy
from vla_inference.teleop.keyboard import Keyboard
from vla_inference.teleop.leader import Leader
from vla_inference.teleop.mapping import (
    JoyMapping,
    LeaderMapping,
    load_joy,
    load_keys,
    load_leader,
)
from vla_inference.teleop.robot import Hands
from vla_inference.teleop.settings import TeleopSettings
from vla_inference.teleop.terminal import Terminal
from vla_inference.teleop.twist import Twist
from vla_inference.teleop.wish import Device, Wish

JOY_TOPICS = {"gamepad": "joy", "spacemouse": "spacenav/joy"}


class Topic:
    """A subscription whose last error is raised by `check` until a good message comes.

    then: called after each message.
    """

    def __init__(
        self,
        node: ManagedNode,
        kind: Any,
        topic: str,
        take: Callable[[Any], None],
        then: Callable[[], None] = lambda: None,
    ):
        self._node, self._take, self._then = node, take, then
        self._error: VlaError | None = None
        hear = node.create_subscription
        self._hearing = hear(kind, topic, self._on_message, **qos.overridable(qos.COMMAND))

    def _on_message(self, msg: Any) -> None:
        self._error = None
        try:
            self._take(msg)
        except VlaError as error:
            self._error = error
        self._then()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._node.destroy_subscription(self._hearing)


class KeyInput:
    """The keyboard of a terminal."""

    def __init__(self, mapping: str, silence: float):
        self.keys = Keyboard(load_keys(mapping), silence)
        self._terminal = Terminal()

    def wish(self, now: float) -> Wish:
        self.keys.take(self._terminal.read(), now)
        return self.keys.wish(now)

    def close(self) -> None:
        self._terminal.close()


class JoyInput:
    def __init__(
        self,
        node: ManagedNode,
        mapping: JoyMapping,
        topic: str,
        silence: float,
        then: Callable[[], None],
    ):
        self._joy = Joy(mapping, silence)
        self._topic = Topic(node, JoyMsg, topic, self._take, then)

    def _take(self, msg: JoyMsg) -> None:
        self._joy.take(msg.axes, msg.buttons, time.monotonic())

    def wish(self, now: float) -> Wish:
        self._topic.check()
        return self._joy.wish(now)

    def close(self) -> None:
        self._topic.close()


class TwistInput:
    def __init__(
        self,
        node: ManagedNode,
        human: HumanAction,
        settings: TeleopSettings,
        then: Callable[[], None],
    ):
        self._human, self._silence = human, settings.silence
        self._twist: Twist | None = None
        self._hands: Hands | None = None  # whose frames and speeds it has
        self._topic = Topic(node, TwistStamped, "human_twist", self._take, then)

    def _take(self, msg: TwistStamped) -> None:
        hands = self._human.known()
        if hands.moved is None:
            raise VlaError("the robot has no part that a twist moves", "use a leader arm")
        if self._twist is None or self._hands is not hands:
            self._hands, moved = hands, hands.moved
            self._twist = Twist((moved.base, moved.tool), hands.speeds, self._silence)
        vectors = msg.twist.linear, msg.twist.angular
        values = [getattr(vector, axis) for vector in vectors for axis in "xyz"]
        self._twist.take(values, msg.header.frame_id, time.monotonic())

    def wish(self, now: float) -> Wish:
        self._topic.check()
        return self._twist.wish(now) if self._twist else Wish()

    def close(self) -> None:
        self._topic.close()


class LeaderInput:
    """switch: what its dead man's switch is held by."""

    def __init__(
        self,
        node: ManagedNode,
        human: HumanAction,
        settings: TeleopSettings,
        mapping: LeaderMapping,
        switch: Device,
    ):
        s = settings
        self._human, self._switch = human, switch
        self._leader = Leader(mapping, s.max_difference, s.align_speed, s.silence)
        self._topic = Topic(node, JointState, "leader/joint_states", self._take)

    def _take(self, msg: JointState) -> None:
        self._leader.take(list(msg.name), list(msg.position), time.monotonic())

    def wish(self, now: float) -> Wish:
        pressed = self._switch.wish(now)
        self._topic.check()
        wish = self._leader.wish(pressed.held, self._human.here, now)
        return Wish(wish.held, joints=wish.joints, gripper=wish.gripper, acts=pressed.acts)

    def close(self) -> None:
        self._topic.close()


class Inputs:
    """The device that the settings name, and the terminal's keys beside it where they are asked
    for. then: called after each message of a device."""

    def __init__(
        self,
        node: ManagedNode,
        human: HumanAction,
        settings: TeleopSettings,
        then: Callable[[], None],
    ):
        self._open: list[Any] = []
        self._beside: KeyInput | None = None
        self.acts: tuple[str, ...] = ()  # told by the last `wish`, even where it failed
        try:
            self._device = self._make(node, human, settings, then)
        except BaseException:
            self.close()
            raise

    def _make(
        self,
        node: ManagedNode,
        human: HumanAction,
        s: TeleopSettings,
        then: Callable[[], None],
    ) -> Device:
        if s.device == "keyboard":
            return self._keep(KeyInput(s.mapping, s.silence))
        if s.device == "leader":
            return self._leader(node, human, s, then)
        if s.device == "twist":
            self._listen_to_keys(s)
            return self._keep(TwistInput(node, human, s, then))
        mapping = load_joy(s.mapping or s.device)
        if s.device == "gamepad" and mapping.button is None:
            raise VlaError(
                "a gamepad's stick is deflected by what lies on it",
                "give its mapping a deadman button",
            )
        self._listen_to_keys(s)
        return self._keep(JoyInput(node, mapping, JOY_TOPICS[s.device], s.silence, then))

    def _leader(
        self,
        node: ManagedNode,
        human: HumanAction,
        s: TeleopSettings,
        then: Callable[[], None],
    ) -> Device:
        mapping = load_leader(s.mapping)
        if s.switch == "key":
            switch: Device = _Held(self._keep(KeyInput("", s.silence)))
        elif mapping.pedal is not None:
            self._listen_to_keys(s)
            switch = self._keep(JoyInput(node, mapping.pedal, "joy", s.silence, then))
        else:
            raise VlaError(
                "the mapping of the leader has no pedal", "add it, or use the switch of a key"
            )
        return self._keep(LeaderInput(node, human, s, mapping, switch))

    def _listen_to_keys(self, s: TeleopSettings) -> None:
        if s.terminal:
            self._beside = self._keep(KeyInput("", s.silence))

    def _keep(self, one: Any) -> Any:
        self._open.append(one)
        return one

    def wish(self, now: float) -> Wish:
        """The device's, with what the terminal's keys say of who commands."""
        acts = self._beside.wish(now).acts if self._beside else ()
        self.acts = acts
        wish = self._device.wish(now)
        self.acts = (*acts, *wish.acts)
        return wish

    def close(self) -> None:
        for one in self._open:
            one.close()
        self._open = []


class _Held:
    """Of a terminal's keys the switch and what says who commands."""

    def __init__(self, keys: KeyInput):
        self._keys = keys

    def wish(self, now: float) -> Wish:
        wish = self._keys.wish(now)
        return Wish(self._keys.keys.holds(now), acts=wish.acts)
