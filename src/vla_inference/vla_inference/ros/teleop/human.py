"""What a person wants, as `human_action`; and who commands, the person or the model."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.duration import Duration
from rclpy.parameter import Parameter, parameter_value_to_python
from sensor_msgs.msg import JointState
from std_srvs.srv import SetBool

from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.command.outputs.registry import output_of_part
from vla_inference.ros.lifecycle import ManagedNode
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.teleop.robot import EEF, GRIPPER, Hands, Robot, read_robot
from vla_inference.teleop.settings import TeleopSettings
from vla_inference.teleop.wish import STILL, Grip, Wish
from vla_msgs.msg import ActionChunk, CommandSource

FAREWELL = Duration(seconds=0.1)
ANSWER = 3.0  # s until an answer counts as lost
OF_NODE = {
    "parts",
    "use_sim_time",
    "base_frame",
    "tool_frame",
    "max_linear_velocity",
    "max_angular_velocity",
}
OF_PARTS = OF_NODE | {"output", "joints", "frame", "holonomic"}


class HumanAction:
    """Publishes a person's wishes for a robot that the command node describes by its parameters.

    device: what the chunks say of where they come from. told: called with who commands, each time
    that changes. What is published, and when, is the caller's: `send` while the dead man's switch
    is held, `halt` as soon as it is not. These may be called in any thread.
    """

    def __init__(
        self,
        node: ManagedNode,
        settings: TeleopSettings,
        device: str,
        told: Callable[[str], None] = lambda source: None,
    ):
        self._node, self._settings, self._device, self._told = node, settings, device, told
        self.hands: Hands | None = None
        self.source = ""  # who commands; empty: nobody has said
        self.problem = ""  # why the robot's parts are not known
        self.sent = 0
        self.here: dict[str, float] = {}  # measured joints, by name [rad, m]
        self._grips: dict[str, Grip] = {}
        self._joints: tuple[str, ...] = ()  # that the last wish named
        self._moving = False
        self._tool = False  # of the model's deltas
        self._publisher: Any = None
        self._saying = threading.RLock()
        self._asked = -math.inf  # when the command node was
        make = node.create_client
        self._list = make(ListParameters, "command/list_parameters")
        self._get = make(GetParameters, "command/get_parameters")
        self._take = make(SetBool, "command/take_over")
        hear = node.create_subscription
        self._hearing: list[Any] = [
            hear(ActionChunk, "action", self._on_chunk, **qos.overridable(qos.CHUNK)),
            hear(CommandSource, "command/source", self._on_source, qos.HISTORY),
        ]
        self._of_robot: list[Any] = []

    def close(self) -> None:
        """Removes it from the graph."""
        for subscription in (*self._hearing, *self._of_robot):
            self._node.destroy_subscription(subscription)
        for client in (self._list, self._get, self._take):
            self._node.destroy_client(client)
        self.leave()

    # -- the robot ----------------------------------------------------------------------------

    def look(self) -> None:
        """Asks the command node for its parts until they are known; to be called again."""
        now = time.monotonic()
        if self.hands is not None or now - self._asked < ANSWER:
            return
        if not (self._list.service_is_ready() and self._get.service_is_ready()):
            self.problem = "there is no command node"
            return
        self._asked = now
        future = self._list.call_async(ListParameters.Request())
        future.add_done_callback(self._node.guarded("command/list_parameters", self._listed))

    def _listed(self, future: Any) -> None:
        known = future.result().result.names
        names = [n for n in known if n in OF_NODE or ("." in n and n.split(".")[-1] in OF_PARTS)]
        again = self._get.call_async(GetParameters.Request(names=names))
        again.add_done_callback(
            self._node.guarded("command/get_parameters", partial(self._described, names))
        )

    def _described(self, names: list[str], future: Any) -> None:
        values = map(parameter_value_to_python, future.result().values)
        found = dict(zip(names, values, strict=False))
        try:
            self.take_robot(read_robot(found, lambda part, o: output_of_part(part, o).drives))
            self.problem = ""
        except VlaError as error:
            self.problem = str(error)
        self._keep_time(bool(found.get("use_sim_time")))

    def take_robot(self, robot: Robot) -> None:
        self.hands = Hands(robot, self._settings)
        self._grips = {m.part.name: Grip() for m in robot.parts if m.part.kind == GRIPPER}
        for part in robot.joints:
            on_joints = partial(self._on_joints, frozenset(d.name for d in part.dims))
            self._of_robot.append(
                self._node.create_subscription(
                    JointState, f"{part.name}/joint_states", on_joints, qos.STATE_INPUT
                )
            )

    def _forget_robot(self) -> None:
        """Another command node has come up, perhaps of another robot: it is asked anew."""
        with self._saying:
            self.hands, self._asked, self._moving = None, -math.inf, False
        for subscription in self._of_robot:
            self._node.destroy_subscription(subscription)
        self._of_robot.clear()
        self.here.clear()

    def _keep_time(self, simulated: bool) -> None:
        """The command node's clock is the one that chunks are stamped by."""
        if self._node.value("use_sim_time") != simulated:
            self._node.set_parameters([Parameter("use_sim_time", value=simulated)])

    def known(self) -> Hands:
        """Raises VlaError while the robot's parts are not known."""
        if self.hands is None:
            raise VlaError(
                self.problem or "the command node has not said which parts it drives",
                "nothing moves before it does: start it",
            )
        return self.hands

    # -- what is heard ------------------------------------------------------------------------

    def _on_source(self, msg: CommandSource) -> None:
        if msg.sequence == 0 and self.hands is not None:
            self._forget_robot()
        if msg.source != self.source:
            self.source = msg.source
            self._told(msg.source)

    def _on_joints(self, names: frozenset[str], msg: JointState) -> None:
        found = zip(msg.name, msg.position, strict=False)
        self.here.update((n, p) for n, p in found if n in names)

    def _on_chunk(self, msg: ActionChunk) -> None:
        """The model's: its axes, and where it has the grippers while it commands."""
        row, numbers = self._due(msg), 0
        for part in msg.parts:
            if part.kind == EEF:
                self._tool = part.frame_id.lstrip("/") == "tool"
            if part.kind == GRIPPER and row and self.source != CommandSource.HUMAN:
                named = self._grips.get(part.name)
                for grip in [named] if named else self._grips.values():
                    grip.seen(row[numbers])
            numbers += len(part.dims)

    def _due(self, msg: ActionChunk) -> list[float]:
        """Numbers of the step that is due now; empty: the chunk has none."""
        width = sum(len(part.dims) for part in msg.parts)
        steps = len(msg.actions) // width if width else 0
        if not steps or not msg.dt > 0:
            return []
        stamp = msg.header.stamp
        now = 1e-9 * self._node.get_clock().now().nanoseconds
        passed = (now - stamp.sec - 1e-9 * stamp.nanosec) / msg.dt
        index = int(min(max(passed, 0), steps - 1))
        return list(msg.actions[width * index : width * (index + 1)])

    # -- what is said -------------------------------------------------------------------------

    def open(self) -> None:
        """Shows itself to the command node: a first chunk of somebody unknown would be lost."""
        with self._saying:
            if self._publisher is None:
                make = self._node.create_publisher
                self._publisher = make(ActionChunk, "human_action", qos.CHUNK)

    @property
    def opened(self) -> bool:
        """Whether it is a publisher, for the command node to hear."""
        return self._publisher is not None

    def leave(self) -> None:
        """Is no publisher any more: the command node takes one at a time."""
        with self._saying:
            self.halt()
            publisher, self._publisher = self._publisher, None
            if publisher is not None:
                publisher.wait_for_all_acked(FAREWELL)  # a last halt
                self._node.destroy_publisher(publisher)

    def send(self, wish: Wish) -> None:
        """Publishes a chunk; raises VlaError where the wish is none for this robot."""
        with self._saying:
            hands = self.known()
            hands.tool = self._in_tool()
            if hands.gripper:
                self._grips[hands.gripper].follow(wish)
            self._publish(wish)
            self._moving, self._joints = True, tuple(wish.joints)

    def halt(self) -> None:
        """A chunk of no motion if the last one was of any; then nothing."""
        with self._saying:
            if self._moving:
                self._moving = False
                here = {name: self.here[name] for name in self._joints if name in self.here}
                self._publish(Wish(held=True, shares=STILL, joints=here))

    def _in_tool(self) -> bool:
        return self._tool if self._settings.axes == "model" else self._settings.axes == "tool"

    def _publish(self, wish: Wish) -> None:
        grips = {name: grip.value for name, grip in self._grips.items()}
        chunk = self.known().chunk(wish, grips)
        now = self._node.get_clock().now().to_msg()
        if not (now.sec or now.nanosec):
            raise VlaError("simulated time has not begun", "is the simulation running?")
        msg = chunk_to_msg(chunk, now, model=self._device)
        msg.produced, msg.sequence = now, self.sent
        self.open()
        self._publisher.publish(msg)
        self.sent += 1

    def take_over(self, human: bool, then: Callable[[bool, str], None]) -> None:
        """Asks the command node for it. then: called with whether it agrees, and what it says."""
        if not self._take.service_is_ready():
            then(False, "there is no command node that could be taken over")
            return

        def answered(future: Any) -> None:
            response = future.result()
            then(response.success, response.message)

        future = self._take.call_async(SetBool.Request(data=human))
        future.add_done_callback(self._node.guarded("command/take_over", answered))
