"""The interface of a part controller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from vla_inference.control.players.chunk_player import Player
from vla_inference.control.safety import Safety
from vla_inference.control.settings import Settings
from vla_inference.control.takeover import BY_HAND
from vla_inference.types import ActionChunk, ActionSpec

ZEROS = 2  # how often a halt is sent, in case one gets lost


class Sent(Protocol):
    """What a part is sent; `live` is False in a dry run."""

    @property
    def live(self) -> bool: ...


P = TypeVar("P", bound=Player[Any])
C = TypeVar("C", bound=Sent)


class Part(Generic[P, C]):
    """Controls one part of a robot; all parts of a robot share its `Safety`.

    In each command period `RobotCommander` calls `begins`, then `fault`, then `move`, or `halts`
    and `halted` where nothing may move. Times are as in `Safety`.

    holds: whether it is commanded at a standstill as well, rather than left to itself.
    """

    kinds: tuple[str, ...] = ()  # of actions that it executes
    settings: Settings

    def __init__(self, name: str, safety: Safety, player: P):
        self.name, self.safety, self.player = name, safety, player
        self.holds = False
        self._zeros = 0  # how many more times to tell a halt after the end of a motion

    def check(self, spec: ActionSpec) -> None:
        """Raises VlaError if this part of such chunks cannot be executed, or not any more."""

    def accept(self, chunk: ActionChunk, stamp: float, begin: float, now: float) -> bool:
        """Takes a chunk of a `check`ed spec; returns whether any of it will be executed.

        begin: when the next command period begins.
        """
        raise NotImplementedError

    def rescale(self, scale: float) -> None:
        """Another share of the model's motion from the next chunk on; not while it may move."""
        self.settings = replace(self.settings, scale=scale)

    def restart(self) -> None:
        """The clock has changed: forgets all plans, and which images were seen."""
        self.player.restart()

    def drop(self) -> None:
        """Drops all plans: it comes to a halt within its limits."""
        self.player.clear()

    def hand_over(self, by_hand: bool, since: float) -> None:
        """Another commands from now on, by chunks of after `since`: a person, or the model."""
        self.drop()
        self.player.begin_anew(BY_HAND if by_hand else self.settings.play, since)

    def missing(self, steady: float) -> str:
        """Why the part cannot be enabled; empty: it can."""
        return ""

    def enabled(self, steady: float) -> None:
        """The robot may move from now on: forgets what was before."""

    def begins(self, now: float, steady: float, begin: float, end: float) -> float | None:
        """A command period begins; returns the stamp of the image behind what is planned."""
        raise NotImplementedError

    def fault(self, steady: float) -> tuple[str, str] | None:
        """What is wrong with the part, kind and reason."""
        return None

    def halts(self, steady: float) -> None:
        """Nothing may move any more: drops all plans and chooses what `halted` sends."""
        raise NotImplementedError

    def halted(self) -> C | None:
        """What to send instead of motion; None: nothing."""
        raise NotImplementedError

    def move(self, live: bool) -> C | None:
        """The command of this period; None: nothing is to be sent."""
        raise NotImplementedError

    def _silent(self, moves: bool) -> bool:
        """Whether nothing is to be sent in this period: after two zeros, unless it holds."""
        self._zeros = ZEROS if moves else max(-1, self._zeros - 1)
        return self._zeros < 0 and not self.holds

    def _rows(self, chunk: ActionChunk) -> np.ndarray:
        """Its numbers, float64 [T, n]."""
        return np.asarray(chunk.actions[:, chunk.spec.slice(self.name)], np.float64)

    def _clip(self, kinds: set[str]) -> None:
        """Counts clips, under its name where it has one."""
        self.safety.clip({f"{self.name}.{k}" for k in kinds} if self.name else kinds)
