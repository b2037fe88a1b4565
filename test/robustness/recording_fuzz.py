#!/usr/bin/env python3
"""Fuzzes recordings of hand-overs: who acted in each step, and what a person did there.

    python test/robustness/recording_fuzz.py [--hand-overs 1000] [--seed 0] [--output FILE]

Runs of several episodes in which a person takes over and gives back at any time, in and between
episodes, sends at a rate and with steps of their own, falls silent and lets go, while messages
come late. What the recorder keeps is read again and compared with the truth, which is known for
each millisecond. `wrong` must be empty, else the exit status is 1. Needs no running ROS.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest has it

from bags import Maker

from vla_inference.episodes.interventions import interventions
from vla_inference.types import Episode, eef_delta_spec
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.reader import BagSet
from vla_training.datasets.bag.takeover import HUMAN, MODEL
from vla_training.datasets.bag.writer import _parts
from vla_training.ros.recording import Recording

MS = 1_000_000  # ns
START = 100_000  # ms, when a run begins
STEP = 50  # ms, of the model
LATE = 300  # ms that a message may take
MAKER = Maker()


@dataclass
class Findings:
    hand_overs: int = 0
    between_episodes: int = 0
    episodes: int = 0
    steps: int = 0
    by_hand: int = 0
    with_a_hand_over: int = 0
    late: int = 0
    wrong: Counter[str] = field(default_factory=Counter)


@dataclass
class Shown:
    """An episode as it was: stamps of its images and their end, ms."""

    images: list[int]
    outcome: str


class Run:
    """Some episodes, ms by ms. human, moved: bool and m/s of the person, by ms from START on."""

    def __init__(self, rng: random.Random, episodes: int):
        self.rng, self.heard, self.last = rng, [], {}
        self.now, self.by_hand, self.hand_overs, self.between = START, False, 0, 0
        self.human: list[bool] = []
        self.moved: list[float] = []
        self.sent: set[int] = set()  # stamps of a person's chunks
        self.chunk: tuple[int, float] = (0, 0.0)  # of the person: its end, m/s
        self.next_input = 0
        self.say("source", types.SOURCE, 0, source=MODEL)
        self.shown = [self.episode(index) for index in range(episodes)]

    def say(self, role: str, kind: str, stamp: int, **fields: Any) -> None:
        """A message with that stamp (ms), which arrives late, but in order."""
        arrives = self.now + self.rng.randrange(LATE)
        self.last[role] = max(arrives * MS, self.last.get(role, 0) + 1)
        self.heard.append(MAKER.heard(role, kind, stamp * MS, self.last[role], **fields))

    def chunk_of(self, role: str, x: float, dt: int, count: int = 1) -> None:
        spec = eef_delta_spec(dt=dt / 1000)
        actions = np.array([x, 0, 0, 0, 0, 0, 1] * count, np.float64)
        parts = _parts(MAKER, spec)
        self.say(role, types.CHUNK, self.now, parts=parts, dt=spec.dt, actions=actions)

    def status(self, index: int, step: int, outcome: str = "running") -> None:
        self.now += 1
        self.tick()
        done = outcome != "running"
        fields = {"index": index, "step": step, "done": done, "outcome": outcome}
        self.say("episode", types.EPISODE, self.now, **fields)

    def tick(self) -> None:
        """The millisecond before `now` is over."""
        end, speed = self.chunk
        self.human.append(self.by_hand)
        self.moved.append(speed if self.by_hand and self.now <= end else 0.0)

    def wait(self, length: int) -> None:
        for _ in range(length):
            if self.rng.random() < 0.004:
                self.hand_over()
            if self.by_hand and self.now >= self.next_input:
                self.input()
            self.now += 1
            self.tick()

    def hand_over(self) -> None:
        self.by_hand = not self.by_hand
        self.hand_overs += 1
        self.chunk, self.next_input = (0, 0.0), self.now + self.rng.randrange(80)
        self.say("source", types.SOURCE, self.now, source=HUMAN if self.by_hand else MODEL)

    def input(self) -> None:
        rng, dt, count = self.rng, self.rng.choice((20, 50)), self.rng.randint(1, 4)
        x = rng.choice((0.0, rng.uniform(-0.01, 0.01)))
        self.chunk_of("human_action", x, dt, count)
        self.sent.add(self.now)
        self.chunk = self.now + dt * count, 1000 * x / dt
        self.next_input = self.now + (rng.randint(40, 60) if rng.random() < 0.9 else 400)

    def episode(self, index: int) -> Shown:
        before = self.hand_overs
        self.wait(self.rng.randint(1, 600))
        self.between += self.hand_overs - before
        self.status(index, 0)
        images, apart = [], self.rng.choice((33, 50, 100))
        for t in range(count := self.rng.randint(2, 30)):
            images.append(self.now)
            fields = {"encoding": "mono8", "height": 8, "width": 8, "step": 8}
            self.say("image", types.IMAGE, self.now, data=np.full(64, t, np.uint8), **fields)
            self.chunk_of("action", 1 + t, STEP)
            self.wait(round(apart * self.rng.uniform(0.8, 1.2)))
            outcome = self.rng.choice(("success", "timeout")) if t == count - 1 else "running"
            self.status(index, t + 1, outcome)
        return Shown(images, outcome)


def compare(run: Run, shown: Shown, episode: Episode, found: Findings) -> None:
    """Counts what is wrong in an episode that was read."""
    stamps = [round(s.observation.stamp * 1000) for s in episode.steps]
    if episode.metadata["outcome"] != shown.outcome:
        found.wrong["outcome"] += 1
    acted = interventions(episode)
    if acted is None:
        found.wrong["who_acted_unknown"] += 1
        return
    usual = float(np.median(np.diff(shown.images)))
    ends = [*shown.images[1:], shown.images[-1] + round(usual)]
    read = {stamp: t for t, stamp in enumerate(stamps)}
    human, moved = np.array(run.human), np.array(run.moved)
    for number, (begin, end) in enumerate(zip(shown.images, ends, strict=True)):
        part = human[begin - START : end - START]
        if end - START > len(human) or (number == len(ends) - 1 and usual % 1):
            continue  # of the last image: no more is known, or half a millisecond counts
        wanted = bool(part.any()) and 2 * int(part.sum()) >= len(part)
        found.steps += 1
        found.by_hand += wanted
        found.with_a_hand_over += bool(part.any()) and not part.all()
        if begin not in read:
            told = any(shown.images[0] <= stamp <= ends[-1] for stamp in run.sent)
            if told or not wanted:  # of a person who did nothing nothing is known
                found.wrong["step_is_missing"] += 1
        elif acted[read[begin]] != wanted:
            found.wrong["who_acted"] += 1
        elif not wanted and episode.actions[read[begin], 0] != 1 + number:
            found.wrong["action_of_the_model"] += 1
        elif wanted and begin not in run.sent and number < len(ends) - 1:  # it may be cut off
            first, last = longest(part)
            window = moved[begin - START :][first : min(first + STEP, last)]
            x = STEP / 1000 * window.mean()
            if abs(episode.actions[read[begin], 0] - x) > 1e-6:
                found.wrong["action_of_the_person"] += 1


def longest(part: np.ndarray) -> tuple[int, int]:
    """Begin and end of the first longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], part.astype(int), [0]])))
    begins, ends = edges[::2], edges[1::2]
    best = (ends - begins).argmax()
    return int(begins[best]), int(ends[best])


def fuzz_recordings(hand_overs: int, seed: int, folder: Path) -> Findings:
    """At least so many hand-overs, in runs with bags in a folder of their own each."""
    rng, found = random.Random(seed), Findings()
    while found.hand_overs < hand_overs:
        run = Run(rng, rng.randint(1, 4))
        bags = folder / f"run_{found.episodes}"
        recording = Recording(bags, images="raw")
        for message in sorted(run.heard, key=lambda m: m.log):
            recording.hear(message)
        recording.close()
        read = BagSet(bags)
        found.hand_overs += run.hand_overs
        found.between_episodes += run.between
        found.episodes += len(run.shown)
        found.late += recording.late
        if len(read) != len(run.shown):
            found.wrong["episode_is_missing"] += 1
            continue
        for shown, episode in zip(run.shown, read, strict=True):
            compare(run, shown, episode, found)
    return found


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
    from common import add_output, keep

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hand-overs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser)
    args = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz_recordings(args.hand_overs, args.seed, Path(folder))
    seconds = round(time.perf_counter() - begun, 1)
    keep({"seed": args.seed, **vars(found), "seconds": seconds}, args.output)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
