"""Fuzzer of `Commander`: random chunks, delays and faults, and the rules its output must keep.

Called by the tests and by safety_fuzz.py. What is checked here is computed from the commands
and from where the robot really is, not asked of the code under test. All chance comes from the
seed.

The robot obeys twists in its own axes, with a lag and for up to `HOLD` command periods, or goes
for target poses. What the commander is told of it lies: it freezes, repeats itself, jumps, is
biased, comes late, is another robot's, has any stamp. The robot's own position must keep to the
workspace. It is excused for

- a push by somebody's hand until that is measured, or refused as a jump for as long as a pose
  may be old;
- where it was when that was measured or it was enabled, until it is inside again;
- a measurement that is wrong by less than what a robot may move (`pose_jump`), by that bias;
- `SLACK_BOX` for noise.

Nobody enables it while all that is measured agrees on a place far from the truth: that takes eyes.
While it is not enabled somebody may move it elsewhere; from there it goes on.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace

import numpy as np

from vla_inference.control import vectors as v
from vla_inference.control.commander import Command, Commander, Settings
from vla_inference.control.commands import Pose
from vla_inference.control.limits import WORKSPACE, SafetyLimits
from vla_inference.control.safety import Distribution, Watchdogs
from vla_inference.control.vectors import Vector
from vla_inference.types import ActionChunk, eef_delta_spec, joint_spec

SLACK = 1 + 1e-6
SLACK_BOX = 0.0005  # m
HOLD = 2  # command periods for which a twist is obeyed
MISLED = 20  # ticks of an honest sensor until somebody enables a robot that was moved
BEEN = 2.0  # s for which it is remembered where the robot was
FAULTS = (
    "nan",
    "inf",
    "old_image",
    "future_image",
    "clock_back",
    "clock_forward",
    "late",
    "second_publisher",
    "no_heartbeat",
    "stall",
    "disable",
    "empty",
    "wrong_spec",
    "odd_dt",
    "clock_stopped",
    "pushed",
)
LIES = (
    "silent",
    "frozen",
    "noisy",
    "repeated",
    "outlier",
    "elsewhere",
    "biased",
    "late",
    "stamps",
    "another",
)
SPECS = {
    (rotation, frame, dt): eef_delta_spec(rotation, frame, dt)
    for rotation in ("rotvec", "rpy")
    for frame in ("base", "tool")
    for dt in (0.05, 0.1, 0.2)
}


@dataclass
class Findings:
    """Counts of what was tried and what went wrong; `wrong` must stay empty."""

    chunks: int = 0
    ticks: int = 0
    commands: int = 0
    moving: int = 0
    enabled: int = 0
    jogged: int = 0
    faults: Counter = field(default_factory=Counter)
    stops: Counter = field(default_factory=Counter)
    clips: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)
    slowest_stop: int = 0  # command periods from a fault to the halt
    farthest: float = -1.0  # m that the robot was outside its workspace, less what is excused

    def count(self, kind: str, true: bool) -> None:
        if true:
            self.wrong[kind] += 1

    def add(self, other: Findings) -> None:
        """Takes another run's counts in."""
        worst = ("slowest_stop", "farthest")
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            setattr(self, f.name, max(mine, theirs) if f.name in worst else mine + theirs)


def random_settings(rng: random.Random) -> Settings:
    def limit(low: float, high: float, always: bool = False) -> float:
        return rng.uniform(low, high) if always or rng.random() < 0.8 else 0.0

    box = ((-0.04, -0.05, -0.02), (0.05, 0.03, 0.06)) if rng.random() < 0.5 else None
    needs_pose = box is not None or rng.random() < 0.5
    limits = SafetyLimits(
        translation_per_step=limit(0.005, 0.05),
        rotation_per_step=limit(0.05, 0.5),
        # Without these no measurement can be refused for its place.
        linear_velocity=limit(0.05, 0.5, needs_pose),
        angular_velocity=limit(0.2, 2.0, needs_pose),
        linear_acceleration=limit(0.3, 5.0),
        angular_acceleration=limit(1.0, 20.0),
        linear_jerk=limit(3.0, 100.0),
        angular_jerk=limit(10.0, 400.0),
        workspace=box,
    )
    statistics = {"q01": [-0.08] * 6 + [0.0], "q99": [0.08] * 6 + [1.0]}
    statistics["mask"] = [True] * 6 + [False]
    return Settings(
        rate=rng.choice((20.0, 33.0, 50.0)),
        scale=rng.choice((0.1, 0.5, 1.0)),
        deltas_in=rng.choice(("", "base", "tool")),
        execute_steps=rng.choice((0, 1, 4)),
        align=rng.choice(("stamp", "arrival")),
        ensemble=rng.choice((None, 0.1)),
        blend=rng.choice((0.0, 0.1)),
        stretch=rng.choice((1.0, 1.0, 2.0)),
        catch_up=rng.choice((0.0, 0.0, 0.2)),
        drift=rng.choice(((0.05, 0.3), (0.0, 0.3))),
        needs_pose=needs_pose,
        limits=limits,
        watchdogs=Watchdogs(heartbeat=rng.choice((0.0, 0.4))),
        distribution=Distribution.from_statistics(statistics, 1.0) if rng.random() < 0.3 else None,
    )


class Robot:
    """The simulated robot: its true pose and how it follows commands.

    by: "twist" or "pose". lag, turn_lag: of twists [s]. gain: the share of the way to its target
        that it goes in a command period.
    """

    def __init__(self, rng: random.Random, by: str, period: float):
        self.by, self.period = by, period
        self.lag, self.gain = rng.choice((0.0, 0.0, 0.05, 0.1)), rng.choice((1.0, 1.0, 0.5, 0.3))
        self.turn_lag = rng.choice((0.0, 0.1, 0.3))
        self.pose = Pose((0.0, 0.0, 0.0))
        self.command: Command | None = None
        self.in_tool = False
        self._speed = v.ZERO, v.ZERO
        self._age = 0.0  # s since the command

    def apply(self, command: Command, in_tool: bool) -> None:
        self.command, self.in_tool, self._age = command, in_tool, 0.0

    def restart(self, pose: Pose) -> None:
        """Its controller was off and is on again, elsewhere: there it stays."""
        self.pose, self.command, self._speed = pose, None, (v.ZERO, v.ZERO)

    def live(self, passed: float) -> None:
        """Advances time."""
        if self.command is None:
            return
        if self.by == "pose":
            target = self.command.target
            if target is not None:
                gap = v.subtract(target.position, self.pose.position)
                turn = self.gain * v.angle_between(self.pose.orientation, target.orientation)
                self.pose = self.pose.towards(target, self.gain * v.norm(gap), turn)
            return
        begun, self._age = self._age, self._age + passed
        obeyed = max(0.0, min(passed, HOLD * self.period - begun))
        if obeyed:
            self._move(self.command, obeyed)
        if passed > obeyed:
            self._move(Command(), passed - obeyed)

    def _move(self, command: Command, time: float) -> None:
        linear, goes = _lagging(self._speed[0], command.linear, self.lag, time)
        angular, turns = _lagging(self._speed[1], command.angular, self.turn_lag, time)
        self._speed = goes, turns
        self.pose = self.pose.moved(linear, angular, time, self.in_tool)


def _lagging(old: Vector, wanted: Vector, lag: float, time: float) -> tuple[Vector, Vector]:
    """Mean and final velocity of a first-order lag towards the commanded one."""
    if not lag:
        return wanted, wanted
    left = math.exp(-time / lag)
    missing = v.subtract(old, wanted)
    return (
        v.add(wanted, v.scale(missing, lag * (1 - left) / time)),
        v.add(wanted, v.scale(missing, left)),
    )


class Sensor:
    """Reports the robot's pose with a delay, or a false one for a while."""

    def __init__(self, rng: random.Random, settings: Settings):
        self.rng, self.settings = rng, settings
        self.delay = rng.choice((0.0, 0.0, 0.02, 0.1))
        self.past: deque[tuple[float, float, Pose]] = deque()  # now, steady, truth
        self.lie, self.left = "", 0  # and for how many ticks
        self.last: tuple[Pose, float] | None = None
        self.wrong = v.ZERO  # by how much, while it lies about the place
        self.true_at = -math.inf  # steady time of what was told last under a stamp that will do
        self.honest = 0  # ticks since it lied last
        self.misled = 0  # how many true poses it takes until somebody would enable it

    def live(self, now: float, steady: float, pose: Pose) -> None:
        if self.past and abs(now - self.past[-1][0] - (steady - self.past[-1][1])) > 0.2:
            self.past.clear()  # the clock jumped: its old stamps mean nothing
        self.past.append((now, steady, pose))
        while self.past[0][1] < steady - 2.0:
            self.past.popleft()
        self.left -= 1
        self.honest = 0 if self.lie else self.honest + 1
        if self.left < 0 and self.lie:
            self.lie, self.wrong = "", v.ZERO

    def begin(self, lie: str, period: float) -> None:
        r, jump = self.rng, self.settings.pose_jump[0]
        self.lie, self.left = lie, 1 if lie == "outlier" else int(r.uniform(0.3, 3.0) / period)
        # Farther than a robot gets within the age that is permitted, or near enough to pass.
        far = 2 * (self.settings.limits.linear_velocity or 5.0) * 0.6 + r.uniform(0.1, 1.0)
        way = tuple(r.gauss(0, 1) for _ in range(3))
        size = 0.9 * jump * r.random() if lie == "biased" else far
        self.wrong = v.scale(way, size / v.norm(way))

    def tell(self) -> list[tuple[Pose, float]]:
        """Poses and their stamps that arrive now."""
        r, lie = self.rng, self.lie
        now, steady, _ = self.past[-1]
        told = next((p for p in reversed(self.past) if p[1] <= steady - self.delay), None)
        if lie == "late":
            told = self.past[0]
        if told is None:
            return []
        pose, stamp = told[2], told[0]
        if lie == "silent":
            return []
        if lie == "repeated" and self.last:
            return [self.last]
        if lie in ("frozen", "noisy") and self.last:
            noise = tuple(r.uniform(-2e-4, 2e-4) for _ in range(3)) if lie == "noisy" else v.ZERO
            still = Pose(v.add(self.last[0].position, noise), self.last[0].orientation)
            return [(still, stamp)]
        if lie != "late":  # what freezes was right when it was told first
            self.last = pose, stamp
        self.misled = 5 if lie == "elsewhere" else max(0, self.misled - (not lie))
        elsewhere = Pose(v.add(pose.position, self.wrong), pose.orientation)
        if lie in ("outlier", "elsewhere", "biased"):
            return [(elsewhere, stamp)]
        if lie == "another":
            return [(pose, stamp), (elsewhere, now)][:: r.choice((1, -1))]
        if lie == "stamps":
            stamp = r.choice((0.0, -5.0, now + r.uniform(0.2, 1e4), now - r.uniform(0.6, 900.0)))
        return [(pose, stamp)]


class Trial:
    """One commander with its robot and sensor, and a model that misbehaves."""

    def __init__(self, rng: random.Random, findings: Findings):
        self.rng, self.found = rng, findings
        self.commander = Commander(random_settings(rng))
        self.settings = self.commander.settings
        self.pose_age = self.settings.watchdogs.pose_age
        self.frame = rng.choice(("base", "tool"))
        self.now, self.steady = 1000.0, 50.0
        by = rng.choice(("twist", "pose")) if self.settings.needs_pose else "twist"
        self.robot = Robot(rng, by, self.commander.period)
        self.sensor = Sensor(rng, self.settings)
        self.stopped_clock = 0  # for how many more ticks `now` stands still
        self.stood, self.ticked = 0.0, self.now  # s for which it has; when the last period began
        self.target: Pose | None = None  # the last live one since it was enabled
        self.told: Pose | None = None  # the last live one
        self.told_at = 0  # in which tick
        self.been: deque[Vector] = deque(maxlen=round(BEEN / self.commander.period))
        self.begun: list[Vector] = []  # where it was when it was enabled, or measured before
        self.pushed, self.seen_in = 0.0, 0.0  # m that was not measured yet; s until it is
        self.misjudged = 0.0  # m by which the measurement was biased that the robot is there by
        self.excused = 0.0  # m that the robot may be outside, see above
        self.velocity = [(v.ZERO, v.ZERO), (v.ZERO, v.ZERO)]  # the last two
        self.known = 0  # how many commands in a row the above know of
        self.due: list[tuple[float, float, ActionChunk]] = []  # steady time, stamp, chunk
        self.fault_at: int | None = None
        self.ticks_off = 0  # since it was enabled last
        self.others, self.quiet, self.mute = "", 0, 0
        self.hand, self.jogged = random.Random(findings.chunks), False  # see `jog`

    def run(self, chunks: int) -> None:
        self.tick()  # the clocks are known from here on
        begun = self.found.chunks
        while self.found.chunks - begun < chunks:
            off = not self.commander.safety.enabled
            if off and not self.jogged and self.hand.random() < 0.02:
                self.jog()
            enabled, misled = self.commander.safety.enabled, self.sensor.misled
            if not enabled and not misled and self.rng.random() < 0.2:
                self.enable()
            if self.mute == 0 and self.rng.random() < 0.5:
                self.send()
            if self.rng.random() < 0.02:
                self.fault()
            self.tick()
        c = self.commander
        self.found.stops.update(c.safety.stops)
        self.found.clips.update(c.safety.clips)
        self.found.refusals.update(c.safety.refusals)

    def enable(self) -> None:
        self.others, self.quiet = "", 0
        self.commander.safety.heartbeat(self.steady)
        heard = self.found.chunks
        refused = self.commander.enable(self.steady)
        self.found.count("enabled_without_a_chunk", not refused and not heard)
        if refused:
            return
        self.found.enabled += 1
        self.velocity = [(v.ZERO, v.ZERO)] * 2
        self.known = 2
        self.ticks_off, self.fault_at, self.target = 0, None, None
        self.begun = list(self.been)[-math.ceil(self.pose_age / self.commander.period) :]
        self.excused = max(self.excused, self.outside())
        if self.jogged and self.hand.random() < 0.5:  # a fault before the first new command
            self.mute = int(1.5 / self.commander.period)
            self.sensor.begin(self.hand.choice(LIES), self.commander.period)
        self.jogged = False

    def outside(self, pose: Pose | None = None) -> float:
        """m that the robot really is outside its workspace, or that a pose is"""
        box, pose = self.settings.limits.workspace, pose or self.robot.pose
        if box is None:
            return 0.0
        return max(
            max(low - x, x - high, 0.0)
            for low, x, high in zip(box[0], pose.position, box[1], strict=True)
        )

    def chunk(self) -> ActionChunk:
        r = self.rng
        # A model that changes its frame is refused; mostly it doesn't.
        frame = self.frame if r.random() < 0.99 else "tool"
        spec = SPECS[r.choice(("rotvec", "rpy")), frame, r.choice((0.05, 0.1, 0.2))]
        size = 10 ** r.uniform(-3, 0.5 if r.random() < 0.1 else -1)
        numbers = np.random.default_rng(r.getrandbits(32))
        actions = numbers.uniform(-size, size, (r.randint(1, 8), 7))
        if r.random() < 0.3:  # all one way, and turning: on along a wall
            actions[:] = numbers.uniform(-0.1, 0.1, 7)
        actions[:, 6] = r.random()
        return ActionChunk(actions, spec)

    def send(self, chunk: ActionChunk | None = None, delay: float | None = None) -> None:
        if delay is None:
            delay = self.rng.choice((0.0, 0.05, 0.3)) * self.rng.random()
        self.due.append((self.steady + delay, self.now, chunk or self.chunk()))
        self.found.chunks += 1

    def fault(self) -> None:
        """Something goes wrong; what must stop the robot at once is remembered as such."""
        kind, c = self.rng.choice(FAULTS), self.commander
        self.found.faults[kind] += 1
        at_once = True
        if kind in ("nan", "inf"):
            chunk = self.chunk()
            bad = np.nan if kind == "nan" else -np.inf
            chunk.actions[self.rng.randrange(len(chunk)), self.rng.randrange(7)] = bad
            self.deliver(self.now, chunk)
        elif kind == "empty":
            self.deliver(self.now, ActionChunk(np.zeros((0, 7)), SPECS["rotvec", "base", 0.05]))
        elif kind == "wrong_spec":
            wrong = joint_spec({"arm": "abcdef"})
            self.deliver(self.now, ActionChunk(np.zeros((2, 6)), wrong))
        elif kind == "old_image":
            self.deliver(self.now - self.rng.uniform(1.1, 1e4), self.chunk())
        elif kind == "future_image":
            self.deliver(self.now + self.rng.uniform(1.1, 1e4), self.chunk())
        elif kind == "clock_back":
            self.now -= self.rng.uniform(0.5, 900.0)
        elif kind == "clock_forward":
            self.now += self.rng.uniform(0.5, 900.0)
        elif kind == "late":
            gap = self.rng.uniform(0.55, 3.0)
            self.now += gap
            self.steady += gap
        elif kind == "second_publisher":
            self.others = "1 more publish on /action"
        elif kind == "odd_dt":
            chunk = self.chunk()
            odd = self.rng.choice((5e-324, 1e-9, 0.0, -0.1, 1e308, math.inf, math.nan))
            self.deliver(self.now, ActionChunk(chunk.actions, replace(chunk.spec, dt=odd)))
        elif kind == "disable":
            c.disable()
        else:  # the watchdog's bound says when it is a fault
            at_once = False
            ticks = int(1.5 / c.period)
            if kind == "no_heartbeat":
                self.quiet = ticks
            elif kind == "stall":
                self.mute = ticks
            elif kind == "clock_stopped":
                self.stopped_clock = ticks
            else:
                self.push()
        if at_once and self.fault_at is None:
            self.fault_at = self.found.ticks

    def push(self) -> None:
        r = self.rng
        way = v.scale((r.uniform(-1, 1), r.uniform(-1, 1), r.uniform(-1, 1)), 0.06)
        self.robot.pose = self.robot.pose.moved(way, (0.0, 0.05, 0.0), 1.0, False)
        self.pushed, self.seen_in = self.pushed + v.norm(way), self.until_seen()

    def until_seen(self) -> float:
        """s of an honest sensor after which a push was measured, and what was told before is done.

        One farther than a robot can have got is refused: until then it is not known where it is.
        """
        r = self.robot
        return self.pose_age + self.sensor.delay + 3 * r.period + 3 * r.lag

    def jog(self) -> None:
        """Somebody moves the robot while nothing is enabled, by a pendant or by hand, and does not
        enable it before that was measured. What it was told before must not take it back."""
        r, before = self.hand, self.robot.pose
        low, high = self.settings.limits.workspace or ((-0.3,) * 3, (0.3,) * 3)
        x, y, z = (r.uniform(a, b) for a, b in zip(low, high, strict=True))
        self.robot.restart(Pose((x, y, z), before.orientation))
        self.pushed += v.norm(v.subtract(self.robot.pose.position, before.position))
        self.seen_in, self.sensor.misled = MISLED * self.commander.period, MISLED
        self.told, self.jogged = None, True
        self.found.jogged += 1

    def deliver(self, stamp: float, chunk: ActionChunk) -> None:
        if not self.settings.distribution or np.isfinite(chunk.actions).all():
            self.found.chunks += 1
        self.commander.accept(chunk, stamp, self.now, self.steady)

    def tick(self) -> None:
        c, r = self.commander, self.rng
        passed = max(1e-4, c.period * (1 + r.choice((0.0, 0.0, 0.4, -0.4, 2.0)) * r.random()))
        stood = self.stood  # by the last period
        if self.stopped_clock:
            self.stopped_clock -= 1
        else:
            self.now += passed
        self.stood = self.stood + passed if self.now == self.ticked else 0.0
        self.ticked = self.now
        self.steady += passed
        self.robot.live(passed)
        self.been.append(self.robot.pose.position)
        self.check_robot(passed)
        if self.quiet == 0:
            c.safety.heartbeat(self.steady)
        self.sensor.live(self.now, self.steady, self.robot.pose)
        if not self.sensor.lie and r.random() < 0.01:
            self.sensor.begin(r.choice(LIES), c.period)
            self.found.faults[f"pose_{self.sensor.lie}"] += 1
        for pose, stamp in self.sensor.tell():
            c.measured(pose, stamp, self.now, self.steady)
            if 0 < stamp <= self.now + 0.2:
                at = self.steady - max(0.0, self.now - stamp)
                self.sensor.true_at = max(self.sensor.true_at, at)
        self.quiet, self.mute = (max(0, n - 1) for n in (self.quiet, self.mute))
        for entry in [d for d in self.due if d[0] <= self.steady]:
            self.due.remove(entry)
            c.accept(entry[2], entry[1], self.now, self.steady)
        before = c.safety.enabled
        command = c.tick(self.now, self.steady, self.others)
        self.found.ticks += 1
        late = self.settings.watchdogs.clock_stopped < stood
        moves = command is not None and command.live and command.moves
        self.found.count("motion_on_a_stopped_clock", late and moves)
        unseen = self.steady - self.sensor.true_at > self.settings.watchdogs.pose_age
        self.found.count("motion_unseen", unseen and moves and self.settings.needs_pose)
        self.check(command, before)
        if command is not None and command.live:
            self.robot.apply(command, c.in_tool)

    def check_robot(self, passed: float) -> None:
        outside, biased = self.outside(), self.sensor.lie == "biased"
        bias = v.norm(self.sensor.wrong) if biased else 0.0
        self.misjudged = max(self.misjudged, bias)
        self.seen_in -= 0.0 if self.sensor.lie else passed
        if self.seen_in <= 0:
            # Nobody who has seen it must take it back at once.
            self.excused = max(self.excused, min(outside, self.excused + self.pushed))
            self.pushed = 0.0
        if outside == 0.0:
            self.excused = 0.0
            # A robot on its way to a target of then may take a while; of a bias nobody knows as
            # long as it lasts, inside as well.
            lasts = not biased and self.sensor.honest < 20
            self.misjudged = self.misjudged if lasts else bias
        if self.robot.by == "pose" and self.target is not None:
            # It was enabled there, and goes there again if somebody pushes it away.
            self.excused = max(self.excused, self.outside(self.target))
        beyond = outside - self.excused - self.pushed - self.misjudged
        self.found.count("robot_outside", beyond > SLACK_BOX)
        self.found.farthest = max(self.found.farthest, beyond)

    def check(self, command, before: bool) -> None:
        found, c = self.found, self.commander
        on = c.safety.enabled
        self.ticks_off = 0 if on else self.ticks_off + 1
        live = command is not None and command.live
        if self.fault_at is not None:
            found.count("fault_not_stopped_within_one_period", on)
            found.count("motion_after_fault", live and command.moves)
            found.slowest_stop = max(found.slowest_stop, found.ticks - self.fault_at)
            self.fault_at = None
        found.count("enabled_itself", on and not before)
        if not on:
            found.count("motion_while_not_enabled", live and command.moves)
            found.count("gripper_while_not_enabled", live and command.gripper is not None)
            found.count("more_than_two_halts", live and self.ticks_off > 2)
            if live and command.target is not None and self.settings.needs_pose:
                found.count("hold_elsewhere", not self.knows(command.target))
                self.told = command.target
            self.known = 0
            return
        if command is None:
            command_now = (v.ZERO, v.ZERO)
        else:
            found.count("dry_run_while_enabled", not command.live)
            found.commands += 1
            found.moving += command.moves
            command_now = (command.linear, command.angular)
        numbers = [*command_now[0], *command_now[1]]
        if command is not None and command.target is not None:
            numbers += [*command.target.position, *command.target.orientation]
        found.count("not_finite", not all(map(math.isfinite, numbers)))
        self.check_limits(command, command_now)
        self.velocity = [self.velocity[1], command_now]
        if command is not None and command.target is not None:
            self.check_target(command.target)

    def knows(self, hold: Pose, more: float = 0.0) -> bool:
        """Whether the robot is, was a moment ago or was told to be there, or within `more` m.

        Until it is told where to go, it also was where it was enabled.
        """
        places = [*self.been, *([] if self.target else self.begun)]
        places += [self.told.position] if self.told else []
        # Of a push that was not measured yet nobody knows.
        near = self.settings.pose_jump[0] + SLACK_BOX + self.pushed + more
        return any(v.norm(v.subtract(hold.position, p)) < near for p in places)

    def check_target(self, target: Pose) -> None:
        """It begins where the robot is, and neither jumps nor leaves the workspace from there."""
        limits, last = self.settings.limits, self.target
        known = self.knows(target, limits.linear_velocity * self.commander.period)
        self.target = self.told = target
        passed, self.told_at = self.found.ticks - self.told_at, self.found.ticks
        if last is None:
            self.found.count("begins_elsewhere", self.settings.needs_pose and not known)
            return
        period = passed * self.commander.period
        step = (limits.linear_velocity or math.inf) * period * SLACK + 1e-9
        turn = (limits.angular_velocity or math.inf) * period * SLACK + 1e-6
        self.found.count("target_jumps", not last.within(target, step, turn))
        if limits.workspace is None:
            return
        low_corner, high_corner = limits.workspace
        for low, x, high, was in zip(
            low_corner, target.position, high_corner, last.position, strict=True
        ):
            out = x < min(low, was) - 1e-9 or x > max(high, was) + 1e-9
            self.found.count("target_outside", out)

    def check_limits(self, command, current) -> None:
        limits, period, found = self.settings.limits, self.commander.period, self.found
        walled = command is not None and WORKSPACE in command.clips
        for i, name in enumerate(("linear", "angular")):
            top, steepest, jerk = (
                getattr(limits, f"{name}_{k}") or math.inf
                for k in ("velocity", "acceleration", "jerk")
            )
            speed = v.norm(current[i])
            found.count(f"{name}_velocity", speed > top * SLACK)
            old, last = self.velocity[0][i], self.velocity[1][i]
            now = v.scale(v.subtract(current[i], last), 1 / period)
            before = v.scale(v.subtract(last, old), 1 / period)
            # Keeping within the box outranks gentleness.
            if not (walled and i == 0):
                found.count(f"{name}_acceleration", v.norm(now) > steepest * SLACK + 1e-9)
            if self.known >= 2 and not (i == 0 and (walled or self.was_walled)):
                change = v.norm(v.subtract(now, before)) / period
                found.count(f"{name}_jerk", change > jerk * SLACK + 1e-6)
        self.was_walled = walled

    was_walled = False


def fuzz(chunks: int, seed: int = 0, per_trial: int = 200) -> Findings:
    """Sends at least `chunks` chunks, with new settings after every `per_trial`."""
    findings = Findings()
    rng = random.Random(seed)
    while findings.chunks < chunks:
        Trial(rng, findings).run(min(per_trial, chunks - findings.chunks))
    return findings


def fuzz_in_parallel(chunks: int, seed: int, jobs: int) -> Findings:
    """The same, shared out among processes; one process keeps the seed as it is."""
    if jobs == 1:
        return fuzz(chunks, seed)
    shares = [chunks // jobs + (i < chunks % jobs) for i in range(jobs)]
    found = Findings()
    with ProcessPoolExecutor(jobs) as pool:
        for each in pool.map(fuzz, shares, [seed * 1000 + i for i in range(jobs)]):
            found.add(each)
    return found
