"""Fuzzer of `JointCommander`: an arm with false joint states, and the rules the output must keep.

The arm follows as a joint_trajectory_controller does: each command is reached in `lead` seconds.
What is checked is computed from commands and from the true arm. All chance comes from the seed.

A command may be as far ahead of the arm as its joints go in `lead`. Nobody can know how far a hand
has moved them since they were measured truly last: by that, and by a measurement's noise, a
command may be farther ahead, and the arm as much faster.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from vla_inference.control.arm import Arm
from vla_inference.control.ik import RESTING, IkSettings, JointCommander
from vla_inference.control.joint_states import JUMPS

SLACK = 1 + 1e-6
NOISE = 1e-5  # rad or m, of a measurement
LIES = ("freeze", "repeat", "jump", "late", "future", "stray", "single", "partial", "nan", "gone")
BELIEVED = ("truth", "partial", "single", "freeze")  # with these there may be commands all along


@dataclass
class IkFindings:
    """Counts of what was tried and what went wrong; `wrong` must stay empty.

    fastest: of the true arm's joints, as a share of what they may, see above.
    """

    ticks: int = 0
    commands: int = 0
    told: int = 0  # twists and targets
    moved_by_hand: int = 0
    fastest: float = 0.0
    lies: Counter = field(default_factory=Counter)
    refusals: Counter = field(default_factory=Counter)
    clips: Counter = field(default_factory=Counter)
    silences: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)

    def count(self, kind: str, true: bool) -> None:
        if true:
            self.wrong[kind] += 1


class IkTrial:
    """One arm and its commander; false joint states come one kind at a time."""

    def __init__(self, arm: Arm, rng: random.Random, found: IkFindings):
        self.arm, self.rng, self.found = arm, rng, found
        self.settings = IkSettings(
            rate=rng.choice((50.0, 100.0)),
            velocity=rng.choice((0.3, 1.0, 3.0)),
            lead=rng.choice((0.06, 0.1, 0.2)),
            acceleration=rng.choice((5.0, 10.0, 50.0)),
        )
        self.commander = JointCommander(arm, self.settings)
        self.period = self.commander.period
        self.limit = np.minimum(arm.velocity, self.settings.velocity)
        low, high = np.maximum(arm.lower, -2.5), np.minimum(arm.upper, 2.5)
        share = np.array([rng.uniform(0.2, 0.8) for _ in arm.names])
        self.at = low + share * (high - low)  # where the arm truly is
        self.goal, self.due = self.at.copy(), 0.0  # of the controller, and when it is reached
        self.steady = 100.0
        self.past: deque[np.ndarray] = deque([self.at.copy()], maxlen=200)
        self.by_hand = np.zeros(len(self.at))  # the way that it was moved so, in all
        self.hands: deque[np.ndarray] = deque([self.by_hand], maxlen=200)  # the same, as `past`
        self.seen = self.by_hand.copy()  # of that, by when it was measured truly last
        self.most = self.limit  # velocities at which the last command may be reached
        self.lie, self.lying, self.lasts, self.truths = "truth", 0, 0, 0
        self.false: np.ndarray = self.at
        self.last: np.ndarray | None = None  # command
        self.spoke = self.commanded = -1e9
        self.believable = -1e9  # when a sample came last that should be believed
        self.held = False
        self.wish = np.zeros(6)

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.steady += self.period
            self.move()
            self.choose()
            self.tell()
            self.command()
            self.tick()
        self.found.refusals.update(self.commander.refusals)
        self.found.clips.update(self.commander.clips)

    # -- the arm ------------------------------------------------------------------------------

    def move(self) -> None:
        """The motion of one period, by the controller or by hand."""
        # Held up behind joint states that are frozen, nobody can know how far it is behind.
        if self.lie == "freeze" or self.truths < 30:
            self.held &= self.lie not in ("truth", "freeze")
        elif self.rng.random() < 0.02:
            self.held = not self.held
        before, left = self.at, self.due - (self.steady - self.period)
        if self.held:  # and what is left of the way takes as long afterwards
            self.due += self.period
        elif left > 1e-9:
            self.at = self.at + (self.goal - self.at) * min(1.0, self.period / left)
            speed = float(np.max(np.abs(self.at - before) / (self.most * self.period)))
            self.found.fastest = max(self.found.fastest, speed)
            self.found.count("joint_speed", speed > SLACK)
        elif self.lie == "truth" and self.steady - self.spoke > 1.0 and self.rng.random() < 0.5:
            way = np.array([self.rng.uniform(-0.3, 0.3) for _ in self.at]) * self.period
            self.at = np.clip(self.at + way, self.arm.lower, self.arm.upper)
            self.by_hand = self.by_hand + np.abs(self.at - before)
            self.found.moved_by_hand += 1
        self.past.append(self.at.copy())
        self.hands.append(self.by_hand)

    # -- what is told of it -------------------------------------------------------------------

    def choose(self) -> None:
        self.lying -= 1
        if self.lie != "truth" and self.lying <= 0:
            self.lie, self.truths = "truth", 0
        elif self.lie == "truth" and self.truths > 10 and self.rng.random() < 0.02:
            self.lie, self.lying = self.rng.choice(LIES), self.rng.randrange(1, 60)
            self.lasts = self.lying
            self.found.lies[self.lie] += 1
            signs = np.array([self.rng.choice((-1, 1)) for _ in self.at])
            self.false = self.at + signs * self.rng.uniform(0.7, 2.0)
            if self.lie in ("stray", "single"):
                self.false = np.zeros(len(self.at)) if self.far(self.at) else self.false
            if self.lie == "single":
                self.lying = 1

    def far(self, at: np.ndarray) -> bool:
        """Whether zeros cannot be taken for it."""
        return float(np.abs(at).max()) > 0.7

    def hear(self, values: np.ndarray, age: float = 0.0, joints: slice = slice(None)) -> None:
        noisy = values + self.rng.uniform(-NOISE, NOISE)
        names = list(self.arm.names)[joints]
        self.commander.measured(names, noisy[joints].tolist(), self.steady, age)

    def hear_truth(self, back: int = 0, joints: slice = slice(None)) -> None:
        """What was true some periods ago."""
        self.hear(self.past[-1 - back], back * self.period, joints)
        if back * self.period <= self.settings.joint_timeout:
            self.seen[joints] = np.maximum(self.seen, self.hands[-1 - back])[joints]

    def tell(self) -> None:
        lie, half = self.lie, len(self.at) // 2
        if lie in BELIEVED:
            self.believable = self.steady
        if lie == "truth":
            self.truths += 1
            self.hear_truth(self.rng.randrange(0, min(2, len(self.past))))
        elif lie == "freeze":
            self.hear(self.frozen())
        elif lie == "repeat":
            self.hear(self.frozen(), self.since() * self.period)
        elif lie == "jump":
            self.hear(self.false)
        elif lie == "late":
            back = self.rng.randrange(len(self.past))
            self.hear_truth(back)
            if back * self.period <= self.settings.joint_timeout:
                self.believable = self.steady
        elif lie == "future":
            self.hear(self.at, -self.rng.uniform(0.25, 100.0))
        elif lie in ("stray", "single"):
            self.hear(self.false)
            if lie == "single" or self.rng.random() < 0.9:
                self.hear_truth()
                self.believable = self.steady
        elif lie == "partial":
            self.hear_truth(0, slice(half) if self.lying % 2 else slice(half, None))
        elif lie == "nan":
            self.hear(np.where(np.arange(len(self.at)) == 1, np.nan, self.at))

    def since(self) -> int:
        """Periods since the false joint states began."""
        return self.lasts - self.lying

    def frozen(self) -> np.ndarray:
        return self.past[-1 - min(self.since(), len(self.past) - 1)]

    # -- what is asked of it ------------------------------------------------------------------

    def command(self) -> None:
        phase = int(self.steady / 3.0) % 3  # now and then nobody commands
        if phase == 2 or self.rng.random() < 0.1:
            return
        age = self.rng.choice((0.0, 0.0, 0.02, 0.5, -0.5))
        if abs(age) < self.settings.timeout:
            self.commanded = self.steady - age
        self.found.told += 1
        if phase == 0:
            if self.rng.random() < 0.05:
                self.wish = np.array([self.rng.uniform(-1, 1) for _ in range(6)])
            self.commander.twist(self.wish, self.rng.random() < 0.5, self.steady, age)
            return
        pose = self.arm.pose(self.past[0])
        away = np.array([self.rng.uniform(-0.3, 0.3) for _ in range(3)])
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
        self.commander.target(pose[:3, 3] + away, quaternion, self.steady, age)

    # -- what comes out -----------------------------------------------------------------------

    def tick(self) -> None:
        s, found = self.settings, self.found
        said = self.commander.tick(self.steady)
        found.ticks += 1
        if said is None:
            if self.commander.trouble:
                found.silences[self.commander.trouble.split(":")[0]] += 1
            return
        found.commands += 1
        found.count("not_finite", not np.isfinite(said).all())
        low, high = np.minimum(self.arm.lower, self.at), np.maximum(self.arm.upper, self.at)
        found.count("joint_limit", bool(((said < low - 1e-6) | (said > high + 1e-6)).any()))
        if self.last is not None and self.steady - self.spoke <= s.lead + s.joint_timeout:
            step = np.abs(said - self.last) / (self.limit * self.period)
            found.count("command_step", float(step.max()) > SLACK)
        spent = self.steady - self.commanded - s.timeout
        found.count("after_the_command", spent > RESTING + 2 * self.period)
        blind = self.steady - self.believable - s.joint_timeout
        found.count("not_believable", blind > 2 * self.period)
        jumping = self.lie in ("jump", "stray") and self.since() > JUMPS
        found.count("while_it_jumps", jumping)
        self.last, self.spoke = said.copy(), self.steady
        self.goal, self.due = said.copy(), self.steady + s.lead
        self.most = self.limit + (NOISE + self.by_hand - self.seen) / s.lead


def ik_fuzz(arm: Arm, ticks: int, seed: int = 0, length: int = 2000) -> IkFindings:
    """Runs trials of `length` periods until there were `ticks` periods."""
    found = IkFindings()
    while found.ticks < ticks:
        rng = random.Random(f"{seed} {found.ticks}")
        IkTrial(arm, rng, found).run(min(length, ticks - found.ticks))
    return found
