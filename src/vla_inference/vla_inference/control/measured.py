"""Estimates the end-effector pose from measurements that may be stale, wrong or missing.

A source of poses may die and go on repeating itself, send one wrong sample, be another robot's, or
come late. None of that may become a target, and none of it may switch the workspace off: what
cannot be is refused, and what has not been heard of since is reckoned from the commands.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from itertools import takewhile

from vla_inference.control import vectors as v
from vla_inference.control.commands import Pose
from vla_inference.control.stamps import AHEAD
from vla_inference.control.vectors import Vector

NO_STAMP, OLD, FUTURE, JUMP = "no_stamp", "old", "future", "jump"  # kinds of refusals

AGREEING = 3  # poses in a row before a place is believed that cannot be reached from the last one
FASTER = 2.0  # times the limit: controllers overshoot, and what is measured may not be their TCP
RESOLUTION = 0.001, 0.005  # m, rad: a pose within these is the same one with noise
ROW = 2.0  # times the drift: how much more is commanded of a robot that does not follow
KEEP = 5.0  # s of commands, beyond which no delayed pose reaches back
LAG = 0.1, 0.3  # s after which a robot has done most of a way, of a turn that it was told
LAGS = 5.0  # of these, after which nothing of it is left to do
TOLD = 0.005, 0.03  # m, rad: after this much commanded motion a change would be visible


@dataclass(frozen=True)
class PoseBounds:
    """age: of a pose [s]; 0: any. jump: how far a pose may be from where the robot can have got
    to [m, rad]. speed: the robot's limits [m/s, rad/s], infinite where it has none. frozen: how
    long motion is commanded while the pose stays exactly the same [s]; 0: forever.
    """

    age: float = 0.5
    jump: tuple[float, float] = (0.05, 0.3)
    speed: tuple[float, float] = (math.inf, math.inf)
    frozen: float = 0.5


@dataclass
class Told:
    """Commanded motion since some time: duration and displacement [m, rad; base axes]."""

    seconds: float = 0.0
    way: Vector = v.ZERO
    turn: Vector = v.ZERO

    def add(self, seconds: float, linear: Vector, angular: Vector) -> None:
        if v.norm(linear) > RESOLUTION[0] or v.norm(angular) > RESOLUTION[1]:  # in a second
            self.seconds += seconds
        self.way = v.add(self.way, v.scale(linear, seconds))
        self.turn = v.add(self.turn, v.scale(angular, seconds))

    def after(self, other: Told) -> Told:
        """All of it, begun with the other."""
        seconds = other.seconds + self.seconds
        return Told(seconds, v.add(other.way, self.way), v.add(other.turn, self.turn))

    @property
    def shows(self) -> bool:
        """Whether a robot that does it is seen to have moved."""
        return v.norm(self.way) > TOLD[0] or v.norm(self.turn) > TOLD[1]


@dataclass
class Track:
    """A sequence of poses that one robot can have passed through.

    shadow: goes after what is measured, as fast as the robot may at most. What is measured stays
    near it, however many small steps it takes.
    """

    pose: Pose
    at: float  # steady time at which the robot was there
    shadow: Pose
    length: int = 1

    @classmethod
    def begin(cls, pose: Pose, at: float) -> Track:
        return cls(pose, at, pose)

    def goes_on(self, pose: Pose, at: float, bounds: PoseBounds) -> bool:
        """Adds a pose if the robot can be there; returns whether it can.

        One that a newer one has overtaken changes nothing, but must fit as well.
        """
        passed = min(abs(at - self.at), bounds.age or math.inf)
        reach = [FASTER * s * passed if math.isfinite(s) else math.inf for s in bounds.speed]
        if not self.shadow.within(pose, reach[0] + bounds.jump[0], reach[1] + bounds.jump[1]):
            return False
        if at >= self.at:
            self.shadow = self.shadow.towards(pose, *reach)
            self.pose, self.at, self.length = pose, at, self.length + 1
        return True


@dataclass(frozen=True)
class Sent:
    """Velocities (base axes) commanded between two steady times.

    sure: until when they were carried out for certain. A robot may obey a command until it hears
        the next, or halt before. unsure: by how much they may have been turned [rad].
    """

    begin: float
    end: float
    linear: Vector
    angular: Vector
    sure: float
    unsure: float


@dataclass
class Reckoning:
    """Where the robot is if it has done all that it was told since it was seen somewhere.

    first, last: steady times between which it was there. What was commanded between these it may
    have done already by then. Of what was commanded before, a part may have been left to do.
    """

    pose: Pose
    first: float
    last: float
    way: Vector = v.ZERO  # told since `first` [m]
    turn: Vector = v.ZERO  # [rad]
    low: Vector = v.ZERO  # of that way, what it may not have done since: from here
    high: Vector = v.ZERO  # to here
    unsure: float = 0.0  # rad by which its turn may differ from that
    aside: float = 0.0  # m that it may have gone another way, having turned
    left: tuple[Vector, Vector] = (v.ZERO, v.ZERO)  # to do then: a box that begins there [m]

    def add(self, sent: Sent) -> None:
        begin, end = max(sent.begin, self.first), sent.end
        if begin > sent.begin:
            self._left(sent, min(end, self.first))
        if end <= begin:
            return
        way = v.scale(sent.linear, end - begin)
        self.way = v.add(self.way, way)
        self.turn = v.add(self.turn, v.scale(sent.angular, end - begin))
        self.aside += sent.unsure * v.norm(way)
        certain = max(0.0, min(end, sent.sure) - max(begin, self.last))
        x, y, z = v.scale(sent.linear, end - begin - certain)
        self.low = v.add(self.low, (min(0.0, x), min(0.0, y), min(0.0, z)))
        self.high = v.add(self.high, (max(0.0, x), max(0.0, y), max(0.0, z)))
        self.unsure += v.norm(sent.angular) * (end - begin - certain)

    def _left(self, sent: Sent, until: float) -> None:
        """Reckons what the robot may still have had to do of a command that began before."""
        seconds = until - sent.begin
        way, turn = (seconds * math.exp((until - self.first) / lag) for lag in LAG)
        self.unsure += v.norm(sent.angular) * turn
        aside = (sent.unsure * v.norm(sent.linear) * way,) * 3
        x, y, z = v.scale(sent.linear, way)
        low, high = self.left
        backward = (min(0.0, x), min(0.0, y), min(0.0, z))
        forward = (max(0.0, x), max(0.0, y), max(0.0, z))
        self.left = (
            v.subtract(v.add(low, backward), aside),
            v.add(v.add(high, forward), aside),
        )

    def corners(self) -> list[Vector]:
        """Of the box in which it is [m]."""
        at, aside = v.add(self.pose.position, self.way), (self.aside,) * 3
        low, high = (v.add(at, left) for left in self.left)
        return [
            v.subtract(v.subtract(low, aside), self.high),
            v.subtract(v.add(high, aside), self.low),
        ]

    @property
    def turned(self) -> float:
        """rad, at most"""
        return v.norm(self.turn) + self.unsure

    def beyond(self, far: tuple[float, float]) -> bool:
        """Whether it was told to go farther than this since, for certain [m, rad]."""
        x, y, z = (
            max(w - high, 0.0) + min(w - low, 0.0)
            for w, low, high in zip(self.way, self.low, self.high, strict=True)
        )
        return v.norm((x, y, z)) > far[0] or v.norm(self.turn) - self.unsure > far[1]


@dataclass
class Measured:
    """Call `hear` for every pose and `told` for every command that may have moved the robot.

    refused: how many poses, by kind.
    """

    bounds: PoseBounds = field(default_factory=PoseBounds)
    refused: Counter[str] = field(default_factory=Counter)
    _track: Track | None = None
    _other: Track | None = None  # elsewhere, not believed yet
    _marks: list[Reckoning] = field(default_factory=list)  # see `reckoned`; newest last
    _stays: bool = False  # though it was told to go farther than a pose may be wrong
    _switched: bool = False  # to another place, since it was enabled
    _same: Told = field(default_factory=Told)  # since the pose last changed, or it was enabled
    _repeated: Told = field(default_factory=Told)  # the same, by when it was heard again
    _earlier: Told = field(default_factory=Told)  # since it last changed until it was enabled
    _behind: tuple[Told, Pose] | None = None  # since the target waits for it, and where it was
    _sent: deque[Sent] = field(default_factory=deque)  # lately

    @property
    def pose(self) -> Pose | None:
        """The last accepted pose."""
        return self._track.pose if self._track else None

    @property
    def at(self) -> float:
        """Steady time at which the robot was there; -inf: never."""
        return self._track.at if self._track else -math.inf

    def hear(
        self, pose: Pose, stamp: float, now: float, taken: tuple[float, float], moving: bool
    ) -> tuple[str, str] | None:
        """Takes a pose measured at `stamp`; returns why it is refused (kind, reason), or None.

        taken: between which steady times that was. moving: whether the robot may be under command.
        Then no other place than one that it can have got to is believed, however often it is told.
        """
        refusal = self._wrong_time(stamp, now) or self._place(pose, taken, moving)
        if refusal:
            self.refused[refusal[0]] += 1
        return refusal

    def _wrong_time(self, stamp: float, now: float) -> tuple[str, str] | None:
        age, bound = now - stamp, self.bounds.age
        if stamp <= 0:
            return NO_STAMP, "the measured pose has no stamp; have its publisher set header.stamp"
        if bound and age > bound:
            return OLD, (
                f"the measured pose is {age:.2f} s old, more than {bound:g} s; check its source, "
                "or synchronise the clocks"
            )
        if bound and age < -AHEAD:
            return FUTURE, (
                f"the measured pose's stamp is {-age:.2f} s in the future; synchronise the clocks"
            )
        return None

    def _place(
        self, pose: Pose, taken: tuple[float, float], moving: bool
    ) -> tuple[str, str] | None:
        at, track = taken[0], self._track
        if track is not None:
            before, newer = track.pose, at >= track.at
            if track.goes_on(pose, at, self.bounds):
                self._other = None
                if newer:
                    self._believe(pose, before, taken)
                return None
        if self._other is None or not self._other.goes_on(pose, at, self.bounds):
            self._other = Track.begin(pose, at)
        if not moving and self._other.length >= AGREEING:
            self._track, self._other, self._switched = self._other, None, True
            self._believe(pose, None, taken)
            return None
        if track is None:
            return None  # nothing is known yet, nothing is wrong
        far = v.norm(v.subtract(pose.position, track.shadow.position))
        turned = v.angle_between(pose.orientation, track.shadow.orientation)
        return JUMP, (
            f"the measured pose jumped by {far:.3f} m and {turned:.2f} rad; is there a second "
            "source of it, or has its frame changed?"
        )

    def _believe(self, pose: Pose, before: Pose | None, taken: tuple[float, float]) -> None:
        if pose != before:
            self._same, self._earlier = Told(), Told()
        self._repeated = replace(self._same)
        marks = self._marks if before else []
        if marks and marks[-1].pose.within(pose, *RESOLUTION):
            self._stays = marks[-1].beyond(self.bounds.jump)
            return
        mark, lately = Reckoning(pose, *taken), taken[0] - LAGS * max(LAG)
        for sent in takewhile(lambda s: s.end > lately, reversed(self._sent)):
            mark.add(sent)
        self._marks, self._stays = [*marks[-1:], mark], False

    def behind(self, waiting: bool) -> None:
        """Whether the target waits for the robot in this command period."""
        if not waiting or self.pose is None:
            self._behind = None
        elif self._behind is None:
            self._behind = Told(), self.pose

    def told(self, sent: Sent) -> None:
        """Records what was commanded until now."""
        self._sent.append(sent)
        while self._sent[0].end < sent.end - KEEP:
            self._sent.popleft()
        for mark in self._marks:
            mark.add(sent)
        self._same.add(sent.end - sent.begin, sent.linear, sent.angular)
        if self._behind is not None:
            self._behind[0].add(sent.end - sent.begin, sent.linear, sent.angular)

    def reckoned(self) -> tuple[list[Vector], float] | None:
        """Where the robot is if it has done all that it was told since it was last seen to have
        moved, or since the time before, as that may have been noise: corners of boxes [m], and
        how far it may have turned since [rad].

        A pose that stays does not say that the robot has halted: its source may have died before.
        """
        if not self._marks:
            return None
        corners = [corner for mark in self._marks for corner in mark.corners()]
        return corners, max(mark.turned for mark in self._marks)

    @property
    def disputed(self) -> str:
        """Why the robot's position is unclear: the last pose was elsewhere; empty: it is clear."""
        if self._other is None or self._track is None:
            return ""
        far = v.norm(v.subtract(self._other.pose.position, self._track.pose.position))
        return f"measured poses differ by {far:.3f} m; is there a second source of them?"

    @property
    def doubtful(self) -> bool:
        """Whether the robot may not be at the last measured pose."""
        elsewhere = self._other is not None or self._switched
        return elsewhere or self._behind is not None or self.unmoved

    @property
    def unmoved(self) -> bool:
        """Whether the last pose should differ from those before; enabling does not change it."""
        return self._stays or self._repeated.after(self._earlier).shows

    def frozen(self) -> str:
        """Why the pose source seems frozen; empty: it does not."""
        same, bound = self._repeated, self.bounds.frozen
        if not bound or same.seconds <= bound or not same.shows:
            return ""
        return (
            f"the measured pose has been exactly the same for {same.seconds:.2f} s of commanded "
            f"motion ({v.norm(same.way):.3f} m, {v.norm(same.turn):.2f} rad); its source is "
            "frozen, or the robot does not follow: check the controller"
        )

    def not_following(self, drift: tuple[float, float]) -> str:
        """Why the robot does not follow commands; empty: it does. drift: see `Target`."""
        if self._behind is None or self.pose is None or not drift[0]:
            return ""
        told, begin = self._behind
        way = v.norm(v.subtract(self.pose.position, begin.position))
        turn = v.angle_between(self.pose.orientation, begin.orientation)
        for wanted, done, bound, unit in (
            (v.norm(told.way), way, drift[0], "m"),
            (v.norm(told.turn), turn, drift[1], "rad"),
        ):
            if wanted <= ROW * bound:
                continue
            if done < wanted / 4:
                return (
                    f"of {wanted:.3f} {unit} commanded while the target waited for the robot, "
                    f"{done:.3f} {unit} were measured; is it held up, is its controller on, is "
                    "the source of the measured pose alive?"
                )
            self._behind = Told(), self.pose  # it is slow, but it does
        return ""

    def enabled(self) -> None:
        """Forgets earlier commands, so that they are no reason to stop."""
        self._earlier = self._same.after(self._earlier)
        self._same, self._repeated, self._behind = Told(), Told(), None
        self._switched = False
