"""The command core: action chunks in, commands out, through player, limits and safety.

Call `accept` for every chunk and `tick` once per command period. What `tick` returns is to be
sent at once; None is silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vla_inference.control import vectors as v
from vla_inference.control.chunk_player import ChunkPlayer, History, Motion, Step, planned
from vla_inference.control.commands import DRIFT, Gripper, Pose, Target, chunk_velocities
from vla_inference.control.limits import ANGULAR, LINEAR, Ramp, SafetyLimits
from vla_inference.control.measured import LAG, Measured, PoseBounds, Sent
from vla_inference.control.safety import (
    NOT_FOLLOWING,
    POSE_FROZEN,
    STOPPED,
    Distribution,
    Safety,
    Watchdogs,
)
from vla_inference.control.stamps import Stamps
from vla_inference.control.vectors import Vector
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk

ZEROS = 2  # how often a halt is sent, in case one gets lost
AGREED = 0.5  # s without a refused pose before a measured place is one to begin from


@dataclass(frozen=True)
class Settings:
    """rate: commands per second [Hz]. scale: share of the model's motion, 0 < scale <= 1.

    deltas_in: axes of the deltas, "base" or "tool"; empty: "tool" where the chunk's frame is
        called so, else "base".
    stretch: how many times as long each step takes, its motion as much slower; at least 1. What a
        slow model's chunk needs to last until the next one.
    catch_up: seconds over which a chunk makes up for what it wanted to be done between its image
        and its arrival and was not; 0: it isn't. Else the corrections that a slow model sees a
        need for lie in steps that are always dropped. About as long as an answer takes:
        over twice that commands swing less, and the arm follows what the model saw later.
    drift: of the target from the measured pose [m, rad]; 0 m: targets always start there.
    pose_jump: of a measured pose from where the robot can have got to [m, rad].
    needs_pose: whether commands need a measured pose: for target poses and a workspace.
    distribution: what the model was trained with; None: anything goes.
    The others are `ChunkPlayer`'s and `Gripper`'s.
    """

    rate: float = 20.0
    scale: float = 1.0
    deltas_in: str = ""
    execute_steps: int = 0
    align: str = "stamp"
    ensemble: float | None = None
    blend: float = 0.1
    stretch: float = 1.0
    catch_up: float = 0.0
    drift: tuple[float, float] = (0.05, 0.3)
    pose_jump: tuple[float, float] = (0.05, 0.3)
    gripper_hysteresis: float = 0.1
    needs_pose: bool = False
    limits: SafetyLimits = field(default_factory=SafetyLimits)
    watchdogs: Watchdogs = field(default_factory=Watchdogs)
    distribution: Distribution | None = None

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise VlaError(f"the command rate is {self.rate} Hz", "give one above 0")
        if 0 < self.watchdogs.late < 2 / self.rate:
            raise VlaError(
                f"commands at {self.rate:g} Hz are {1 / self.rate:g} s apart, and more than "
                f"{self.watchdogs.late:g} s counts as overload",
                "raise command_rate, or max_period to two periods at least",
            )
        if not 0 < self.scale <= 1:
            raise VlaError(f"scale is {self.scale}", "give a share, 0 < scale <= 1")
        if not 1 <= self.stretch <= 100:
            raise VlaError(f"stretch is {self.stretch}", "give 1 to 100; 1: as the model says")
        if not 0 <= self.catch_up <= 60:
            raise VlaError(f"catch_up is {self.catch_up}", "give 0 to 60 seconds; 0: off")
        if self.align not in ("stamp", "arrival"):
            raise VlaError(f"unknown align {self.align!r}", "use stamp or arrival")
        if self.deltas_in not in ("", "base", "tool"):
            raise VlaError(f"unknown deltas_in {self.deltas_in!r}", "use base, tool or nothing")
        if self.limits.workspace and not self.needs_pose:
            raise VlaError("a workspace without a measured pose", "set needs_pose")


@dataclass(frozen=True)
class Command:
    """linear [m/s] and angular [rad/s] in the axes of the deltas; both zero: halt.

    target: pose to be reached by the end of the period, where a pose is known.
    gripper: 1 open, 0 closed; None: nothing new.
    live: whether to send it; False in a dry run.
    """

    linear: Vector = v.ZERO
    angular: Vector = v.ZERO
    target: Pose | None = None
    gripper: float | None = None
    live: bool = True
    clips: frozenset[str] = frozenset()

    @property
    def moves(self) -> bool:
        return any(self.linear) or any(self.angular)


class Commander:
    """Turns chunks into one command per period. `now` and `steady`: see `Safety`."""

    def __init__(self, settings: Settings | None = None):
        self.settings = s = settings or Settings()
        self.period = 1.0 / s.rate
        self.safety = Safety(s.watchdogs, s.distribution, s.needs_pose)
        self.player = ChunkPlayer(s.execute_steps, s.align, s.ensemble, s.blend)
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
        self.scale = s.scale
        self.image_stamp: float | None = None
        self.chunks = 0
        self._in_tool: bool | None = None  # whose axes the deltas are in: known by a chunk
        self._history = History()
        self._window: float | None = None  # where the next command period begins
        self._live = False  # whether the last command may have moved the robot
        self._halts = 0  # how many more times to tell a halt after a stop
        self._hold: Pose | None = None  # the target of these
        self._told: Pose | None = None  # the last target that was sent, or begun from since
        self._sent: tuple[float, Vector, Vector] | None = None  # steady; velocities, base axes
        self._unsure = 0.0  # by how much these may be turned as they are carried out [rad]
        self._zeros = 0  # the same after the end of a motion
        self._last_now: float | None = None
        self._stamps = Stamps()
        self._refused = -math.inf, ""  # steady time of the last pose that was, and why

    @property
    def in_tool(self) -> bool:
        """Whether commands are in the axes of the tool rather than the base."""
        return bool(self._in_tool)

    # -- by hand ------------------------------------------------------------------------------

    def enable(self, steady: float, others: str = "") -> str:
        """Allows motion from now on, with chunks still to come; returns the reason if refused."""
        if self.safety.enabled:
            return ""
        refused = self._disputed(steady) or self.safety.enable(steady, others)
        if not refused:
            self._last_command_ends(steady)
            self.robot.enabled()
            self._standstill()
            self._told = self.target.pose  # what was sent before may be far from here by now
            self.gripper.state = self._in_tool = None
            self._live, self._halts, self._zeros = True, 0, 0
        return refused

    def _disputed(self, steady: float) -> str:
        """Why it isn't clear where the robot is; empty: it is, or nobody needs to know.

        Of two sources that contradict each other the last one heard is not the right one.
        """
        if not self.settings.needs_pose:
            return ""
        at, reason = self._refused
        return self.robot.disputed or (reason if steady - at <= AGREED else "")

    def disable(self) -> None:
        """Back to the dry run; the next two periods command a halt."""
        self.safety.disable()

    # -- what comes in ------------------------------------------------------------------------

    def measured(self, pose: Pose, stamp: float, now: float, steady: float) -> str:
        """Takes a pose measured at `stamp` [s, by `now`'s clock]; returns why it is refused, if
        it is."""
        self._stamps.see(now, steady)
        taken = self._stamps.when(stamp)
        refusal = self.robot.hear(pose, stamp, now, taken, self.safety.enabled)
        self.safety.pose(self.robot.at)
        if refusal:
            self._refused = steady, refusal[1]
        return refusal[1] if refusal else ""

    def accept(self, chunk: ActionChunk, stamp: float, now: float, steady: float) -> bool:
        """Takes a chunk for the image of `stamp` [s, by `now`'s clock]."""
        if not self.safety.accepts(chunk, stamp, now):
            return False
        in_tool = (self.settings.deltas_in or chunk.spec.frame.lstrip("/")) == "tool"
        if self._in_tool not in (None, in_tool):
            self.bad_chunk(
                f"the deltas' frame has become {chunk.spec.frame!r}; restart with one model", now
            )
            return False
        self._in_tool = in_tool
        velocities, grippers = chunk_velocities(chunk)
        stretch = self.settings.stretch
        dt, steps = stretch * chunk.spec.dt, []
        for (x, y, z, rx, ry, rz), gripper in zip(
            (self.scale / stretch * velocities).tolist(), grippers, strict=True
        ):
            linear, angular, clips = self.settings.limits.clip_step((x, y, z), (rx, ry, rz), dt)
            self.safety.clip(clips)
            steps.append((linear, angular, gripper))
        self.chunks += 1
        self.image_stamp = stamp
        begin = self._next_begin(now)
        extra, end = self._made_up_for(stamp, dt, steps, begin)
        if not self.player.accept(stamp, dt, steps, begin, extra, end):
            return False
        self.safety.fed(steady)
        return True

    def _made_up_for(
        self, stamp: float, dt: float, steps: list[Step], begin: float
    ) -> tuple[tuple[Vector, Vector], float]:
        """Velocities added to catch up, and until when."""
        time = self.settings.catch_up
        if not time or begin <= stamp or self.settings.align != "stamp" or len(steps) < 2:
            return (v.ZERO, v.ZERO), begin
        wanted, done = planned(dt, steps, begin - stamp), self._history.way(stamp, begin)
        linear, angular = (
            v.scale(v.subtract(a, b), 1 / time) for a, b in zip(wanted, done, strict=True)
        )
        linear, angular, clips = self.settings.limits.clip_step(linear, angular, dt)
        self.safety.clip(clips)
        return (linear, angular), begin + time

    def bad_chunk(self, reason: str, now: float) -> None:
        """Reports an invalid chunk message."""
        self.safety.bad_chunk(reason, now)

    # -- what goes out ------------------------------------------------------------------------

    def tick(self, now: float, steady: float, others: str = "") -> Command | None:
        """Starts a command period; returns the command, or None to send nothing.

        others: see `Safety.tick`.
        """
        self._last_command_ends(steady)
        self._stamps.see(now, steady)
        back = self._last_now - now if self._last_now is not None else 0.0
        if back > self.settings.watchdogs.clock_jump:
            # The clock may have restarted: then its stamps are new as well.
            self.player.restart()
        self._last_now = now
        begin = self._next_begin(now)
        self._window = begin + self.period
        motion = self.player.motion(begin, self._window)
        stamp = motion.stamp if motion else None
        going = self.safety.tick(now, steady, others, stamp, self._robots_fault())
        if self._live and not going:
            self._live, self._halts, self._hold = False, ZEROS, self.pose_to_hold(steady)
            self._told = self._hold
            self._standstill()
        if self._halts:
            self._halts -= 1
            return Command(target=self._hold)
        if self.safety.state == STOPPED:
            return None
        command = self._move(motion)
        if command is not None and command.live:
            self._history.add(begin, self._window, command.linear, command.angular)
            linear, angular = self._in_base(command.linear, command.angular)
            self._sent = steady, linear, angular
            self._told = command.target
        return command

    def _last_command_ends(self, steady: float) -> None:
        """Until when a controller continues the last command."""
        if self._sent is not None:
            begin, linear, angular = self._sent
            sure = begin + self.period
            self.robot.told(Sent(begin, steady, linear, angular, sure, self._unsure))
            self._sent = None

    def _robots_fault(self) -> tuple[str, str] | None:
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
        if measured is None or self.robot.doubtful or not self.safety.knows_pose(steady):
            return self._told
        return self.target.confine(measured)

    def _next_begin(self, now: float) -> float:
        """Start of the period; periods are contiguous while `tick` is called roughly on time."""
        begin = self._window
        return now if begin is None or abs(begin - now) > 1.5 * self.period else begin

    def _standstill(self) -> None:
        self.player.clear()
        self._linear.reset()
        self._angular.reset()
        # A robot that was not seen to go where it was told may well be there.
        here = self.robot.pose
        self.target.anchor(self._told or here if self.robot.unmoved else here)

    def _move(self, motion: Motion | None) -> Command | None:
        if self._live:
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
        if motion is None and not any(linear) and not any(angular):
            if not self._zeros:
                return None
            self._zeros -= 1
        else:
            self._zeros = ZEROS
        self.target.advance(linear, angular, self.period, self.in_tool)
        self.safety.clip(clips)
        gripper = None
        if motion is not None and motion.gripper is not None:
            gripper = self.gripper.follow(motion.gripper)
        pose = self.target.pose
        return Command(linear, angular, pose, gripper, self._live, frozenset(clips))

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
