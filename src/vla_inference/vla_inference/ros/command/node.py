"""The command node: action chunks in, controller commands out, at a fixed rate.

All that decides is in `vla_inference.control`; here are topics, parameters and clocks. Disabled
until `~/enable` is called.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.time import Time
from sensor_msgs.msg import JointState, LaserScan
from std_msgs.msg import Empty
from std_srvs.srv import SetBool

from vla_inference.control import HUMAN, MODEL, RobotCommander, Safety
from vla_inference.control.commands import check_chunk
from vla_inference.control.parts.clearance import Scan
from vla_inference.control.parts.eef import EefPart
from vla_inference.control.parts.joints import JointPart
from vla_inference.control.parts.twist import BasePart
from vla_inference.control.safety import CONTROLLER, FAULT
from vla_inference.errors import VlaError
from vla_inference.ros import qos
from vla_inference.ros.command.outputs.base import BASE_PART, EEF, JOINT_PART, MOTION, Output
from vla_inference.ros.command.outputs.registry import Outputs, chosen, each_of, output_of_part
from vla_inference.ros.command.parameters import (
    command_configs,
    limits_in_force,
    read_frames,
    read_settings,
)
from vla_inference.ros.command.parts import (
    PART_CONFIGS,
    OutputConfig,
    PartsConfig,
    PartSetup,
    set_up,
    value_of_part,
)
from vla_inference.ros.command.status import diagnosis, fill_status
from vla_inference.ros.diagnostics import OK, Report
from vla_inference.ros.geometry import msg_to_pose
from vla_inference.ros.lifecycle import ACTIVE, ManagedNode, spin_node
from vla_inference.ros.messages import msg_to_chunk
from vla_inference.ros.stamps import stamp_seconds
from vla_inference.serving.rate_meter import RateMeter
from vla_msgs.msg import ActionChunk, CommandSource, CommandStatus

FAREWELL = Duration(seconds=0.2)  # to have a last halt acknowledged
STATUS_PERIOD = 0.5
HUMAN_ACTION = "human_action"
LATE = (
    "chunks come too late to execute any of their steps; choose a faster model, longer chunks, or "
    "align: arrival"
)
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # of a part: it becomes part of topics' names


class CommandNode(ManagedNode):
    TASK = "commands"
    UNLOCKED = frozenset({"speed"})  # it leads to no more than the motion that was configured

    def __init__(self, name: str = "command", **kwargs):
        super().__init__(name, *command_configs(), **kwargs)
        self.commander: RobotCommander | None = None
        self._lock_step = False
        self._timer = None
        self._parts: dict[str, PartSetup] = {}
        self._outputs: dict[str, Outputs] = {}
        self._alone: dict[str, int] = {}  # how many others may publish on a topic
        self._told: tuple | None = None
        self._changes = self._sequence = 0  # of who commands: since activation; told in all
        self._in_tool: dict[str, bool] = {}
        self._sent, self._watch = 0, RateMeter()
        self._remark = ""  # about the chunks
        self._measured: dict[str, str] = {}  # remarks about each part's measurements
        self._kinds = self._declare_parts()

        self._status = self.create_publisher(CommandStatus, "~/status", qos.LATCHED)
        self._sources = self.create_publisher(CommandSource, "~/source", qos.HISTORY)
        hear, newest = self.create_subscription, qos.IMAGE_INPUT
        for topic, source in (("action", MODEL), (HUMAN_ACTION, HUMAN)):
            hear(ActionChunk, topic, partial(self._on_chunk, source), **qos.overridable(qos.CHUNK))
        for name, kind in self._kinds.items():
            if kind.drives == JOINT_PART:
                on_joints = partial(self._on_joints, name)
                states = qos.overridable(qos.STATE_INPUT)
                hear(JointState, f"{name}/joint_states", on_joints, **states)
            elif kind.drives == EEF:
                on_pose = partial(self._on_pose, name)
                hear(PoseStamped, f"{name}/current_pose", on_pose, **qos.overridable(newest))
            elif kind.drives == BASE_PART:
                on_scan = partial(self._on_scan, name)
                hear(LaserScan, f"{name}/scan", on_scan, **qos.overridable(newest))
        if not self._kinds:
            on_pose = partial(self._on_pose, "")
            hear(PoseStamped, "current_pose", on_pose, **qos.overridable(newest))
        hear(Empty, "heartbeat", self._on_heartbeat, **qos.overridable(newest))
        self.create_service(SetBool, "~/enable", self._enable)
        self.create_service(SetBool, "~/take_over", self._take_over)
        self.add_on_set_parameters_callback(self._refuse_speed)
        # Steady: where simulated time stands still, the watchdogs must not.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(STATUS_PERIOD, self._report, clock=self._steady)

    def _declare_parts(self) -> dict[str, type[Output]]:
        """Declares the parameters of each part; returns their outputs. Empty: it has no parts."""
        self.declare_more(PartsConfig, read_only=True)
        names = [name for name in self.value("parts") if name]
        if len(set(names)) < len(names) or not all(map(NAME.fullmatch, names)):
            raise VlaError(
                f"parameter 'parts' is {names}", "name each part once, in letters, digits and _"
            )
        kinds = {}
        for name in names:
            self.declare_more(OutputConfig, prefix=f"{name}.", read_only=True)
            kinds[name] = kind = output_of_part(name, self.value(f"{name}.output"))
            self.declare_more(PART_CONFIGS[kind.drives], kind.PART_CONFIG, prefix=f"{name}.")
        return kinds

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._settings = read_settings(self.value, by_parts=bool(self._kinds))
        self._frames = read_frames(self.value)
        self._lock_step = self.value("lock_step")
        if self._lock_step and not self.value("use_sim_time"):
            raise VlaError("lock_step without use_sim_time", "set both, or neither")
        self._parts = {setup.name: setup for setup in self._set_up()}
        used = {"action": True, "heartbeat": bool(self._settings.watchdogs.heartbeat)}
        self._alone = {self.resolve_topic_name(topic): 1 for topic, on in used.items() if on}
        for setup in self._parts.values():
            if setup.topic:
                self._alone[self.resolve_topic_name(setup.topic)] = setup.publishers

    def _set_up(self) -> list[PartSetup]:
        if not self._kinds:
            settings, frame = self._settings, self._frames.base
            self._outputs[""] = Outputs(self, self.value, chosen(MOTION, self.value))
            topic = "current_pose" if settings.needs_pose else ""
            make = partial(EefPart, "", settings)
            return [PartSetup("", make, topic=topic, frame=frame)]
        setups = []
        for name, kind in self._kinds.items():
            value = value_of_part(self.value, name)
            setups.append(set_up(name, kind, self._settings, value))
            self._outputs[name] = Outputs(self, value, [kind], name)
        return setups

    def _make_commander(self) -> RobotCommander:
        check = None if self._kinds else check_chunk
        setups = self._parts.values()
        return RobotCommander(self._settings, lambda s: [part.make(s) for part in setups], check)

    def do_activate(self) -> None:
        self.commander = self._make_commander()
        self._sent, self._watch = 0, RateMeter()
        self._remark, self._measured = "", {}
        self._tell_limits()
        self._changes = 0
        self._tell_source(self._now())
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
                self._send(commander.halt(self._steadily()))
            finally:  # an output that fails must not keep a gripper moving
                self._each(lambda outputs: outputs.stop())
                # The process may end right after this, and what is under way with it.
                self._each(lambda outputs: outputs.flush(FAREWELL))

    def do_cleanup(self) -> None:
        outputs, self._outputs = list(self._outputs.values()), {}
        for each in outputs:
            each.close()

    def _tell_limits(self) -> None:
        told = {name: outputs.told() for name, outputs in self._outputs.items()}
        parts = [
            ": ".join(filter(None, (name, self._parts[name].told, told[name])))
            for name in self._kinds
        ]
        enable = self.resolve_service_name("~/enable")
        limits = limits_in_force(
            self._settings, self._frames, ", ".join(told.values()), enable, parts
        )
        self.get_logger().info(limits)

    def state_changed(self) -> None:
        self._publish_status()

    # -- what comes in ------------------------------------------------------------------------

    def _now(self) -> float:
        return 1e-9 * self.get_clock().now().nanoseconds

    def _steadily(self) -> float:
        """The clock of the watchdogs: steady time, or simulated time in lock step."""
        return self._now() if self._lock_step else time.monotonic()

    def _on_chunk(self, source: str, msg: ActionChunk) -> None:
        if self.commander is None:
            return
        now = self._now()
        try:
            stamp = stamp_seconds(msg.header.stamp, "the chunk")
            chunk = msg_to_chunk(msg)
            if not stamp:
                raise VlaError("the chunk has no stamp", "give it that of its image")
        except VlaError as error:
            self.commander.bad_chunk(str(error), now, source)
        else:
            player = self.commander.player
            before = player.late
            self.commander.accept(chunk, stamp, now, self._steadily(), source)
            if source == MODEL:
                self._remark = LATE if player.late > before else ""
        self._tell_changes()

    def _on_pose(self, name: str, msg: PoseStamped) -> None:
        if self.commander is None:
            return
        frame, base = msg.header.frame_id, self._parts[name].frame
        part = self.commander.parts[name]
        assert isinstance(part, EefPart)

        def take() -> str:
            if frame != base:
                raise VlaError(
                    f"current_pose is in frame {frame!r}, not {base!r}",
                    "set base_frame, or have the pose published in it",
                )
            stamp, now = stamp_seconds(msg.header.stamp, "current_pose"), self._now()
            return part.measured(msg_to_pose(msg), stamp, now, self._steadily())

        self._take_measurement(name, take)

    def _on_joints(self, name: str, msg: JointState) -> None:
        if self.commander is None:
            return
        part = self.commander.parts[name]
        assert isinstance(part, JointPart)

        def take() -> str:
            stamp, now = stamp_seconds(msg.header.stamp, "joint_states"), self._now()
            where = list(msg.position)
            return part.measured(list(msg.name), where, stamp, now, self._steadily())

        self._take_measurement(name, take)

    def _on_scan(self, name: str, msg: LaserScan) -> None:
        if self.commander is None:
            return
        part = self.commander.parts[name]
        clearance = part.clearance if isinstance(part, BasePart) else None
        if clearance is None:
            return

        def take() -> str:
            stamp, now = stamp_seconds(msg.header.stamp, "the scan"), self._now()
            angles = msg.angle_min, msg.angle_increment, msg.angle_max
            scan = Scan.read(*angles, msg.ranges, msg.range_min)
            return clearance.measured(scan, stamp, now, self._steadily())

        self._take_measurement(name, take)

    def _take_measurement(self, name: str, take: Callable[[], str]) -> None:
        """take: returns why it is refused, if it is."""
        try:
            remark = take()
        except VlaError as error:
            remark = str(error)
        self._measured[name] = remark
        if remark:  # without usable measurements the watchdog stops the robot
            about = f"{name}: {remark}" if name else remark
            self._tell_refusal(about)

    def _tell_refusal(self, about: str) -> None:
        """A warning, unless a simulation has moved its disabled robot, as it does at a reset."""
        enabled = self.commander is not None and self.commander.safety.enabled
        if enabled or not self.value("use_sim_time"):
            self.get_logger().warning(about, throttle_duration_sec=5.0)

    def _on_heartbeat(self, msg: Empty) -> None:
        if self.commander is not None:
            self.commander.safety.heartbeat(self._steadily())

    def _refuse_speed(self, changed: Sequence[Parameter]) -> SetParametersResult:
        enabled = self.commander is not None and self.commander.safety.enabled
        refused = enabled and any(p.name == "speed" for p in changed)
        reason = "the robot is enabled; disable it, then change its speed" if refused else ""
        return SetParametersResult(successful=not refused, reason=reason)

    def _follow_speed(self) -> None:
        """Puts the parameter `speed` into force."""
        commander, scale = self.commander, self.value("scale") * self.value("speed")
        if commander is None or commander.safety.enabled or commander.scale == scale:
            return
        commander.rescale(scale)
        self.get_logger().info(f"from now on {scale:g} of the model's motion")

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        commander = self.commander
        if commander is None:
            response.success = not request.data
            response.message = "the node is not active; configure and activate it first"
            return response
        if request.data:
            self._follow_speed()
            missing = (outputs.missing() for outputs in self._outputs.values())
            response.message = next(filter(None, missing), "") or commander.enable(
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

    def _take_over(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if self.commander is None:
            response.success = False
            response.message = "the node is not active; configure and activate it first"
            return response
        response.message = self._other_people() if request.data else ""
        response.success = not response.message
        if response.success:
            self.commander.take_over(request.data, self._now(), self._steadily())
        self._tell_changes()
        return response

    def callback_failed(self, where: str, reason: str) -> None:
        """A node with a failed callback must not move a robot: stops and halts at once."""
        commander = self.commander
        if commander is None or not commander.safety.enabled:
            return
        commander.safety.stop(FAULT, reason, self._now())
        # The fault may be the period's own: then it tells nothing any more.
        self._send(commander.halt(self._steadily()))
        self._tell_changes()

    # -- what goes out ------------------------------------------------------------------------

    def _others(self) -> str:
        """Describes other nodes on our topics that should not be there; empty: none."""
        by_hand = self.commander is not None and self.commander.takeover.by_hand
        crowds = [self._crowd(topic, most) for topic, most in self._alone.items()]
        crowds += [self._other_people()] if by_hand else []
        commands = [who for outputs in self._outputs.values() for who in outputs.others()]
        return ", ".join([*commands, *filter(None, crowds)])

    def _other_people(self) -> str:
        return self._crowd(self.resolve_topic_name(HUMAN_ACTION), 1)

    def _crowd(self, topic: str, most: int) -> str:
        """Says how many publish on a topic beyond `most`; empty: none."""
        n = self.count_publishers(topic) - most
        return f"{n} more publish on {topic}" if n > 0 else ""

    def _tick(self) -> None:
        if self.commander is None:
            return
        self._ask_outputs(self.commander.safety)
        commands = self.commander.tick(self._now(), self._steadily(), self._others())
        live = {name: command for name, command in commands.items() if command.live}
        if live:
            self._send(live)
        if not self.commander.safety.enabled:
            self._each(lambda outputs: outputs.stop())
        self._tell_changes()

    def _ask_outputs(self, safety: Safety) -> None:
        """Stops the robot where a controller does not execute what it is sent."""
        faults = (outputs.fault() for outputs in self._outputs.values())
        if safety.enabled and (fault := next(filter(None, faults), "")):
            safety.stop(CONTROLLER, fault, self._now())

    def _send(self, commands: Mapping[str, Any]) -> None:
        if self.commander is not None:
            arms = self.commander.parts.items()
            self._in_tool = {n: a.in_tool for n, a in arms if isinstance(a, EefPart)}
        stamp = self.get_clock().now().to_msg()
        each_of(
            lambda name: self._outputs[name].send(
                commands[name], stamp, self._in_tool.get(name, False)
            ),
            list(commands),
        )
        self._sent += 1
        self._watch.add(0.0, time.monotonic())

    def _each(self, call: Callable[[Outputs], None]) -> None:
        each_of(call, list(self._outputs.values()))

    def _remarks(self) -> str:
        outputs = (outputs.remark for outputs in self._outputs.values())
        remarks = (self._remark, *self._measured.values(), *outputs)
        return next(filter(None, remarks), "")

    # -- status -------------------------------------------------------------------------------

    def _tell_changes(self) -> None:
        """Publishes the status at once if the state has changed."""
        if self.commander is None:
            return
        safety, takeover = self.commander.safety, self.commander.takeover
        seen = safety.state, safety.last_stop, safety.refusals.total(), takeover.told
        if seen == self._told:
            return
        stopped = self._told is None or safety.last_stop is not self._told[1]
        self._told = seen
        if stopped and safety.last_stop is not None:
            self.get_logger().error(f"stopped: {safety.last_stop.reason}")
        if takeover.since is not None and takeover.changes != self._changes:
            self._changes = takeover.changes
            self._tell_source(takeover.since)
        self._publish_status()

    def _tell_source(self, since: float) -> None:
        assert self.commander is not None
        msg = CommandSource(source=self.commander.takeover.source, sequence=self._sequence)
        msg.header.stamp = Time(nanoseconds=max(0, round(1e9 * since))).to_msg()
        self._sources.publish(msg)
        self._sequence += 1
        if self._changes:
            who = "a person" if msg.source == HUMAN else "the model"
            self.get_logger().info(f"{who} commands the robot from now on")

    def _report(self) -> None:
        self._follow_speed()
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
