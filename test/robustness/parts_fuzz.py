#!/usr/bin/env python3
"""Fuzzes the command path by parts: two arms of joints with grippers, and a mobile base.

    python test/robustness/parts_fuzz.py [--steps 1000000] [--jobs 16] [--seed 0] [--output FILE]

Random chunks, delays and faults, and joint measurements that lie: they freeze, jump, come late,
are another robot's, have any stamp. `wrong` counts what must never be, computed from the commands
alone: commands outside position, velocity, acceleration or jerk limits, motion after a stop,
stops that came late, a part that goes on while another is stopped, and arms driven by velocity
that really get out of their limits by more than late periods and their lag explain. It must be
empty, else the exit status is 1. A step is a command period. Needs no ROS.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.control import RobotCommander, Settings, Watchdogs
from vla_inference.control import vectors as v
from vla_inference.control.axis import Axis, AxisLimits
from vla_inference.control.parts.gripper import GripperPart
from vla_inference.control.parts.joints import JointPart, JointSettings
from vla_inference.control.parts.twist import BaseLimits, BasePart
from vla_inference.types import (
    ActionChunk,
    ActionPart,
    ActionSpec,
    DimSpec,
    gripper_part,
    joint_part,
)

SLACK = 1 + 1e-6
HOLD = 2  # command periods for which a velocity is obeyed
JOINTS = 6
KINDS = ("joint_position", "joint_delta", "joint_velocity")
ARMS = ("left_arm", "right_arm")
FAULTS = (
    "nan",
    "inf",
    "empty",
    "wrong_spec",
    "odd_dt",
    "old_image",
    "future_image",
    "clock_back",
    "clock_forward",
    "late",
    "second_publisher",
    "disable",
    "no_heartbeat",
    "stall",
    "clock_stopped",
)
LIES = ("silent", "frozen", "noisy", "repeated", "outlier", "elsewhere", "late", "stamps", "two")
PLACES = ("outlier", "elsewhere", "two")  # of these, about where the arm is
ROBOTS = ("arms", "base")


@dataclass
class Findings:
    """Counts of what was tried and what went wrong; `wrong` must stay empty."""

    steps: int = 0
    chunks: int = 0
    commands: int = 0
    moving: int = 0
    enabled: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    clips: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    farthest: float = -math.inf  # rad that a joint driven by velocity was outside what is allowed

    def count(self, kind: str, true: bool) -> None:
        if true:
            self.wrong[kind] += 1

    def add(self, other: Findings) -> None:
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                joined = max(mine, theirs) if f.name == "farthest" else mine + theirs
                setattr(self, f.name, joined)


class Arm:
    """A simulated arm, what is told of its joints, and the rules that its commands must keep."""

    def __init__(self, rng: random.Random, name: str, settings: Settings, found: Findings):
        self.rng, self.name, self.settings, self.found = rng, name, settings, found
        self.kind = rng.choice(KINDS)
        limits = tuple(self._limits() for _ in range(JOINTS))
        names = tuple(f"{name}_{i}" for i in range(JOINTS))
        absolute, by_velocity = self.kind == "joint_position", rng.random() < 0.4
        drift = (rng.uniform(0.1, 0.5) if absolute or rng.random() < 0.7 else 0.0,) * JOINTS
        # In half of all trials it is known how fast joints can be: then no lie is plausible.
        known = rng.random() < 0.5
        self.fastest = tuple(1.2 * a.velocity for a in limits) if known else ()
        self.joints = JointSettings(
            names, limits, drift, fastest=self.fastest, by_velocity=by_velocity
        )
        self.tops = settings.scale * np.array([a.velocity for a in limits])
        slower = [replace(a, velocity=top) for a, top in zip(limits, self.tops, strict=True)]
        self.ways = np.array([Axis(a, settings.period).brake_way for a in slower])
        self.q = np.array([rng.uniform(a.lower, a.upper) for a in limits])
        self.gain, self.lag = rng.choice((1.0, 0.5, 0.2)), rng.choice((0.0, 0.02, 0.05))
        self.speed = np.zeros(JOINTS)
        self.command: Any = None
        self.age = 0.0
        self.delay = rng.choice((0.0, 0.0, 0.02, 0.1))
        self.past: deque[tuple[float, float, np.ndarray]] = deque()  # now, steady, truth
        self.lie, self.left, self.offset = "", 0, np.zeros(JOINTS)
        self.last: tuple[np.ndarray, float] | None = None
        self.true_at = -math.inf  # steady time of the newest measurement with a good stamp
        self.misled = 0  # true measurements until somebody would enable it
        self.sure = False  # whether the truth was told when it was enabled
        self.excused = 0  # ticks for which a lie may have led it elsewhere
        self.led = np.zeros(JOINTS)  # so far out of its limits a lie has led it
        self.sent: Any = None  # the last live command since it was enabled
        self.held: tuple[float, ...] | None = None  # what halts have to say
        self.began = np.zeros(JOINTS)
        self.before = np.zeros((2, JOINTS))  # velocities of the last two periods

    def _limits(self) -> AxisLimits:
        r = self.rng
        return AxisLimits(
            -r.uniform(0.2, 2.5),
            r.uniform(0.2, 2.5),
            r.uniform(0.2, 3.0),
            r.choice((math.inf, r.uniform(1.0, 30.0))),
            r.choice((math.inf, r.uniform(20.0, 500.0))),
        )

    def part(self) -> ActionPart:
        return joint_part(self.name, [f"a{i}" for i in range(JOINTS)], self.kind)

    def rows(self, count: int) -> np.ndarray:
        r = self.rng
        numbers = np.random.default_rng(r.getrandbits(32))
        size = 10 ** r.uniform(-2.5, 0.8)
        walk = numbers.uniform(-size, size, (count, JOINTS))
        if r.random() < 0.4:  # all one way
            walk[:] = numbers.uniform(-0.1, 0.1, JOINTS)
        return self.q + np.cumsum(walk, 0) if self.kind == "joint_position" else walk

    # -- the arm ------------------------------------------------------------------------------

    def live(self, passed: float) -> None:
        if self.command is None:
            return
        if not self.joints.by_velocity:
            self.q = self.q + self.gain * (np.array(self.command.positions) - self.q)
            return
        begun, self.age = self.age, self.age + passed
        obeyed = max(0.0, min(passed, HOLD * self.settings.period - begun))
        for wanted, duration in ((self.command.velocities, obeyed), (0.0, passed - obeyed)):
            if duration > 0:
                share = 1.0 if not self.lag else 1 - math.exp(-duration / self.lag)
                self.speed = self.speed + share * (np.array(wanted) - self.speed)
                self.q = self.q + self.speed * duration

    def jog(self) -> None:
        """Somebody moves it while nothing is enabled, and waits until that was measured."""
        self.q = np.array([self.rng.uniform(a.lower, a.upper) for a in self.joints.limits])
        self.command, self.speed, self.misled = None, np.zeros(JOINTS), 20

    # -- what is told of it -------------------------------------------------------------------

    def tell(self, part: JointPart, now: float, steady: float) -> None:
        if self.past and abs(now - self.past[-1][0] - (steady - self.past[-1][1])) > 0.2:
            self.past.clear()  # the clock jumped: its old stamps mean nothing
        self.past.append((now, steady, self.q.copy()))
        while self.past[0][1] < steady - 2.0:
            self.past.popleft()
        self.left -= 1
        if self.left < 0 and self.lie:
            self.lie, self.excused = "", 50
        if not self.lie and self.rng.random() < 0.005:
            self.lie = self.rng.choice(LIES)
            self.found.faults[f"joints_{self.lie}"] += 1
            self.left = 1 if self.lie == "outlier" else self.rng.randint(10, 120)
            # Farther than a joint gets within the age that is permitted, where that is known.
            far = self.rng.uniform(0.5, 2.0) + 0.8 * np.array(self.fastest or [0.0] * JOINTS)
            self.offset = far * np.array([self.rng.choice((-1, 1)) for _ in range(JOINTS)])
        for values, stamp in self._told(now, steady):
            part.measured(list(self.joints.names), values.tolist(), stamp, now, steady)
            if 0 < stamp <= now + 0.2:
                self.true_at = max(self.true_at, steady - max(0.0, now - stamp))

    def _told(self, now: float, steady: float) -> list[tuple[np.ndarray, float]]:
        r, lie = self.rng, self.lie
        old = next((p for p in reversed(self.past) if p[1] <= steady - self.delay), None)
        entry = self.past[0] if lie == "late" else old
        if entry is None or lie == "silent":
            return []
        values, stamp = entry[2], entry[0]
        if lie == "repeated" and self.last:
            return [self.last]
        if lie in ("frozen", "noisy") and self.last:
            noise = r.uniform(-2e-4, 2e-4) if lie == "noisy" else 0.0
            return [(self.last[0] + noise, stamp)]
        if lie != "late":
            self.last = values, stamp
        self.misled = 5 if lie == "elsewhere" else max(0, self.misled - (not lie))
        if lie in ("outlier", "elsewhere"):
            return [(values + self.offset, stamp)]
        if lie == "two":
            return [(values, stamp), (values + self.offset, now)][:: r.choice((1, -1))]
        if lie == "stamps":
            ahead = 10 ** r.uniform(-0.69, 4.0)
            stamp = r.choice((0.0, -5.0, now + ahead, now - r.uniform(0.6, 900.0)))
        return [(values, stamp)]

    # -- the rules ----------------------------------------------------------------------------

    def enabled(self) -> None:
        self.sent = self.held = None
        self.before = np.zeros((2, JOINTS))
        # What freezes is no reason to begin elsewhere.
        self.sure = self.lie in ("", "frozen") and not self.excused
        self.excused = max(self.excused, 5)

    def check(self, command: Any, on: bool, steady: float) -> None:
        count, live = self.found.count, command is not None and command.live
        if not on:
            count("motion_while_not_enabled", live and command.moves)
            if live and not self.joints.by_velocity:
                count("held_elsewhere", command.positions != self.held)
            if live:
                self.apply(command)
            return
        speeds = np.zeros(JOINTS)
        if command is None:
            count("silent_in_motion", self.sent is not None and self.sent.moves)
        else:
            count("dry_run_while_enabled", not live)
            numbers = [*command.positions, *command.velocities]
            count("not_finite", not all(map(math.isfinite, numbers)))
            speeds = np.array(command.velocities)
            self._check_place(command, speeds)
            unseen = steady - self.true_at > self.settings.watchdogs.pose_age
            count("motion_unseen", command.moves and unseen)
            self.sent, self.held = command, command.positions
            self.apply(command)
        self._check_limits(speeds)
        self.before = np.array([self.before[1], speeds])

    def apply(self, command: Any) -> None:
        self.command, self.age = command, 0.0

    def _check_place(self, command: Any, speeds: np.ndarray) -> None:
        count, period = self.found.count, self.settings.period
        if self.joints.by_velocity:
            return
        at = np.array(command.positions)
        came_from = at - speeds * period if self.sent is None else np.array(self.sent.positions)
        if self.sent is None:
            self.began = came_from
            near = np.abs(came_from - self.q).max() < self.joints.jump + 0.35
            count("begins_elsewhere", not near and self.sure)
        way = at - came_from
        count("jumps", bool((np.abs(way - speeds * period) > 1e-9).any()))
        low = np.minimum([a.lower for a in self.joints.limits], self.began)
        high = np.maximum([a.upper for a in self.joints.limits], self.began)
        count("position", bool(((at < low - 1e-9) | (at > high + 1e-9)).any()))

    def _check_limits(self, speeds: np.ndarray) -> None:
        period, limits, count = self.settings.period, self.joints.limits, self.found.count
        now, last = (speeds - self.before[1]) / period, (self.before[1] - self.before[0]) / period
        scale = self.settings.scale
        for name, numbers, most in (
            ("velocity", speeds, [scale * a.velocity for a in limits]),
            ("acceleration", now, [a.acceleration for a in limits]),
            ("jerk", (now - last) / period, [a.jerk for a in limits]),
        ):
            bound = np.array(most) * SLACK + 1e-6
            count(name, bool((np.abs(numbers) > bound).any()))

    def check_arm(self) -> None:
        """The joints of an arm that is driven by velocity really stay within their limits."""
        self.excused = max(0, self.excused - 1)
        if not self.joints.by_velocity:
            return
        low = np.array([a.lower for a in self.joints.limits])
        high = np.array([a.upper for a in self.joints.limits])
        outside = np.maximum(np.maximum(low - self.q, self.q - high), 0.0)
        # Where it is not known how fast joints can be, the lie of an only source about their place
        # cannot be known as one: it leads the arm out by no more than it is wrong. When it is
        # over the arm may be outside, and is until it is wanted elsewhere, but goes no farther.
        if not self.fastest and (self.lie in PLACES or self.excused):
            self.led = np.maximum(self.led, np.minimum(outside, np.abs(self.offset)))
        else:
            self.led = np.minimum(self.led, outside)
        # It may be told a command late, and goes on for `HOLD` periods and its lag; where periods
        # are late while it brakes, each step of that is longer than it was told.
        late = self.tops * (3 * self.settings.period + self.delay + self.lag) + self.ways / 2
        beyond = float(np.max(outside - self.led - late))
        self.found.farthest = max(self.found.farthest, beyond)
        self.found.count("arm_outside", beyond > 0)


class Base:
    """A simulated base: nothing is measured of it."""

    def __init__(self, rng: random.Random, settings: Settings, found: Findings):
        self.rng, self.settings, self.found = rng, settings, found

        def limit(low: float, high: float) -> float:
            return rng.uniform(low, high) if rng.random() < 0.8 else 0.0

        self.limits = BaseLimits(
            (limit(0.1, 1.5), limit(0.3, 5.0), limit(3.0, 50.0)),
            (limit(0.2, 2.0), limit(1.0, 10.0), limit(5.0, 100.0)),
            holonomic=rng.random() < 0.5,
        )
        self.before = [(v.ZERO, v.ZERO), (v.ZERO, v.ZERO)]

    def part(self) -> ActionPart:
        names = ("x", "y") if self.limits.holonomic else ("x",)
        dims = (*(DimSpec(n, "m/s") for n in names), DimSpec("rz", "rad/s"))
        return ActionPart("base", "base_twist", dims, "base")

    def rows(self, count: int) -> np.ndarray:
        numbers = np.random.default_rng(self.rng.getrandbits(32))
        size = 10 ** self.rng.uniform(-2, 1)
        return numbers.uniform(-size, size, (count, len(self.part())))

    def enabled(self) -> None:
        self.before = [(v.ZERO, v.ZERO), (v.ZERO, v.ZERO)]

    def check(self, command: Any, on: bool, steady: float) -> None:
        count, live = self.found.count, command is not None and command.live
        if not on:
            count("motion_while_not_enabled", live and command.moves)
            return
        current = (command.linear, command.angular) if command is not None else (v.ZERO, v.ZERO)
        count("dry_run_while_enabled", command is not None and not live)
        count("not_finite", not all(map(math.isfinite, [*current[0], *current[1]])))
        sideways = current[0][1] and not self.limits.holonomic
        count("no_such_way", bool(sideways or current[0][2] or any(current[1][:2])))
        for i, (name, limits) in enumerate(
            (("linear", self.limits.linear), ("angular", self.limits.angular))
        ):
            top, steepest, jerk = (most or math.inf for most in limits)
            old, last, period = self.before[0][i], self.before[1][i], self.settings.period
            now = v.scale(v.subtract(current[i], last), 1 / period)
            then = v.scale(v.subtract(last, old), 1 / period)
            change = v.norm(v.subtract(now, then)) / period
            count(f"{name}_velocity", v.norm(current[i]) > top * SLACK)
            count(f"{name}_acceleration", v.norm(now) > steepest * SLACK + 1e-9)
            count(f"{name}_jerk", change > jerk * SLACK + 1e-6)
        self.before = [self.before[1], current]


class Trial:
    """A commander with its robot, and a model that misbehaves."""

    def __init__(self, rng: random.Random, found: Findings, robot: str):
        self.rng, self.found = rng, found
        self.settings = s = Settings(
            rate=rng.choice((20.0, 33.0, 50.0, 100.0)),
            scale=rng.choice((0.1, 0.5, 1.0)),
            execute_steps=rng.choice((0, 1, 4)),
            align=rng.choice(("stamp", "arrival")),
            ensemble=rng.choice((None, 0.1)),
            blend=rng.choice((0.0, 0.1)),
            stretch=rng.choice((1.0, 1.0, 2.0)),
            watchdogs=Watchdogs(heartbeat=rng.choice((0.0, 0.4))),
        )
        self.arms = [Arm(rng, name, s, found) for name in ARMS] if robot == "arms" else []
        self.base = Base(rng, s, found) if robot == "base" else None
        self.grippers = [name.replace("arm", "gripper") for name in ARMS if self.arms]
        self.commander = RobotCommander(s, self._parts)
        parts = [p.part() for p in self._moving()] + [gripper_part(n) for n in self.grippers]
        self.specs = [ActionSpec(tuple(parts), dt) for dt in (0.05, 0.1, 0.2)]
        self.now, self.steady = 1000.0, 50.0
        self.due: list[tuple[float, float, ActionChunk]] = []
        self.others, self.quiet, self.mute, self.stopped_clock = "", 0, 0, 0
        self.fault_at: int | None = None
        self.off = 0  # ticks since it was enabled last
        self.heard = False

    def _moving(self) -> list[Any]:
        return [*self.arms, *([self.base] if self.base else [])]

    def _parts(self, safety: Any) -> list[Any]:
        s = self.settings
        parts: list[Any] = [JointPart(a.name, s, a.joints, safety) for a in self.arms]
        parts += [GripperPart(name, s, safety) for name in self.grippers]
        return parts + ([BasePart("base", s, self.base.limits, safety)] if self.base else [])

    def run(self, steps: int) -> None:
        self.tick()  # the clocks are known from here on
        for _ in range(steps - 1):
            if not self.commander.safety.enabled:
                for arm in self.arms:
                    if self.rng.random() < 0.005:
                        arm.jog()
                if self.rng.random() < 0.2 and not any(arm.misled for arm in self.arms):
                    self.enable()
            if self.mute == 0 and self.rng.random() < 0.3:
                delay = self.rng.choice((0.0, 0.05, 0.3)) * self.rng.random()
                self.due.append((self.steady + delay, self.now, self.chunk()))
            if self.rng.random() < 0.005:
                self.fault()
            self.tick()
        safety = self.commander.safety
        self.found.stops.update(safety.stops)
        self.found.clips.update(safety.clips)
        self.found.refusals.update(safety.refusals)

    def enable(self) -> None:
        self.others, self.quiet = "", 0
        self.commander.safety.heartbeat(self.steady)
        refused = self.commander.enable(self.steady)
        self.found.count("enabled_without_a_chunk", not refused and not self.heard)
        if refused:
            return
        self.found.enabled += 1
        self.off, self.fault_at = 0, None
        for part in self._moving():
            part.enabled()

    def chunk(self) -> ActionChunk:
        count = self.rng.randint(1, 8)
        rows = [part.rows(count) for part in self._moving()]
        rows += [np.full((count, 1), self.rng.random()) for _ in self.grippers]
        self.found.chunks += 1
        return ActionChunk(np.hstack(rows), self.rng.choice(self.specs))

    def fault(self) -> None:
        """Something goes wrong; what must stop the robot at once is remembered as such."""
        r, kind = self.rng, self.rng.choice(FAULTS)
        self.found.faults[kind] += 1
        at_once, ticks, chunk = True, int(1.5 / self.settings.period), self.chunk()
        stamp: float | None = None
        if kind in ("nan", "inf"):
            bad = math.nan if kind == "nan" else -math.inf
            chunk.actions[r.randrange(len(chunk)), r.randrange(len(chunk.spec))] = bad
            stamp = self.now
        elif kind == "empty":
            chunk, stamp = ActionChunk(chunk.actions[:0], chunk.spec), self.now
        elif kind == "wrong_spec":
            spec = ActionSpec((joint_part("third_arm", "abc"),))
            chunk, stamp = ActionChunk(np.zeros((2, 3)), spec), self.now
        elif kind == "odd_dt":
            odd = r.choice((5e-324, 1e-9, 0.0, -0.1, 1e308, math.inf, math.nan))
            chunk = ActionChunk(chunk.actions, replace(chunk.spec, dt=odd))
            stamp = self.now
        elif kind == "old_image":
            stamp = self.now - r.uniform(1.1, 1e4)
        elif kind == "future_image":
            stamp = self.now + r.uniform(1.1, 1e4)
        elif kind == "clock_back":
            self.now -= r.uniform(0.5, 900.0)
        elif kind == "clock_forward":
            self.now += r.uniform(0.5, 900.0)
        elif kind == "late":
            gap = r.uniform(0.55, 3.0)
            self.now, self.steady = self.now + gap, self.steady + gap
            for arm in self.arms:
                arm.live(gap)
        elif kind == "second_publisher":
            self.others = "1 more publish on /action"
        elif kind == "disable":
            self.commander.disable()
        else:  # the watchdog's bound says when it is a fault
            at_once = False
            name = {"no_heartbeat": "quiet", "stall": "mute", "clock_stopped": "stopped_clock"}
            setattr(self, name[kind], ticks)
        if stamp is not None:
            self.commander.accept(chunk, stamp, self.now, self.steady)
        if at_once and self.fault_at is None:
            self.fault_at = self.found.steps

    def tick(self) -> None:
        c, r = self.commander, self.rng
        passed = max(1e-4, c.period * (1 + r.choice((0.0, 0.0, 0.4, -0.4, 2.0)) * r.random()))
        if self.stopped_clock:
            self.stopped_clock -= 1
        else:
            self.now += passed
        self.steady += passed
        for arm in self.arms:
            arm.live(passed)
            arm.check_arm()
            part = c.parts[arm.name]
            assert isinstance(part, JointPart)
            arm.tell(part, self.now, self.steady)
        if self.quiet == 0:
            c.safety.heartbeat(self.steady)
        self.quiet, self.mute = max(0, self.quiet - 1), max(0, self.mute - 1)
        for entry in [d for d in self.due if d[0] <= self.steady]:
            self.due.remove(entry)
            c.accept(entry[2], entry[1], self.now, self.steady)
            self.heard = True
        before = c.safety.enabled
        commands = c.tick(self.now, self.steady, self.others)
        self.found.steps += 1
        self.check(commands, before)

    def check(self, commands: dict[str, Any], before: bool) -> None:
        found, on = self.found, self.commander.safety.enabled
        live = [command for command in commands.values() if command.live]
        self.off = 0 if on else self.off + 1
        found.count("enabled_itself", on and not before)
        found.count("more_than_two_halts", not on and bool(live) and self.off > 2)
        if self.fault_at is not None:
            found.count("fault_not_stopped_within_one_period", on)
            self.fault_at = None
        for name in self.grippers:
            told = name in commands and commands[name].live
            found.count("gripper_while_not_enabled", not on and told)
        found.commands += bool(live)
        for name, part in zip([*ARMS] if self.arms else ["base"], self._moving(), strict=True):
            command = commands.get(name)
            found.moving += on and command is not None and command.moves
            part.check(command, on, self.steady)


def fuzz(robot: str, steps: int, seed: int = 0, per_trial: int = 500) -> Findings:
    """Runs at least `steps` command periods, with new settings after every `per_trial`."""
    found, rng = Findings(), random.Random(f"{robot} {seed}")
    while found.steps < steps:
        Trial(rng, found, robot).run(min(per_trial, steps - found.steps))
    return found


def fuzz_in_parallel(robot: str, steps: int, seed: int, jobs: int) -> Findings:
    """The same, shared out among processes."""
    shares = [steps // jobs + (i < steps % jobs) for i in range(jobs)]
    found = Findings()
    with ProcessPoolExecutor(jobs) as pool:
        seeds = [seed * 1000 + i for i in range(jobs)]
        for each in pool.map(fuzz, [robot] * jobs, shares, seeds):
            found.add(each)
    return found


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
    from common import add_output, keep

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="of each robot")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    args = parser.parse_args()
    report: dict[str, Any] = {"seed": args.seed, "jobs": args.jobs}
    for robot in ROBOTS:
        begun = time.perf_counter()
        found = fuzz_in_parallel(robot, args.steps, args.seed, args.jobs)
        seconds = round(time.perf_counter() - begun, 1)
        farthest = found.farthest if math.isfinite(found.farthest) else None
        report[robot] = {**vars(found), "farthest": farthest, "seconds": seconds}
        report[robot]["wrong_in_all"] = found.wrong.total()
    keep(report, args.output)
    return 1 if any(report[robot]["wrong_in_all"] for robot in ROBOTS) else 0


if __name__ == "__main__":
    raise SystemExit(main())
