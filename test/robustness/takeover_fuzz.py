#!/usr/bin/env python3
"""Fuzzes the hand-over between model and person: an arm by deltas, two arms by joints, a base.

    python test/robustness/takeover_fuzz.py [--hand-overs 1000] [--jobs 2] [--seed 0]
        [--output FILE]

All that fuzz.py and parts_fuzz.py try and check, limits above all, and a person who takes over and
gives back at random times, falls silent, sends old and broken chunks, of other kinds and in other
axes than the model's, or of some parts only. `wrong` must be empty, else the exit status is 1; it
also counts

- periods whose motion is by another source than was told to be in force when they began, also
  by what is told later;
- motion by what was read before the hand-over, or by a person who has been silent for too long;
- motion of a part that the person's last input left out;
- a robot that still moves 5 s after its person fell silent;
- periods without a command while a person commands, or until the model moves the robot again;
- stops by a source that is not in charge; broken chunks of one that is that do not stop it.

Needs no ROS.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import parts_fuzz

from vla_inference.control import HUMAN, MODEL
from vla_inference.control import vectors as v
from vla_inference.control.safety import IMAGE_AGE, STALL
from vla_inference.types import ActionChunk, ActionSpec, gripper_part, joint_spec

ROBOTS = ("eef", "arms", "base")
OF_CHUNKS = {"nan", "inf", "empty", "wrong_spec", "odd_dt", "old_image", "future_image"}
BROKEN = ("nan", "empty", "wrong_spec", "odd_dt")
HALTED = 5.0  # s in which any of these robots has braked
INPUTS = 20.0  # of a person [Hz]


@dataclass
class Taken:
    """Counts of what the person did and what went wrong."""

    hand_overs: int = 0
    while_enabled: int = 0
    periods: int = 0
    by_hand: int = 0
    moved_by_hand: int = 0
    silences: int = 0
    inputs: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str, true: bool) -> None:
        if true:
            self.wrong[kind] += 1

    def add(self, other: Taken) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


class Person:
    """Mixed into a trial, in front of it. `taken` is to be set before it runs."""

    taken: Taken
    commander: Any
    found: Any
    now: float
    steady: float
    fault_at: int | None

    def __init__(self, rng: random.Random, *more: Any):
        super().__init__(rng, *more)
        self.person = random.Random(rng.getrandbits(64))
        self.read: set[float] = set()  # stamps of the person's chunks
        self.messages: list[tuple[float, str]] = [(-math.inf, MODEL)]  # by sequence
        self.handed = -math.inf  # nothing that was read before may be executed
        self.pause = 0  # periods for which the person is silent
        self.input_at = -math.inf  # steady time of the last input since the hand-over
        self.since = -math.inf  # steady time of that, or of enabling if later
        self.waiting = False  # for the model's first motion
        self.left_out: set[str] = set()  # parts, of the last input
        self.commands: dict[str, Any] = {}

    # -- what a trial fills in ----------------------------------------------------------------

    def by_person(self) -> ActionChunk:
        """A person's chunk, of a few equal steps."""
        raise NotImplementedError

    def driven(self) -> list[str]:
        """The parts that are commanded in each period while they are held."""
        raise NotImplementedError

    def heard_chunk(self) -> None:
        """Called after each chunk of the person."""

    # -- the person ---------------------------------------------------------------------------

    def tick(self) -> None:
        c, r = self.commander, self.person
        if r.random() < 0.02:
            self.hand_over()
        self.pause = max(0, self.pause - 1)
        if not self.pause and r.random() < 0.01:
            self.pause = int(r.choice((0.1, 0.5, 10.0)) * r.random() / c.period)
        if not self.pause and r.random() < INPUTS * c.period:
            self.act(self.by_person())
        if r.random() < 0.003:
            self.err()
        enabled, stop = c.safety.enabled, c.safety.last_stop
        super().tick()  # type: ignore[misc]  # the trial's
        self.hear_source()
        if enabled and c.safety.last_stop is not stop:
            idle = c.safety.last_stop.kind in (STALL, IMAGE_AGE) and c.takeover.by_hand
            self.taken.count("stopped_by_an_idle_model", idle)
        self.check_source()

    def hear_source(self) -> None:
        takeover = self.commander.takeover
        if takeover.changes >= len(self.messages):
            self.messages.append((takeover.since, takeover.source))
            self.handed = -math.inf  # unless it is a hand-over

    def hand_over(self) -> None:
        c = self.commander
        by_hand = not c.takeover.by_hand
        c.take_over(by_hand, self.now, self.steady)
        self.hear_source()
        if c._window is not None:  # the period under way is still the other's
            before = self.in_force(c._window - c.period) == HUMAN
            self.taken.count("told_too_early", before == by_hand)
        self.handed = self.now if by_hand else c.takeover.since
        self.left_out = set()
        self.input_at, self.since, self.waiting = -math.inf, self.steady, not by_hand
        self.taken.hand_overs += 1
        self.taken.while_enabled += c.safety.enabled

    def act(self, chunk: ActionChunk) -> None:
        stamp = self.now - self.person.choice((1e-5, 1e-5, 0.02, 0.2, 1.0)) * self.person.random()
        self.read.add(stamp)
        self.taken.inputs += 1
        if self.commander.accept(chunk, stamp, self.now, self.steady, HUMAN):
            self.input_at = self.steady
            given = {part.name for part in chunk.spec.parts}
            self.left_out = {n for n in self.commander.parts if n and n not in given}
        self.heard_chunk()

    def err(self) -> None:
        """A broken chunk stops the robot, unless the model commands."""
        c, r, kind = self.commander, self.person, self.person.choice(BROKEN)
        self.taken.broken[kind] += 1
        chunk = self.by_person()
        if kind == "nan":
            chunk.actions[0, r.randrange(len(chunk.spec))] = math.nan
        elif kind == "empty":
            chunk = ActionChunk(chunk.actions[:0], chunk.spec)
        elif kind == "wrong_spec":
            chunk = ActionChunk(np.zeros((2, 3)), joint_spec({"third_arm": "abc"}))
        else:
            odd = r.choice((1e-9, 0.0, -0.1, math.inf, math.nan))
            chunk = ActionChunk(chunk.actions, replace(chunk.spec, dt=odd))
        enabled = c.safety.enabled
        c.accept(chunk, self.now, self.now, self.steady, HUMAN)
        if c.takeover.by_hand:
            self.taken.count("goes_on_after_a_broken_chunk", c.safety.enabled)
        else:
            self.taken.count("stopped_by_an_idle_person", enabled and not c.safety.enabled)

    def fault(self) -> None:
        """The model's broken chunks are none of the robot's while a person commands."""
        due, before, on = self.fault_at, dict(self.found.faults), self.commander.safety.enabled
        super().fault()  # type: ignore[misc]  # the trial's
        kind = next(k for k, n in self.found.faults.items() if n != before.get(k, 0))
        if kind in OF_CHUNKS and self.commander.takeover.by_hand:
            self.fault_at = due
            lost = on and not self.commander.safety.enabled
            self.taken.count("stopped_by_an_idle_model", lost)

    def enable(self) -> None:
        if self.commander.takeover.by_hand:  # then it needs no model
            self.found.chunks, self.heard = max(1, self.found.chunks), True
        super().enable()  # type: ignore[misc]  # the trial's

    # -- the rules ----------------------------------------------------------------------------

    def in_force(self, time: float) -> str:
        """As a recording knows it: by the last message with a stamp that is not after it."""
        return next(source for since, source in reversed(self.messages) if since <= time)

    def check_source(self) -> None:
        c, taken = self.commander, self.taken
        on, by_hand = c.safety.enabled, self.in_force(c._window - c.period) == HUMAN
        taken.periods += 1
        taken.by_hand += by_hand
        moved_by = [p._motion.stamp for p in c.parts.values() if p._motion is not None]
        if not by_hand and moved_by:  # also in a dry run
            self.waiting = False
        if not on:
            self.since = self.steady
            return
        for stamp in moved_by:
            taken.count("by_another_than_told", (stamp in self.read) != by_hand)
            taken.count("by_what_was_before", stamp < self.handed)
        if by_hand:
            silent = self.steady - self.input_at
            taken.moved_by_hand += bool(moved_by)
            some = any(c.parts[name]._motion is not None for name in self.left_out)
            taken.count("moves_what_was_left_out", some)
            taken.count("by_a_silent_person", bool(moved_by) and silent > c.takeover.timeout)
            moves = any(command.moves for command in self.commands.values())
            still = self.steady - max(self.input_at, self.since) > HALTED
            taken.count("never_halts", moves and still)
        lacking = [name for name in self.driven() if name not in self.commands]
        taken.count("gap", bool(lacking) and (by_hand or self.waiting))


class EefTrial(Person, fuzz.Trial):
    """An end effector by deltas, in axes that the person's may differ in."""

    def __init__(self, rng: random.Random, found: Any):
        super().__init__(rng, found)
        self.persons_frame = self.person.choice(("base", "tool"))
        self.in_tool: bool | None = None

    def driven(self) -> list[str]:
        return [""]

    def by_person(self) -> ActionChunk:
        r = self.person
        spec = fuzz.SPECS[r.choice(("rotvec", "rpy")), self.persons_frame, r.choice((0.05, 0.1))]
        row = [r.uniform(-1, 1) * 10 ** r.uniform(-3, 0) for _ in range(6)]
        row.append(r.choice((0.5, 0.5, 0.0, 1.0)))
        rows = np.tile(row, (r.randint(2, 6), 1))
        if r.random() < 0.1:  # no gripper
            return ActionChunk(rows[:, :6], ActionSpec(spec.parts[:1], spec.dt))
        return ActionChunk(rows, spec)

    def heard_chunk(self) -> None:
        """The last commands in the axes of the next."""
        before, self.in_tool = self.in_tool, self.commander.arm._in_tool
        pose = self.commander.robot.pose
        if before is None or self.in_tool in (None, before) or pose is None:
            return
        q = v.conjugate(pose.orientation) if self.in_tool else pose.orientation
        self.velocity = [(v.rotate(q, a), v.rotate(q, b)) for a, b in self.velocity]

    def check(self, command: Any, before: bool) -> None:
        self.heard_chunk()  # the model's
        self.commands = {"": command} if command is not None and command.live else {}
        super().check(command, before)


class PartsTrial(Person, parts_fuzz.Trial):
    """Arms by joints with grippers, or a base; the person's kinds differ, or parts are lacking."""

    def __init__(self, rng: random.Random, found: Any, robot: str):
        super().__init__(rng, found, robot)
        self.kinds: dict[str, str] = {}
        self.choose_kinds()

    def hand_over(self) -> None:
        super().hand_over()
        self.choose_kinds()

    def choose_kinds(self) -> None:
        for arm in self.arms:
            some = [k for k in parts_fuzz.KINDS if all(arm.joints.drift) or k != "joint_position"]
            self.kinds[arm.name] = self.person.choice(some)

    def driven(self) -> list[str]:
        return [*parts_fuzz.ARMS] if self.arms else ["base"]

    def by_person(self) -> ActionChunk:
        r = self.person
        count, parts, rows = r.randint(2, 6), [], []
        for each in self._moving():
            if parts and r.random() < 0.1:
                continue  # left out
            before = getattr(each, "kind", "")
            if before:
                each.kind = self.kinds[each.name]
            parts.append(each.part())
            rows.append(np.tile(each.rows(1), (count, 1)))
            each.kind = before
        for name in self.grippers:
            if r.random() < 0.9:
                parts.append(gripper_part(name))
                rows.append(np.full((count, 1), r.choice((0.5, 0.0, 1.0))))
        return ActionChunk(np.hstack(rows), ActionSpec(tuple(parts), r.choice((0.05, 0.1))))

    def check(self, commands: dict[str, Any], before: bool) -> None:
        self.commands = {name: command for name, command in commands.items() if command.live}
        super().check(commands, before)


def fuzz_hand_overs(robot: str, hand_overs: int, seed: int = 0) -> tuple[Any, Taken]:
    """At least so many, with new settings every now and then; what was found."""
    rng, taken = random.Random(f"{robot} {seed}"), Taken()
    found = fuzz.Findings() if robot == "eef" else parts_fuzz.Findings()
    while taken.hand_overs < hand_overs:
        trial = EefTrial(rng, found) if robot == "eef" else PartsTrial(rng, found, robot)
        trial.taken = taken
        trial.run(100 if robot == "eef" else 300)  # chunks; periods
        taken.silences += trial.commander.takeover.silences
    return found, taken


def fuzz_in_parallel(robot: str, hand_overs: int, seed: int, jobs: int) -> tuple[Any, Taken]:
    """The same, shared out among processes."""
    shares = [hand_overs // jobs + (i < hand_overs % jobs) for i in range(jobs)]
    seeds = [seed * 1000 + i for i in range(jobs)]
    with ProcessPoolExecutor(jobs) as pool:
        runs = list(pool.map(fuzz_hand_overs, [robot] * jobs, shares, seeds))
    found, taken = runs[0]
    for more, more_taken in runs[1:]:
        found.add(more)
        taken.add(more_taken)
    return found, taken


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
    from common import add_output, keep

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hand-overs", type=int, default=1000, help="of each robot")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    args = parser.parse_args()
    report: dict[str, Any] = {"seed": args.seed, "jobs": args.jobs}
    wrong = 0
    for robot in ROBOTS:
        begun = time.perf_counter()
        found, taken = fuzz_in_parallel(robot, args.hand_overs, args.seed, args.jobs)
        seconds = round(time.perf_counter() - begun, 1)
        farthest = found.farthest if math.isfinite(found.farthest) else None
        report[robot] = {**vars(taken), "limits": {**vars(found), "farthest": farthest}}
        report[robot]["seconds"] = seconds
        report[robot]["wrong_in_all"] = found.wrong.total() + taken.wrong.total()
        wrong += report[robot]["wrong_in_all"]
    keep(report, args.output)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
