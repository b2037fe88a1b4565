"""Chunks in, commands out: player, limits, safety and targets, put together.

Call `accept` for every chunk and `tick` once per command period. What `tick` returns is to be
sent at once; None is silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_inference.control import vectors as v
from vla_inference.control.chunk_player import ChunkPlayer, History, Motion, Step, planned
from vla_inference.control.commands import Gripper, Pose, Target, chunk_velocities
from vla_inference.control.limits import ANGULAR, LINEAR, Ramp, SafetyLimits
from vla_inference.control.safety import STOPPED, Distribution, Safety, Watchdogs
from vla_inference.control.vectors import Vector
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk

ZEROS = 2  # how many times a halt is told, lest one gets lost


@dataclass(frozen=True)
class Settings:
    """rate: commands per second [Hz]. scale: share of the model's motion, 0 < scale <= 1.

    deltas_in: axes of the deltas, "base" or "tool"; empty: "tool" where the chunk's frame is
        called so, else "base".
    stretch: how many times as long each step takes, its motion as much slower; at least 1. What a
        slow model's chunk needs to last until the next one.
    catch_up: seconds over which a chunk makes up for what it wanted to be done between its picture
        and its arrival and was not; 0: it isn't. Else the corrections that a slow model sees a
        need for lie in steps that are always dropped. About as long as an answer takes:
        over twice that commands swing less, and the arm follows what the model saw later.
    drift: of the target from the measured pose [m, rad]; 0 m: targets always start there.
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
    gripper_hysteresis: float = 0.1
    needs_pose: bool = False
    limits: SafetyLimits = field(default_factory=SafetyLimits)
    watchdogs: Watchdogs = field(default_factory=Watchdogs)
    distribution: Distribution | None = None

    def __post_init__(self):
        if self.rate <= 0:
            raise VlaError(f"the command rate is {self.rate} Hz", "give one above 0")
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
    """The state between command periods. `now` and `steady`: see `Safety`."""

    def __init__(self, settings: Settings | None = None):
        self.settings = s = settings or Settings()
        self.period = 1.0 / s.rate
        self.safety = Safety(s.watchdogs, s.distribution, s.needs_pose)
        self.player = ChunkPlayer(s.execute_steps, s.align, s.ensemble, s.blend)
        self.target = Target(s.drift)
        self.gripper = Gripper(s.gripper_hysteresis)
        limits = s.limits
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
        self.picture_stamp: float | None = None
        self.chunks = 0
        self._in_tool: bool | None = None  # whose axes the deltas are in: known by a chunk
        self._history = History()
        self._window: float | None = None  # where the next command period begins
        self._live = False  # whether the last command may have moved the robot
        self._halts = 0  # how many more times to tell a halt after a stop
        self._hold: Pose | None = None  # the target of these
        self._zeros = 0  # the same after the end of a motion
        self._last_now: float | None = None

    @property
    def in_tool(self) -> bool:
        """Whether commands are in the axes of the tool rather than the base."""
        return bool(self._in_tool)

    # -- by hand ------------------------------------------------------------------------------

    def enable(self, steady: float, others: int = 0) -> str:
        """Let it move, from here and on chunks still to come; returns why that is refused."""
        if self.safety.enabled:
            return ""
        refused = self.safety.enable(steady, others)
        if not refused:
            self._standstill()
            self.gripper.state = self._in_tool = None
            self._live, self._halts, self._zeros = True, 0, 0
        return refused

    def disable(self) -> None:
        """Back to the dry run; the next two periods tell a halt."""
        self.safety.disable()

    # -- what comes in ------------------------------------------------------------------------

    def measured(self, pose: Pose, steady: float) -> None:
        self.target.measured = pose
        self.safety.pose(steady)

    def accept(self, chunk: ActionChunk, stamp: float, now: float, steady: float) -> bool:
        """A chunk that answers the picture of `stamp` [s, by `now`'s clock]."""
        if not self.safety.accepts(chunk, stamp, now, steady):
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
            (self.scale / stretch * velocities).tolist(), grippers.tolist(), strict=True
        ):
            linear, angular, clips = self.settings.limits.clip_step((x, y, z), (rx, ry, rz), dt)
            self.safety.clip(clips)
            steps.append((linear, angular, gripper))
        self.chunks += 1
        self.picture_stamp = stamp
        begin = self._next_begin(now)
        extra, end = self._made_up_for(stamp, dt, steps, begin)
        return self.player.accept(stamp, dt, steps, begin, extra, end)

    def _made_up_for(
        self, stamp: float, dt: float, steps: list[Step], begin: float
    ) -> tuple[tuple[Vector, Vector], float]:
        """Velocities beyond the chunk's own, and until when."""
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
        """A message that is no chunk."""
        self.safety.bad_chunk(reason, now)

    # -- what goes out ------------------------------------------------------------------------

    def tick(self, now: float, steady: float, others: int = 0) -> Command | None:
        """A command period begins; what to send, or None for silence."""
        back = self._last_now - now if self._last_now is not None else 0.0
        if back > self.settings.watchdogs.clock_jump:
            # The clock may have begun anew: then its stamps are new ones too.
            self.player.restart()
        self._last_now = now
        begin = self._next_begin(now)
        self._window = begin + self.period
        motion = self.player.motion(begin, self._window)
        going = self.safety.tick(now, steady, others, motion.stamp if motion else None)
        if self._live and not going:
            self._live, self._halts, self._hold = False, ZEROS, self.pose_to_hold(steady)
            self._standstill()
        if self._halts:
            self._halts -= 1
            return Command(target=self._hold)
        if self.safety.state == STOPPED:
            return None
        command = self._move(motion)
        if command is not None and command.live:
            self._history.add(begin, self._window, command.linear, command.angular)
        return command

    def pose_to_hold(self, steady: float) -> Pose | None:
        """Where the robot is, not where it should have got to; where that isn't known any more,
        what it was told last: an old pose would drive it back."""
        return self.target.measured if self.safety.knows_pose(steady) else self.target.pose

    def _next_begin(self, now: float) -> float:
        """Periods follow each other without gaps while `tick` is called roughly in time."""
        begin = self._window
        return now if begin is None or abs(begin - now) > 1.5 * self.period else begin

    def _standstill(self) -> None:
        self.player.clear()
        self._linear.reset()
        self._angular.reset()
        self.target.anchor()

    def _move(self, motion: Motion | None) -> Command | None:
        if self._live:
            clips = self.target.check()
            if self.settings.limits.workspace:
                self.target.confine(*self.settings.limits.workspace)
        else:  # nobody follows the target
            self.target.anchor()
            clips = set()
        linear, more = self._linear.follow(motion.linear if motion else v.ZERO)
        clips |= more
        angular, more = self._angular.follow(motion.angular if motion else v.ZERO)
        clips |= more
        linear, more = self._into_workspace(linear)
        if more:
            self._linear.override(linear)
        clips |= more
        if motion is None and not any(linear) and not any(angular):
            if not self._zeros:
                return None
            self._zeros -= 1
        else:
            self._zeros = ZEROS
        if self.target.pose is not None:
            self.target.pose = self.target.pose.moved(
                linear, angular, self.period, bool(self._in_tool)
            )
        self.safety.clip(clips)
        gripper = None
        if motion is not None and motion.gripper is not None:
            gripper = self.gripper.follow(motion.gripper)
        pose = self.target.pose
        return Command(linear, angular, pose, gripper, self._live, frozenset(clips))

    def _into_workspace(self, linear: Vector) -> tuple[Vector, set]:
        limits, target = self.settings.limits, self.target
        if limits.workspace is None or target.pose is None or target.measured is None:
            return linear, set()
        positions = [target.pose.position, target.measured.position]
        if not self._in_tool:
            return limits.clip_to_workspace(linear, positions, self.period)
        turn = target.pose.orientation
        inside, clips = limits.clip_to_workspace(v.rotate(turn, linear), positions, self.period)
        return (v.rotate(v.conjugate(turn), inside), clips) if clips else (linear, clips)
