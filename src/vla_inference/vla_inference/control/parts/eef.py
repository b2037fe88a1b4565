"""An end effector, with the gripper of a robot that has just one: deltas in, twist and target out.

The motion is limited in velocity, acceleration and jerk, and kept in the workspace. Where the pose
is measured, targets start there and wait for the robot.
"""

from __future__ import annotations

import math
from dataclasses import replace

from vla_inference.control import vectors as v
from vla_inference.control.commands import (
    DRIFT,
    Command,
    Gripper,
    Pose,
    Target,
    arm_and_gripper,
    chunk_velocities,
)
from vla_inference.control.limits import ANGULAR, LINEAR, Ramp
from vla_inference.control.measured import LAG, Measured, PoseBounds, Sent
from vla_inference.control.parts.base import Part
from vla_inference.control.players.chunk_player import ChunkPlayer, History, Motion, Step, planned
from vla_inference.control.players.pose_player import PosePlayer, approach, difference, pose_steps
from vla_inference.control.safety import NOT_FOLLOWING, POSE_FROZEN, Safety
from vla_inference.control.settings import Settings
from vla_inference.control.stamps import Stamps
from vla_inference.control.vectors import Vector
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec

THERE = 1e-4, 1e-3  # m, rad: a pose this near is reached
# Without a refused pose before a measured place is one to begin from: so long; or so many poses,
# where simulated time stands still until the robot is enabled.
AGREED, AGREED_POSES = 0.5, 10


class EefPart(Part[ChunkPlayer, Command]):
    """name: of the part; empty: the only arm of a chunk and its gripper, whatever their names."""

    kinds = ("eef_delta", "eef_pose")

    def __init__(self, name: str, settings: Settings, safety: Safety):
        super().__init__(name, safety, settings.player(ChunkPlayer))
        self.settings = s = settings
        self.period = s.period
        self.gripper = Gripper(s.gripper_hysteresis)
        limits = s.limits
        speed = limits.linear_velocity or math.inf, limits.angular_velocity or math.inf
        step = speed[0] * self.period, speed[1] * self.period
        self.target = Target(s.drift, step, limits.workspace)
        frozen = s.watchdogs.pose_frozen
        self.robot = Measured(PoseBounds(s.watchdogs.pose_age, s.pose_jump, speed, frozen))
        self._linear = Ramp(
            self.period,
            (limits.linear_velocity, limits.linear_acceleration, limits.linear_jerk),
            LINEAR,
        )
        self._angular = Ramp(
            self.period,
            (limits.angular_velocity, limits.angular_acceleration, limits.angular_jerk),
            ANGULAR,
        )
        self._poses = s.player(PosePlayer)
        self._goal: Pose | None = None  # a pose that is still to be reached
        self._goal_stamp = -math.inf  # of the image behind it
        if s.needs_pose:
            safety.needs_pose(name)
        self._in_tool: bool | None = None  # whose axes the deltas are in: known by a chunk
        self._handed_over = False  # whether the next chunk may have others
        self._history = History()
        self._hold: Pose | None = None  # the target of halts
        self._told: Pose | None = None  # the last target that was sent, or begun from since
        self._sent: tuple[float, Vector, Vector] | None = None  # steady; velocities, base axes
        self._unsure = 0.0  # by how much these may be turned as they are carried out [rad]
        self._motion: Motion | None = None  # of this period
        self._window = 0.0, 0.0
        self._steady = -math.inf
        self._stamps = Stamps()
        self._refused = -math.inf, ""  # steady time of the last pose that was, and why
        self._agreed = 0  # poses since

    @property
    def in_tool(self) -> bool:
        """Whether commands are in the axes of the tool rather than the base."""
        return bool(self._in_tool)

    # -- by hand ------------------------------------------------------------------------------

    def missing(self, steady: float) -> str:
        """Why it isn't clear where the robot is; empty: it is, or nobody needs to know.

        Of two sources that contradict each other the last one heard is not the right one.
        """
        if not self.settings.needs_pose:
            return ""
        at, reason = self._refused
        agreed = self._agreed >= AGREED_POSES if steady == at else steady - at > AGREED
        return self.robot.disputed or ("" if agreed else reason)

    def enabled(self, steady: float) -> None:
        self._last_command_ends(steady)
        self.robot.enabled()
        self._standstill()
        self._told = self.target.pose  # what was sent before may be far from here by now
        self.gripper.state = self._in_tool = None
        self._zeros = 0

    # -- what comes in ------------------------------------------------------------------------

    def measured(self, pose: Pose, stamp: float, now: float, steady: float) -> str:
        """Takes a pose measured at `stamp` [s, by `now`'s clock]; returns why it is refused, if
        it is."""
        self._stamps.see(now, steady)
        taken = self._stamps.when(stamp)
        refusal = self.robot.hear(pose, stamp, now, taken, self.safety.enabled)
        self.safety.pose(self.robot.at, self.name)
        self._agreed += 1
        if refusal:
            self._refused, self._agreed = (steady, refusal[1]), 0
        return refusal[1] if refusal else ""

    def check(self, spec: ActionSpec) -> None:
        frame = self._frame(spec)
        if self._wants_poses(spec) and not self.settings.needs_pose:
            raise VlaError(
                f"{self.name} is eef_pose and nobody measures where it is",
                "set its output to pose, or its workspace, and have current_pose published",
            )
        if self._wants_poses(spec) and self._tool_axes(frame):
            raise VlaError(f"{self.name} is eef_pose in frame {frame!r}", "give it in the base's")
        other_axes = self._in_tool not in (None, self._tool_axes(frame))
        if other_axes and not self._handed_over:
            raise VlaError(f"the deltas' frame has become {frame!r}", "restart with one model")

    def _frame(self, spec: ActionSpec) -> str:
        return (spec.part(self.name) if self.name else arm_and_gripper(spec)[0]).frame

    def _wants_poses(self, spec: ActionSpec) -> bool:
        return bool(self.name) and spec.part(self.name).kind == "eef_pose"

    def _tool_axes(self, frame: str) -> bool:
        return (self.settings.deltas_in or frame.lstrip("/")) == "tool"

    def accept(self, chunk: ActionChunk, stamp: float, begin: float, now: float) -> bool:
        if not self._turns_axes(self._tool_axes(self._frame(chunk.spec))):
            return False
        if self._wants_poses(chunk.spec):
            return self._accept_poses(chunk, stamp, begin)
        velocities, grippers = chunk_velocities(self._own(chunk))
        stretch, scale = self.player.play.stretch, self.settings.scale
        dt, steps = stretch * chunk.spec.dt, []
        for (x, y, z, rx, ry, rz), gripper in zip(
            (scale / stretch * velocities).tolist(), grippers, strict=True
        ):
            linear, angular, clips = self.settings.limits.clip_step((x, y, z), (rx, ry, rz), dt)
            self._clip(clips)
            steps.append((linear, angular, gripper))
        extra, end = self._made_up_for(stamp, dt, steps, begin)
        return self.player.accept(stamp, dt, steps, begin, extra, end)

    def _accept_poses(self, chunk: ActionChunk, stamp: float, begin: float) -> bool:
        here = self.target.pose or self.robot.pose
        if here is None:  # a dry run whose poses are not measured yet
            return False
        part, dt = chunk.spec.part(self.name), self._poses.play.stretch * chunk.spec.dt
        steps = pose_steps(here, self._rows(chunk), part.rotation)
        return self._poses.accept(stamp, dt, steps, begin)

    def _own(self, chunk: ActionChunk) -> ActionChunk:
        if not self.name:
            return chunk
        spec = replace(chunk.spec, parts=(chunk.spec.part(self.name),))
        return ActionChunk(chunk.actions[:, chunk.spec.slice(self.name)], spec)

    def _made_up_for(
        self, stamp: float, dt: float, steps: list[Step], begin: float
    ) -> tuple[tuple[Vector, Vector], float]:
        """Velocities added to catch up, and until when."""
        time, align = self.player.play.catch_up, self.player.play.align
        if not time or begin <= stamp or align != "stamp" or len(steps) < 2:
            return (v.ZERO, v.ZERO), begin
        wanted, done = planned(dt, steps, begin - stamp), self._history.way(stamp, begin)
        linear, angular = (
            v.scale(v.subtract(a, b), 1 / time) for a, b in zip(wanted, done, strict=True)
        )
        linear, angular, clips = self.settings.limits.clip_step(linear, angular, dt)
        self._clip(clips)
        return (linear, angular), begin + time

    def drop(self) -> None:
        super().drop()
        self._poses.clear()
        self._goal = None

    def hand_over(self, by_hand: bool, since: float) -> None:
        super().hand_over(by_hand, since)
        self._poses.begin_anew(self.player.play, since)
        self._handed_over = True

    def _turns_axes(self, in_tool: bool) -> bool:
        """Has deltas in these axes from now on; returns whether they can be.

        A motion under way can only be turned into others where it is known how the tool is turned.
        """
        turn, moves = self.robot.pose, self._in_motion
        other = self._in_tool not in (None, in_tool)
        if other and moves and turn is None:
            return False  # until it stands
        if other:
            self._history = History()
        if other and turn is not None:
            q = v.conjugate(turn.orientation) if in_tool else turn.orientation
            for ramp in (self._linear, self._angular):
                ramp.velocity = v.rotate(q, ramp.velocity)
                ramp.acceleration = v.rotate(q, ramp.acceleration)
        self._in_tool, self._handed_over = in_tool, False
        return True

    # -- what goes out ------------------------------------------------------------------------

    def begins(self, now: float, steady: float, begin: float, end: float) -> float | None:
        self._last_command_ends(steady)
        self._stamps.see(now, steady)
        self._motion = self.player.motion(begin, end) or self._towards_pose(begin, end)
        self._window, self._steady = (begin, end), steady
        return self._motion.stamp if self._motion else None

    def restart(self) -> None:
        super().restart()
        self._poses.restart()

    def _towards_pose(self, begin: float, end: float) -> Motion | None:
        """The motion that leads to the pose wanted at the end of this period."""
        motion, here = self._poses.motion(begin, end), self.target.pose
        self._goal = motion.pose if motion else self._goal
        if here is None or self._goal is None:
            return None
        ways, limits = difference(here, self._goal), self.settings.limits
        if motion is None and v.norm(ways[0]) < THERE[0] and v.norm(ways[1]) < THERE[1]:
            self._goal = None
            return None
        going = (motion.linear, motion.angular) if motion else (v.ZERO, v.ZERO)
        stamp = self._goal_stamp = motion.stamp if motion else self._goal_stamp
        wanted = []
        for way, on, kind in zip(ways, going, ("linear", "angular"), strict=True):
            bounds = [
                getattr(limits, f"{kind}_{what}") for what in ("velocity", "acceleration", "jerk")
            ]
            speed = approach(way, on, self.period, bounds)
            top = self.settings.scale * bounds[0]
            wanted.append(v.shorten(speed, top) if top else speed)
        return Motion(wanted[0], wanted[1], None, stamp)

    def halts(self, steady: float) -> None:
        self._hold = self._told = self.pose_to_hold(steady)
        self._standstill()

    def halted(self) -> Command:
        return Command(target=self._hold)

    def move(self, live: bool) -> Command | None:
        command = self._move(self._motion, live)
        if command is not None and live:
            self._history.add(*self._window, command.linear, command.angular)
            linear, angular = self._in_base(command.linear, command.angular)
            self._sent = self._steady, linear, angular
            self._told = command.target
        return command

    def _last_command_ends(self, steady: float) -> None:
        """Until when a controller continues the last command."""
        if self._sent is not None:
            begin, linear, angular = self._sent
            sure = begin + self.period
            self.robot.told(Sent(begin, steady, linear, angular, sure, self._unsure))
            self._sent = None

    def fault(self, steady: float) -> tuple[str, str] | None:
        if not self.settings.needs_pose:
            return None
        for kind, reason in (
            (POSE_FROZEN, self.robot.frozen()),
            (NOT_FOLLOWING, self.robot.not_following(self.settings.drift)),
        ):
            if reason:
                return kind, reason
        return None

    def _in_base(self, *vectors: Vector) -> tuple[Vector, ...]:
        pose = self.robot.pose
        if pose is None or not self._in_tool:
            return vectors
        return tuple(v.rotate(pose.orientation, a) for a in vectors)

    def pose_to_hold(self, steady: float) -> Pose | None:
        """Where the robot is, not where it should have got to; where there is doubt about it,
        the last target that was sent since it was enabled, or where it was then: an old or a
        wrong pose would drive it there. None: no pose is known, so the robot stays by itself."""
        measured = self.robot.pose
        if (
            measured is None
            or self.robot.doubtful
            or not self.safety.knows_pose(steady, self.name)
        ):
            return self._told
        return self.target.confine(measured)

    def _standstill(self) -> None:
        self.drop()
        self._linear.reset()
        self._angular.reset()
        # A robot that was not seen to go where it was told may well be there.
        here = self.robot.pose
        self.target.anchor(self._told or here if self.robot.unmoved else here)

    def _move(self, motion: Motion | None, live: bool) -> Command | None:
        if live and self.holds and motion is None and not self._in_motion:
            self.target.stay()  # or it would go with a robot that sags
            self.robot.behind(False)
            clips = set()
        elif live:
            clips = self.target.follow(self.robot.pose)
            self.robot.behind(DRIFT in clips)
        else:  # nobody follows the target
            self.target.anchor(self.robot.pose)
            clips = set()
        linear, more = self._linear.follow(motion.linear if motion else v.ZERO)
        clips |= more
        angular, more = self._angular.follow(motion.angular if motion else v.ZERO)
        clips |= more
        linear, more = self._into_workspace(linear, angular)
        if more:
            self._linear.override(linear)
        clips |= more
        if self._silent(motion is not None or any(linear) or any(angular)):
            return None
        self.target.advance(linear, angular, self.period, self.in_tool)
        self._clip(clips)
        gripper = None
        if motion is not None and motion.gripper is not None:
            gripper = self.gripper.follow(motion.gripper)
        pose = self.target.pose
        return Command(linear, angular, pose, gripper, live, frozenset(clips))

    @property
    def _in_motion(self) -> bool:
        """Whether the last command was a motion."""
        return any(self._linear.velocity) or any(self._angular.velocity)

    def _into_workspace(self, linear: Vector, angular: Vector) -> tuple[Vector, set]:
        """Keeps both the target and the estimated robot position inside the workspace."""
        limits, target, measured = self.settings.limits, self.target.pose, self.robot.pose
        reckoned = self.robot.reckoned()
        if limits.workspace is None or target is None or measured is None or reckoned is None:
            return linear, set()
        positions = [target.position, measured.position, *reckoned[0]]
        self._unsure, time = 0.0, self.period + LAG[0]  # the next command may be late
        if not self._in_tool:
            return limits.clip_to_workspace(linear, positions, time)
        # The controller takes them in the tool's real axes: somewhere between these two, or as
        # far away from what was measured as it has been told to turn since and in this period.
        between = v.angle_between(target.orientation, measured.orientation)
        self._unsure = max(between, reckoned[1]) + v.norm(angular) * self.period
        turn = measured.orientation
        inside, clips = limits.clip_to_workspace(
            v.rotate(turn, linear), positions, time, self._unsure
        )
        return (v.rotate(v.conjugate(turn), inside), clips) if clips else (linear, clips)
