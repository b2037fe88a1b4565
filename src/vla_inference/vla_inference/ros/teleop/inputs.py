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
    KeyMapping,
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

PATIENCE = 2.0  # s that a device's driver may take to be found
JOY_TOPICS = {"gamepad": "joy", "spacemouse": "spacenav/joy"}


class Topic:
    """A subscription whose last error is raised by `check` until a good message comes, as is that
    nobody publishes it.

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
        self._topic, self._begun = node.resolve_topic_name(topic), time.monotonic()
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
        waited = time.monotonic() - self._begun > PATIENCE
        if waited and not self._node.count_publishers(self._topic):
            raise VlaError(f"nobody publishes {self._topic}", "start the device's driver")

    def close(self) -> None:
        self._node.destroy_subscription(self._hearing)


class KeyInput:
    """The keyboard of a terminal."""

    def __init__(self, mapping: KeyMapping, silence: float):
        self._keys = Keyboard(mapping, silence)
        self._terminal = Terminal()

    def wish(self, now: float) -> Wish:
        self._keys.take(self._terminal.read(), now)
        return self._keys.wish(now)

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


class Switch:
    """A device that is another one's dead man's switch.

    held: whether it was by the last wish.
    """

    def __init__(self, device: Device):
        self._device, self.held = device, False

    def wish(self, now: float) -> Wish:
        self.held = False
        wish = self._device.wish(now)
        self.held = wish.held
        return wish


class LeaderInput:
    def __init__(
        self,
        node: ManagedNode,
        human: HumanAction,
        settings: TeleopSettings,
        mapping: LeaderMapping,
        switch: Switch,
    ):
        s = settings
        self._human, self._switch = human, switch
        self._leader = Leader(mapping, s.max_difference, s.align_speed, s.silence)
        self._topic = Topic(node, JointState, "leader/joint_states", self._take)

    def _take(self, msg: JointState) -> None:
        self._leader.take(list(msg.name), list(msg.position), time.monotonic())

    def wish(self, now: float) -> Wish:
        self._topic.check()
        return self._leader.wish(self._switch.held, self._human.here, now)

    def close(self) -> None:
        self._topic.close()


class Inputs:
    """The device that the settings name, and what says who commands beside it.

    then: called after each message of a device.
    """

    def __init__(
        self,
        node: ManagedNode,
        human: HumanAction,
        settings: TeleopSettings,
        then: Callable[[], None],
    ):
        self._node, self._human, self._settings, self._then = node, human, settings, then
        self._open: list[Any] = []
        self._beside: list[Device] = []
        self.acts: tuple[str, ...] = ()  # of the last `wish`, even where it failed
        try:
            self._device = self._make()
        except BaseException:
            self.close()
            raise

    def wish(self, now: float) -> Wish:
        """The device's. Raises VlaError where it, or what is beside it, cannot be used."""
        self.acts = ()
        for device in (*self._beside, self._device):
            wish = device.wish(now)
            self.acts += wish.acts
        return wish

    def close(self) -> None:
        for one in self._open:
            one.close()
        self._open = []

    def _make(self) -> Device:
        s = self._settings
        if s.device == "keyboard":
            return self._keep(KeyInput(load_keys(s.mapping), s.silence))
        if s.device == "leader":
            return self._leader()
        if s.device == "twist":
            self._listen_to_keys()
            return self._keep(TwistInput(self._node, self._human, s, self._then))
        mapping = load_joy(s.mapping or s.device)
        if s.device == "gamepad" and mapping.button is None:
            raise VlaError(
                "a gamepad's stick is deflected by what lies on it",
                "give its mapping a deadman button",
            )
        self._listen_to_keys()
        return self._joy(mapping, JOY_TOPICS[s.device])

    def _leader(self) -> Device:
        s, mapping = self._settings, load_leader(self._settings.mapping)
        if s.switch == "key":
            switch = Switch(self._keys())
        elif mapping.pedal is not None:
            self._listen_to_keys()
            switch = Switch(self._joy(mapping.pedal, "joy"))
        else:
            raise VlaError(
                "the mapping of the leader has no pedal", "add it, or use the switch of a key"
            )
        self._beside.append(switch)
        return self._keep(LeaderInput(self._node, self._human, s, mapping, switch))

    def _listen_to_keys(self) -> None:
        if self._settings.terminal:
            self._beside.append(self._keys())

    def _keys(self) -> Device:
        return self._keep(KeyInput(load_keys().beside(), self._settings.silence))

    def _joy(self, mapping: JoyMapping, topic: str) -> Device:
        return self._keep(JoyInput(self._node, mapping, topic, self._settings.silence, self._then))

    def _keep(self, one: Any) -> Any:
        self._open.append(one)
        return one
