"""The command node: action chunks in, controller commands out, at a fixed rate.

All that decides is in `vla_inference.control`; here are topics, parameters and clocks. Disabled
until `~/enable` is called.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from std_msgs.msg import Empty
from std_srvs.srv import SetBool

from vla_inference.control import Command, Commander
from vla_inference.control.safety import FAULT
from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.command.messages import msg_to_pose
from vla_inference.ros.command.outputs.base import MOTION
from vla_inference.ros.command.outputs.registry import Outputs
from vla_inference.ros.command.parameters import (
    command_configs,
    limits_in_force,
    read_frames,
    read_settings,
)
from vla_inference.ros.command.status import diagnosis, fill_status
from vla_inference.ros.diagnostics import OK, Report
from vla_inference.ros.lifecycle import ACTIVE, ManagedNode, configured, spin_node
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.ros.stamps import stamp_seconds
from vla_inference.serving.rate_meter import RateMeter
from vla_msgs.msg import ActionChunk, CommandStatus

FAREWELL = Duration(seconds=0.2)  # to have a last halt acknowledged
STATUS_PERIOD = 0.5


class CommandNode(ManagedNode):
    TASK = "commands"

    def __init__(self, name: str = "command", **kwargs):
        super().__init__(name, *command_configs(), **kwargs)
        self.commander: Commander | None = None
        self._lock_step = False
        self._timer = None
        self._outputs: Outputs | None = None
        self._alone: list[str] = []  # topics that one publisher alone may feed
        self._told: tuple | None = None
        self._in_tool = False
        self._sent, self._watch = 0, RateMeter()
        self._remark = self._pose_remark = ""  # about the chunks, about current_pose

        self._status = self.create_publisher(CommandStatus, "~/status", qos.LATCHED)
        hear, newest = self.create_subscription, qos.IMAGE_INPUT
        hear(ActionChunk, "action", self._on_chunk, **qos.overridable(qos.CHUNK))
        hear(PoseStamped, "current_pose", self._on_pose, **qos.overridable(newest))
        hear(Empty, "heartbeat", self._on_heartbeat, **qos.overridable(newest))
        self.create_service(SetBool, "~/enable", self._enable)
        # Steady: where simulated time stands still, the watchdogs must not.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(STATUS_PERIOD, self._publish_status, clock=self._steady)

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._settings = read_settings(self.value)
        self._frames = read_frames(self.value)
        self._lock_step = self.value("lock_step")
        if self._lock_step and not self.value("use_sim_time"):
            raise VlaError("lock_step without use_sim_time", "set both, or neither")
        self._outputs = Outputs(self, self.value, MOTION)
        used = {
            "action": True,
            "current_pose": self._settings.needs_pose,
            "heartbeat": bool(self._settings.watchdogs.heartbeat),
        }
        self._alone = [self.resolve_topic_name(topic) for topic, on in used.items() if on]

    def do_activate(self) -> None:
        self.commander = Commander(self._settings)
        self._sent, self._watch = 0, RateMeter()
        self._remark = self._pose_remark = ""
        self._tell_limits()
        clock = None if self._lock_step else self._steady
        self._timer = self.create_timer(self.commander.period, self._tick, clock=clock)

    def do_deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        commander, self.commander = self.commander, None
        if commander is not None and commander.safety.enabled:
            # There will be no further period to tell it in.
            try:
                self._send(Command(target=commander.pose_to_hold(self._steadily())))
            finally:  # an output that fails must not keep a gripper moving
                configured(self._outputs).stop()
                # The process may end right after this, and what is under way with it.
                configured(self._outputs).flush(FAREWELL)

    def do_cleanup(self) -> None:
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None

    def _tell_limits(self) -> None:
        enable, outputs = self.resolve_service_name("~/enable"), configured(self._outputs).told()
        self.get_logger().info(limits_in_force(self._settings, self._frames, outputs, enable))

    def state_changed(self) -> None:
        self._publish_status()

    # -- what comes in ------------------------------------------------------------------------

    def _now(self) -> float:
        return 1e-9 * self.get_clock().now().nanoseconds

    def _steadily(self) -> float:
        """The clock of the watchdogs: steady time, or simulated time in lock step."""
        return self._now() if self._lock_step else time.monotonic()

    def _on_chunk(self, msg: ActionChunk) -> None:
        if self.commander is None:
            return
        now = self._now()
        try:
            stamp = stamp_seconds(msg.header.stamp, "the chunk")
            chunk = msg_to_chunk(msg)
            if not stamp:
                raise VlaError("the chunk has no stamp", "give it that of its image")
        except VlaError as error:
            self.commander.bad_chunk(str(error), now)
        else:
            before = self.commander.player.late
            self.commander.accept(chunk, stamp, now, self._steadily())
            late = self.commander.player.late > before
            self._remark = (
                "chunks come too late to execute any of their steps; choose a faster model, "
                "longer chunks, or align: arrival"
                if late
                else ""
            )
        self._tell_changes()

    def _on_pose(self, msg: PoseStamped) -> None:
        if self.commander is None:
            return
        frame = msg.header.frame_id
        try:
            if frame != self._frames.base:
                raise VlaError(
                    f"current_pose is in frame {frame!r}, not {self._frames.base!r}",
                    "set base_frame, or have the pose published in it",
                )
            stamp, now = stamp_seconds(msg.header.stamp, "current_pose"), self._now()
            pose = msg_to_pose(msg)
            self._pose_remark = self.commander.measured(pose, stamp, now, self._steadily())
        except VlaError as error:
            self._pose_remark = str(error)
        if self._pose_remark:  # without usable poses the watchdog stops the robot
            self.get_logger().warning(self._pose_remark, throttle_duration_sec=5.0)

    def _on_heartbeat(self, msg: Empty) -> None:
        if self.commander is not None:
            self.commander.safety.heartbeat(self._steadily())

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        commander = self.commander
        if commander is None:
            response.success = not request.data
            response.message = "the node is not active; configure and activate it first"
            return response
        if request.data:
            response.message = configured(self._outputs).missing() or commander.enable(
                self._steadily(), self._others()
            )
            if response.message and not commander.chunks:
                topic = self.resolve_topic_name("action")
                response.message += f" (listening on {topic})"
            response.success = not response.message
        else:
            commander.disable()
            response.success = True
        self._tell_changes()
        return response

    def callback_failed(self, where: str, reason: str) -> None:
        """A node with a failed callback must not move a robot: stops and halts at once."""
        commander = self.commander
        if commander is None or not commander.safety.enabled:
            return
        commander.safety.stop(FAULT, reason, self._now())
        # The fault may be the period's own: then it tells nothing any more.
        self._send(Command(target=commander.pose_to_hold(self._steadily())))
        self._tell_changes()

    # -- what goes out ------------------------------------------------------------------------

    def _others(self) -> str:
        """Describes other nodes on our topics that should not be there; empty: none."""
        counts = {topic: self.count_publishers(topic) - 1 for topic in self._alone}
        found = [f"{n} more publish on {topic}" for topic, n in counts.items() if n > 0]
        return ", ".join(configured(self._outputs).others() + found)

    def _tick(self) -> None:
        if self.commander is None:
            return
        command = self.commander.tick(self._now(), self._steadily(), self._others())
        if command is not None and command.live:
            self._send(command)
        if not self.commander.safety.enabled:
            configured(self._outputs).stop()
        self._tell_changes()

    def _send(self, command: Command) -> None:
        if self.commander is not None:
            self._in_tool = self.commander.in_tool
        configured(self._outputs).send(command, self.get_clock().now().to_msg(), self._in_tool)
        self._sent += 1
        self._watch.add(0.0, time.monotonic())

    def _remarks(self) -> str:
        outputs = self._outputs.remark if self._outputs is not None else ""
        return self._remark or self._pose_remark or outputs

    # -- status -------------------------------------------------------------------------------

    def _tell_changes(self) -> None:
        """Publishes the status at once if the state has changed."""
        if self.commander is None:
            return
        safety = self.commander.safety
        seen = safety.state, safety.last_stop, safety.refusals.total()
        if seen == self._told:
            return
        stopped = self._told is None or safety.last_stop is not self._told[1]
        self._told = seen
        if stopped and safety.last_stop is not None:
            self.get_logger().error(f"stopped: {safety.last_stop.reason}")
        self._publish_status()

    def _rate(self) -> float:
        return self._watch.rate(time.monotonic())

    def _publish_status(self) -> None:
        status = CommandStatus(state=CommandStatus.INACTIVE, message=self.failure)
        status.header.stamp = self.get_clock().now().to_msg()
        status.image_age_ms = math.nan
        c = self.commander
        if c is not None and self.state == ACTIVE:
            fill_status(status, c, self._now(), self._sent, self._rate(), self._remarks())
        self._status.publish(status)

    def diagnose(self) -> Report:
        if self.commander is None:
            return OK, self.state, {}
        return diagnosis(self.commander, self._sent, self._rate(), self._remarks())


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(CommandNode, args)


if __name__ == "__main__":
    sys.exit(main())
