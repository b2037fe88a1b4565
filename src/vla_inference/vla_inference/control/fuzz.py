"""Random chunks, delays and faults against `Commander`, and what must never be seen come out.

Called by the tests and by bench/safety_fuzz.py. What is checked here is computed from the commands
alone, not asked of the code under test. All chance comes from the seed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vla_inference.control import vectors as v
from vla_inference.control.commander import Commander, Settings
from vla_inference.control.commands import Pose
from vla_inference.control.limits import WORKSPACE, SafetyLimits
from vla_inference.control.safety import Distribution, Watchdogs
from vla_inference.types import ActionChunk, eef_delta_spec

SLACK = 1 + 1e-6
FAULTS = (
    "nan", "inf", "old_picture", "future_picture", "clock_back", "clock_forward", "late",
    "second_publisher", "no_heartbeat", "no_pose", "stall", "disable", "empty", "wrong_spec",
)  # fmt: skip
SPECS = {
    (rotation, frame, dt): eef_delta_spec(rotation, frame, dt)
    for rotation in ("rotvec", "rpy")
    for frame in ("base", "tool")
    for dt in (0.05, 0.1, 0.2)
}


@dataclass
class Findings:
    """What was tried and what went wrong; `wrong` must stay empty."""

    chunks: int = 0
    ticks: int = 0
    commands: int = 0
    moving: int = 0
    enabled: int = 0
    faults: Counter = field(default_factory=Counter)
    stops: Counter = field(default_factory=Counter)
    clips: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)
    slowest_stop: int = 0  # command periods from a fault to the halt

    def count(self, kind: str, true: bool) -> None:
        if true:
            self.wrong[kind] += 1


def random_settings(rng: random.Random) -> Settings:
    def limit(low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.random() < 0.8 else 0.0

    box = ((-0.04, -0.05, -0.02), (0.05, 0.03, 0.06)) if rng.random() < 0.5 else None
    limits = SafetyLimits(
        translation_per_step=limit(0.005, 0.05),
        rotation_per_step=limit(0.05, 0.5),
        linear_velocity=limit(0.05, 0.5),
        angular_velocity=limit(0.2, 2.0),
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
        needs_pose=box is not None or rng.random() < 0.5,
        limits=limits,
        watchdogs=Watchdogs(heartbeat=rng.choice((0.0, 0.4))),
        distribution=Distribution.from_statistics(statistics, 1.0) if rng.random() < 0.3 else None,
    )


class Trial:
    """One commander, one robot that follows it more or less, and a model that misbehaves."""

    def __init__(self, rng: random.Random, findings: Findings):
        self.rng, self.found = rng, findings
        self.commander = Commander(random_settings(rng))
        self.settings = self.commander.settings
        self.frame = rng.choice(("base", "tool"))
        self.now, self.steady = 1000.0, 50.0
        self.robot = self.seen = Pose((0.0, 0.0, 0.0))  # where it is, and was measured last
        self.velocity = [(v.ZERO, v.ZERO), (v.ZERO, v.ZERO)]  # the last two
        self.known = 0  # how many commands in a row the above know of
        self.due: list[tuple[float, float, ActionChunk]] = []  # steady time, stamp, chunk
        self.fault_at: int | None = None
        self.ticks_off = 0  # since it was enabled last
        self.others, self.quiet, self.mute, self.blind = 0, 0, 0, 0

    def run(self, chunks: int) -> None:
        self.tick()  # the clocks are known from here on
        begun = self.found.chunks
        while self.found.chunks - begun < chunks:
            if not self.commander.safety.enabled and self.rng.random() < 0.2:
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
        self.others = self.quiet = self.blind = 0
        self.commander.safety.heartbeat(self.steady)
        self.commander.measured(self.robot, self.steady)
        self.seen = self.robot
        refused = self.commander.enable(self.steady)
        self.found.count("enable_refused_without_reason", bool(refused))
        self.found.enabled += 1
        self.velocity = [(v.ZERO, v.ZERO)] * 2
        self.known = 2
        self.ticks_off, self.fault_at = 0, None

    def chunk(self) -> ActionChunk:
        r = self.rng
        # A model that changes its frame is refused; mostly it doesn't.
        frame = self.frame if r.random() < 0.99 else "tool"
        spec = SPECS[r.choice(("rotvec", "rpy")), frame, r.choice((0.05, 0.1, 0.2))]
        size = 10 ** r.uniform(-3, 0.5 if r.random() < 0.1 else -1)
        numbers = np.random.default_rng(r.getrandbits(32))
        actions = numbers.uniform(-size, size, (r.randint(1, 8), 7))
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
            spec = SPECS["rotvec", "base", 0.05]
            wrong = type(spec)(spec.dims[:6], dt=0.05)
            self.deliver(self.now, ActionChunk(np.zeros((2, 6)), wrong))
        elif kind == "old_picture":
            self.deliver(self.now - self.rng.uniform(1.1, 1e4), self.chunk())
        elif kind == "future_picture":
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
            self.others = self.rng.randint(1, 3)
        elif kind == "disable":
            c.disable()
        else:  # silence of something: the watchdog's bound says when it is a fault
            at_once = False
            ticks = int(1.5 / c.period)
            if kind == "no_heartbeat":
                self.quiet = ticks
            elif kind == "no_pose":
                self.blind = ticks
            else:
                self.mute = ticks
        if at_once and self.fault_at is None:
            self.fault_at = self.found.ticks

    def deliver(self, stamp: float, chunk: ActionChunk) -> None:
        if not self.settings.distribution or np.isfinite(chunk.actions).all():
            self.found.chunks += 1
        self.commander.accept(chunk, stamp, self.now, self.steady)

    def tick(self) -> None:
        c, r = self.commander, self.rng
        passed = max(0.0, c.period * (1 + r.choice((0.0, 0.0, 0.4, -0.4, 2.0)) * r.random()))
        self.now += passed
        self.steady += passed
        if self.quiet == 0:
            c.safety.heartbeat(self.steady)
        if self.blind == 0:
            if r.random() < 0.01:  # held up, or pushed
                self.robot = self.robot.moved((r.uniform(-1, 1), 0.1, 0.0), v.ZERO, 0.08, False)
            c.measured(self.robot, self.steady)
            self.seen = self.robot
        self.quiet, self.blind, self.mute = (
            max(0, n - 1) for n in (self.quiet, self.blind, self.mute)
        )
        for entry in [d for d in self.due if d[0] <= self.steady]:
            self.due.remove(entry)
            c.accept(entry[2], entry[1], self.now, self.steady)
        before = c.safety.enabled
        command = c.tick(self.now, self.steady, self.others)
        self.found.ticks += 1
        self.check(command, before)

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
        if command is not None and command.moves:
            follows = self.rng.choice((1.0, 1.0, 1.0, 0.9))
            self.robot = self.robot.moved(
                command.linear, command.angular, follows * c.period, c.in_tool
            )

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
        box = limits.workspace
        if box and command is not None and command.target is not None and command.moves:
            for low, x, high, was in zip(
                box[0], command.target.position, box[1], self.seen.position, strict=True
            ):
                # Pushed out by hand, it may come back.
                outside = x < min(low, was) - 1e-7 or x > max(high, was) + 1e-7
                found.count("workspace", outside)

    was_walled = False


def fuzz(chunks: int, seed: int = 0, per_trial: int = 200) -> Findings:
    """Send at least `chunks` chunks, with new settings after every `per_trial`."""
    findings = Findings()
    rng = random.Random(seed)
    while findings.chunks < chunks:
        Trial(rng, findings).run(min(per_trial, chunks - findings.chunks))
    return findings
