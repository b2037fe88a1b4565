"""Real-time chunking: a new chunk begins as the rest of the old one goes on.

While a model thinks, the robot executes the old chunk. `RunningChunk` keeps that chunk and how
long answers take, and makes of them the `Continuation` that a policy is given with the next
observation: the steps that are left, and how many of them the robot will have executed by the time
the answer arrives. Those are held, the ones after them are followed less and less.

Source: arXiv:2506.07339 (guided), arXiv:2512.05964 (trained); behaviour of huggingface/lerobot.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import EEF, ActionChunk, ActionSpec

Schedule = Literal["LINEAR", "EXP", "ONES", "ZEROS"]
GUIDED, TRAINED = "rtc", "rtc_trained"
FORMS = (GUIDED, TRAINED)
LAST_ANSWERS = 10  # whose longest time counts
SLIVER = 1e-6  # of a step; less than this is rounding


@dataclass(frozen=True)
class RealTimeChunking:
    """How a new chunk is made to follow the old one.

    horizon: steps of the old chunk that have a weight at all; 0: all that are left.
    limit: of the guidance. schedule: how the weight falls from the held steps to the horizon.
    form: "rtc" guides a model's flow; "rtc_trained" holds the steps that will be executed, in a
        model that was trained to complete them, and the other fields mean nothing.
    """

    horizon: int = 0
    limit: float = 10.0
    schedule: Schedule = "EXP"
    form: str = GUIDED


@dataclass(frozen=True)
class Continuation:
    """The old chunk that a new one is to go on from.

    previous: its steps [P, D] from the time of the observation on, in the units of the policy's
        spec. delay: how many of them the robot will have executed when the answer arrives.
    """

    previous: np.ndarray
    delay: int
    chunking: RealTimeChunking = RealTimeChunking()

    def __post_init__(self) -> None:
        if np.ndim(self.previous) != 2 or not len(self.previous) or self.delay < 0:
            raise VlaError(
                f"the old chunk has shape {np.shape(self.previous)} and delay {self.delay}",
                "give [steps, numbers] and 0 or more",
            )


class Published(NamedTuple):
    chunk: ActionChunk
    stamp: float
    instruction: str


class RunningChunk:
    """The chunk that the robot executes, and how long answers take.

    Times are seconds by the clock of the images' stamps. stretch: the command node's; steps last
    that many times as long.
    """

    def __init__(self, chunking: RealTimeChunking, stretch: float = 1.0):
        self.chunking, self.stretch = chunking, stretch
        self._latest: Published | None = None
        self._took: deque[float] = deque(maxlen=LAST_ANSWERS)

    @property
    def delay(self) -> float:
        """The longest of the last answers, from the image's stamp to the chunk [s]; 0: none."""
        return max(self._took, default=0.0)

    def answered(self, stamp: float, now: float) -> None:
        """Notes that an image of `stamp` was answered."""
        self._took.append(max(0.0, now - stamp))

    def executed(self, chunk: ActionChunk, stamp: float, instruction: str) -> None:
        """Notes the chunk that the robot executes from now on."""
        self._latest = Published(chunk, stamp, instruction)

    def drop(self) -> None:
        """Nothing is executed any more."""
        self._latest = None

    def after(self, stamp: float, instruction: str) -> Continuation | None:
        """What an answer to an image of `stamp` is to go on from; None: it begins anew.

        A chunk for another instruction is no beginning of this one's, one step is no plan, and a
        clock that went back leaves no order in time.
        """
        latest = self._latest
        if latest is None or latest.instruction != instruction or len(latest.chunk) < 2:
            return None
        dt = latest.chunk.spec.dt * self.stretch
        passed = (stamp - latest.stamp) / dt
        if passed <= 0:
            return None
        rest = rest_of(latest.chunk, passed)
        if not len(rest):
            return None
        return Continuation(rest, math.ceil(self.delay / dt - SLIVER), self.chunking)


def rest_of(chunk: ActionChunk, passed: float) -> np.ndarray:
    """The steps [P, D] that are left when `passed` steps are over, on a grid that begins there.

    Between the old grid and the new one numbers are interpolated; a gripper, which is open or
    closed, and a pose whose angles wrap between two steps are those of the nearer step.
    """
    whole = math.floor(passed + SLIVER)
    share = passed - whole
    left = chunk.actions[whole:]
    if share < SLIVER or not len(left):
        return left
    now, then = left[:-1], left[1:]
    nearer = now if share < 0.5 else then
    return np.where(_jumps(chunk.spec, then - now), nearer, now + share * (then - now))


def _jumps(spec: ActionSpec, change: np.ndarray) -> np.ndarray:
    """Of changes [P, D] between steps: which are of numbers that have nothing in between."""
    jumps = np.zeros(change.shape, bool)
    for part in spec.parts:
        here = spec.slice(part.name)
        if part.kind == "gripper":
            jumps[:, here] = True
        elif part.kind in EEF and part.rotation:
            angles = slice(here.start + 3, here.stop)
            jumps[:, angles] = np.abs(change[:, angles]).max(1, keepdims=True) > math.pi
    return jumps
