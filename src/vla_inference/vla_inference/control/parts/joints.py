"""Joints: positions, changes of position or velocities in, limited joint targets out.

Positions, velocities, accelerations and jerks of each joint are limited. Motion begins where the
joints are measured and waits for them; measurements that stop, freeze, jump or contradict each
other stop the robot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vla_inference.control.axis import Axis, AxisLimits
from vla_inference.control.joint_states import JointStates
from vla_inference.control.parts.base import Part
from vla_inference.control.parts.told import KEEP, NOWHERE, Told, Way
from vla_inference.control.players.joint_player import (
    JointMotion,
    JointPlayer,
    Joints,
    position_steps,
)
from vla_inference.control.safety import (
    JOINTS_FROZEN,
    JOINTS_LOST,
    NOT_FOLLOWING,
    Safety,
)
from vla_inference.control.settings import Settings
from vla_inference.control.stamps import Stamps
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionPart, ActionSpec

DRIFT = "joint_drift"  # kind of clip: the command was kept from running away from the joint
RESOLUTION = 0.005  # rad, m: a position within this is the same one with noise
THERE = 0.001  # rad, m: a joint driven by velocity that is this near has got there
LATE = 3.0  # command periods for which a joint may go on at its velocity, unheard
TOLD = 0.03  # rad, m: after this much commanded motion a change would be visible
GAIN = 0.2  # share of a measured error that a reckoned position takes over, by sample
NEAR = 0.95  # of the drift: so far ahead a command waits
HELD = 0.3  # rad, m: the drift of a joint driven by velocity where none is set
WAIT = 1.0  # s for which a joint that is held up is waited for


@dataclass(frozen=True)
class JointSettings:
    """names: of the robot's joints, in the order of the chunk's numbers; limits: of each.

    drift: how far ahead of the measured joint its command may be [rad, m]; then it waits. With 0
        every command starts at the measured joint, as deltas do that were recorded so
        (robosuite's).
    jump: by which a measured joint may be farther than it can have got to [rad, m].
    fastest: how fast each joint can be moved, by whatever [rad/s, m/s]; infinite: unknown.
    by_velocity: whether the output sends velocities, so that positions are reckoned.
    """

    names: tuple[str, ...]
    limits: tuple[AxisLimits, ...]
    drift: tuple[float, ...]
    jump: float = 0.1
    fastest: tuple[float, ...] = ()
    by_velocity: bool = False

    def __post_init__(self) -> None:
        for what in (self.limits, self.drift):
            if len(what) != len(self.names):
                raise VlaError(
                    f"{len(what)} limits for {len(self.names)} joints", "give one for each"
                )
        if not self.names or len(set(self.names)) < len(self.names):
            raise VlaError(f"joints are {', '.join(self.names) or 'none'}", "name each joint once")
        if not (all(d >= 0 for d in self.drift) and self.jump > 0):
            raise VlaError("a drift or jump is below 0", "give numbers above 0")


@dataclass(frozen=True)
class JointTargets:
    """positions [rad, m] at the end of the period; velocities [rad/s, m/s] in it; all zero at a
    halt. live: whether to send them; False in a dry run. ahead: positions of the periods that
    follow, up to a standstill; None where nothing is planned, or at a halt."""

    names: tuple[str, ...]
    positions: Joints
    velocities: Joints
    live: bool = True
    clips: frozenset[str] = frozenset()
    ahead: tuple[Joints, ...] | None = None

    @property
    def moves(self) -> bool:
        return any(self.velocities)


@dataclass
class Mark:
    """Where a joint was seen to be [rad, m].

    told: way that it had been told by then since it was enabled. owed: way that it was told after
        that and before it was enabled last, and not seen to go; so it may be there.
    """

    at: float
    told: Way
    owed: Way = NOWHERE


@dataclass
class Watch:
    """What is known of one joint by its measurements.

    value: measured last. marks: where it was last seen to have moved; before that the time before,
        if the last one may have been noise.
    same, way: commanded motion since the measured value last changed at all [s; rad, m].
    waits, since: for how long [s] its command has waited for it, and where it was at first.
    """

    value: float
    marks: list[Mark]
    same: float = 0.0
    way: float = 0.0
    waits: float = 0.0
    since: float = 0.0


class JointPart(Part[JointPlayer, JointTargets]):
    """`measured` takes joint states; the rest as in `Part`."""

    kinds = ("joint_position", "joint_delta", "joint_velocity")

    def __init__(self, name: str, settings: Settings, joints: JointSettings, safety: Safety):
        super().__init__(name, safety, settings.player(JointPlayer))
        self.settings, self.joints = settings, joints
        self.period = settings.period
        self.axes = self._new_axes()
        self.states, self._others = self._new_states(), self._new_states()
        self._stamps = Stamps()
        self._kind = ""  # of the chunks, once one was accepted since it was enabled
        self._motion: JointMotion | None = None
        self._goal: Joints | None = None  # positions that are still to be reached
        self._watches: list[Watch] = []
        self._told = Told([NOWHERE] * len(joints.names), self.period)
        self._steady = -math.inf  # when this period began
        self._spoke = False  # since it was enabled
        self._hold: JointTargets | None = None
        self._last: Joints | None = None  # positions that were sent last

    def _new_axes(self) -> list[Axis]:
        scale = self.settings.scale
        slower = [replace(a, velocity=scale * a.velocity) for a in self.joints.limits]
        return [Axis(limits, self.period) for limits in slower]

    def rescale(self, scale: float) -> None:
        super().rescale(scale)
        before, self.axes = self.axes, self._new_axes()
        if self.states.positions is not None:
            for axis, old in zip(self.axes, before, strict=True):
                axis.reset(old.position)

    def _new_states(self) -> JointStates:
        names, fastest = self.joints.names, self.joints.fastest
        timeout = self.settings.watchdogs.pose_age or math.inf
        reach = np.array(fastest or [math.inf] * len(names))
        return JointStates(names, reach, np.full(len(names), self.joints.jump), timeout)

    # -- by hand ------------------------------------------------------------------------------

    def missing(self, steady: float) -> str:
        # Of two sources that contradict each other the last one heard is not the right one.
        trouble = self.states.trouble(steady) or self.states.refusal
        return f"{self.name}: {trouble}" if trouble else ""

    def enabled(self, steady: float) -> None:
        for i, watch in enumerate(self._watches):
            for mark in watch.marks:
                mark.owed += self._told.total[i] - mark.told
                mark.told = NOWHERE
        self._begin_at_measured()
        self._kind, self._spoke, self._zeros, self._hold = "", False, 0, None
        self._told = Told([NOWHERE] * len(self.axes), self.period)
        self.states.commanded = None
        self._forget()

    def _forget(self) -> None:
        """What was commanded until now is no reason to stop."""
        for watch in self._watches:
            watch.same = watch.way = watch.waits = 0.0

    def _begin_at_measured(self) -> None:
        """Or where a joint was sent last, if it was not seen to go there: to start from an old
        measurement would be a jump."""
        self.drop()
        last = None if self.joints.by_velocity else self._last
        for i, (axis, watch) in enumerate(zip(self.axes, self._watches, strict=False)):
            axis.reset(last[i] if last and abs(watch.marks[0].owed.whole) > TOLD else watch.value)

    # -- what comes in ------------------------------------------------------------------------

    def measured(
        self, names: list[str], positions: list[float], stamp: float, now: float, steady: float
    ) -> str:
        """Takes joint positions [rad, m] measured at `stamp` [s, by `now`'s clock]; returns why
        they are refused, if they are."""
        states, age = self.states, now - stamp
        if stamp <= 0:
            states.refusals["joints_stamp"] += 1
            return "the joint states have no stamp; have their publisher set header.stamp"
        self._stamps.see(now, steady)
        first, last = self._stamps.when(stamp)
        # An age that the clocks cannot have is refused as such.
        age = steady - first if 0 <= age <= states.timeout else age
        if states.hear(names, positions, steady, age) and states.positions is not None:
            self._watch(self._here(), first, last)
        elsewhere = self._moved_elsewhere(names, positions, steady, age)
        return "" if elsewhere else states.refusal

    def _moved_elsewhere(
        self, names: list[str], positions: list[float], steady: float, age: float
    ) -> bool:
        """Whether all that is measured agrees on another place, which is believed while nothing
        may move: then somebody has moved the arm."""
        others = self._others
        if self.safety.enabled or self.states.positions is None:
            self._others = self._new_states()
            return False
        if not others.hear(names, positions, steady, age) and others.refusal:
            self._others = others = self._new_states()  # these must agree from the first on
            others.hear(names, positions, steady, age)
        if not self.states.trouble(steady) and not self.states.refusal:
            return False
        if others.positions is None or others.trouble(steady):
            return False
        self.states, self._others, self._watches = others, self._new_states(), []
        self._watch(self._here(), steady, steady)
        return True

    def _here(self) -> list[float]:
        """Measured last [n]; only once all joints were heard of."""
        assert self.states.positions is not None
        found: list[float] = self.states.positions.tolist()
        return found

    def _watch(self, values: list[float], first: float, last: float) -> None:
        """Takes what was measured between two steady times."""
        if not self._watches:
            total = self._told.total
            self._watches = [
                Watch(value, [Mark(value, told)])
                for value, told in zip(values, total, strict=True)
            ]
        for i, (watch, value) in enumerate(zip(self._watches, values, strict=True)):
            since = self._told.since(first, last, i)
            if value != watch.value:
                watch.same = watch.way = 0.0
            before = watch.marks[-1]
            moved = abs(value - before.at)
            if moved > RESOLUTION:
                mark = Mark(value, self._told.total[i] - since)
                # It may have died nearly this far from there, and the rest be noise.
                watch.marks = [mark] if moved > 2 * RESOLUTION else [before, mark]
            if self.joints.by_velocity and self.safety.enabled:
                reckoned = self.axes[i].position - since.whole
                self.axes[i].shift(GAIN * (value - reckoned))
            watch.value = value

    def check(self, spec: ActionSpec) -> None:
        part = spec.part(self.name)
        if len(part) != len(self.axes):
            raise VlaError(
                f"{self.name} has {len(part)} numbers in the chunk, {len(self.axes)} joints here",
                f"set {self.name}.joints to the robot's joints in the order of "
                f"{', '.join(d.name for d in part.dims)}",
            )
        if part.kind == "joint_position" and not all(self.joints.drift):
            raise VlaError(
                f"{self.name} is {part.kind} and max_drift is 0",
                "set max_drift to how far its commands may be ahead of the measured joints",
            )
        if self._kind not in ("", part.kind):
            raise VlaError(f"{self.name} has become {part.kind}", "restart with one model")

    def accept(self, chunk: ActionChunk, stamp: float, begin: float, now: float) -> bool:
        part = chunk.spec.part(self.name)
        self._kind = part.kind
        dt = self.player.play.stretch * chunk.spec.dt
        steps = self._steps(part, self._rows(chunk), chunk.spec.dt)
        return self.player.accept(stamp, dt, steps, begin)

    def _steps(self, part: ActionPart, rows: np.ndarray, dt: float) -> list[tuple[Joints, Joints]]:
        if part.kind == "joint_position":
            here = tuple(axis.position for axis in self.axes)
            return position_steps(here, [tuple(row) for row in rows.tolist()])
        factor = self.settings.scale / self.player.play.stretch
        factor /= dt if part.kind == "joint_delta" else 1.0
        return [(row, row) for row in map(tuple, (factor * rows).tolist())]

    def drop(self) -> None:
        super().drop()
        self._goal = None

    def hand_over(self, by_hand: bool, since: float) -> None:
        super().hand_over(by_hand, since)
        self._kind = ""  # a person's may be another than the model's

    # -- what goes out ------------------------------------------------------------------------

    def begins(self, now: float, steady: float, begin: float, end: float) -> float | None:
        self._stamps.see(now, steady)
        if self.joints.by_velocity and self._spoke:
            self._last_command_ends(steady)
        self._steady = steady
        self._motion = self._planned(begin, end)
        return self._motion.stamp if self._motion else None

    @property
    def _absolute(self) -> bool:
        """Whether the chunks say positions."""
        return self._kind == "joint_position"

    def _planned(self, begin: float, end: float) -> JointMotion | None:
        plan = self.player.positions if self._absolute else self.player.velocities
        return plan(begin, end)

    def _last_command_ends(self, steady: float) -> None:
        """Velocities are carried out until the next ones come, late or early."""
        more = min(steady - self._steady, KEEP) - self.period
        self._told.last_ends(more)
        for axis in self.axes:
            axis.shift(more * axis.velocity)

    def fault(self, steady: float) -> tuple[str, str] | None:
        trouble = self.states.trouble(steady)
        if trouble:
            return JOINTS_LOST, f"{self.name}: {trouble}"
        for i, name in enumerate(self.joints.names):
            wrong = self._frozen(i, name) or self._held_up(i, name)
            if wrong:
                return wrong
        return None

    def _frozen(self, i: int, name: str) -> tuple[str, str] | None:
        bound, watch = self.settings.watchdogs.pose_frozen, self._watches[i]
        if not bound or watch.same <= bound or abs(watch.way) <= TOLD:
            return None
        return JOINTS_FROZEN, (
            f"{name} has been measured at exactly the same position for {watch.same:.2f} s of "
            f"commanded motion ({watch.way:.2f}); its source is frozen, or the joint does not "
            "follow: check the controller"
        )

    def _held_up(self, i: int, name: str) -> tuple[str, str] | None:
        watch, drift = self._watches[i], self.joints.drift[i]
        if watch.waits <= WAIT:
            return None
        return NOT_FOLLOWING, (
            f"the command of {name} has waited for it for {watch.waits:.2f} s, {drift:.3f} ahead "
            "of where it is measured; is it held up, is its controller on?"
        )

    def halts(self, steady: float) -> None:
        """Joints stay where they were sent last, which is never far from where they are. One
        that was not sent anywhere stays by itself."""
        if self._spoke:
            here = tuple(axis.position for axis in self.axes)
            self._hold = JointTargets(self.joints.names, here, (0.0,) * len(here))
        self.drop()
        self._spoke = False
        self._forget()

    def halted(self) -> JointTargets | None:
        return self._hold

    def move(self, live: bool) -> JointTargets | None:
        if self.states.positions is None:
            return None
        if not live:  # nobody follows the command
            for axis, position in zip(self.axes, self._here(), strict=True):
                axis.shift(position - axis.position)
        motion = self._motion
        if motion is not None:
            self._goal = motion.values if self._absolute else None
        elif self._goal and self.joints.by_velocity and self._is_at(self._goal):
            self._goal = None  # what is measured is never quite still
        clips: set[str] = set()
        for i in range(len(self.axes)):
            going = motion.going[i] if motion is not None else 0.0
            clips |= self._follow(i, self._goal[i] if self._goal else None, going)
        velocities = tuple(axis.velocity for axis in self.axes)
        if self._silent(motion is not None or any(velocities)):
            self._goal = None
            return None
        self._clip(clips)
        positions = tuple(axis.position for axis in self.axes)
        if live:
            self._sent(positions, velocities)
        return JointTargets(self.joints.names, positions, velocities, live, frozenset(clips))

    def _is_at(self, goal: Joints) -> bool:
        return all(
            abs(axis.position - at) < THERE for axis, at in zip(self.axes, goal, strict=True)
        )

    def _follow(self, i: int, wanted: float | None, going: float) -> set[str]:
        """One joint's period, towards a position if one is wanted; returns the kinds of clips."""
        axis, watch, drift = self.axes[i], self._watches[i], self.joints.drift[i]
        if self.joints.by_velocity:
            ways = [mark.owed + self._told.total[i] - mark.told for mark in watch.marks]
            reckoned = [mark.at + way.whole for mark, way in zip(watch.marks, ways, strict=True)]
            drift = drift or HELD
            self._wait(watch, abs(reckoned[-1] - watch.value) > drift, drift)
            on = LATE * self.period * axis.velocity
            ends = tuple(
                at + on + unsure
                for at, way in zip(reckoned, ways, strict=True)
                for unsure in (-way.less, way.more)
            )
            if wanted is None:
                return axis.follow_velocity(going, ends)
            return axis.follow(wanted, going, ends)
        if not drift and not going:  # it ends where it was sent last
            return axis.follow_velocity(0.0)
        if not drift:
            return axis.follow(watch.value + going * self.period, going)
        low, high = watch.value - drift, watch.value + drift
        if wanted is None:
            ahead = axis.position + going * self.period
            if low <= axis.stops_at(going) <= high:
                clips = axis.follow_velocity(going)
            else:
                clips = axis.follow(min(max(ahead, low), high))
        elif low <= wanted <= high:
            clips = axis.follow(wanted, going)
        else:
            clips = axis.follow(min(max(wanted, low), high))
        waits = abs(axis.position - watch.value) > NEAR * drift
        self._wait(watch, waits, drift)
        return clips | {DRIFT} if waits else clips

    def _wait(self, watch: Watch, waits: bool, drift: float) -> None:
        """Counts for how long a command has waited for a joint that does not move."""
        if not waits or abs(watch.value - watch.since) > drift / 4:
            watch.waits, watch.since = 0.0, watch.value
        if waits:
            watch.waits += self.period

    def _sent(self, positions: Joints, velocities: Joints) -> None:
        self._spoke, self._last = True, positions
        self._told.add(self._steady, velocities)
        self.states.commanded = np.array(positions)
        for watch, speed in zip(self._watches, velocities, strict=True):
            if abs(speed) > RESOLUTION:  # in a second
                watch.same += self.period
            watch.way += speed * self.period
