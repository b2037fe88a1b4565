"""How chunks become commands: what all parts of a robot share, and an end effector's own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vla_inference.control.limits import SafetyLimits
from vla_inference.control.players.chunk_player import Play, Player
from vla_inference.control.safety import Distribution, Watchdogs
from vla_inference.errors import VlaError

P = TypeVar("P", bound=Player[Any])


@dataclass(frozen=True)
class Settings:
    """rate: commands per second [Hz]. scale: share of the model's motion, 0 < scale <= 1.

    deltas_in: axes of the deltas, "base" or "tool"; empty: "tool" where the chunk's frame is
        called so, else "base".
    stretch: how many times as long each step takes, its motion as much slower; at least 1. What a
        slow model's chunk needs to last until the next one.
    catch_up: seconds over which a chunk makes up for what it wanted to be done between its image
        and its arrival and was not; 0: it isn't. Else the corrections that a slow model sees a
        need for lie in steps that are always dropped. About as long as an answer takes:
        over twice that commands swing less, and the arm follows what the model saw later.
    drift: of the target from the measured pose [m, rad]; 0 m: targets always start there.
    pose_jump: of a measured pose from where the robot can have got to [m, rad].
    needs_pose: whether commands need a measured pose: for target poses and a workspace.
    distribution: what the model was trained with; None: anything goes.
    human_timeout: after so long without a chunk of a person in charge the robot halts [s].
    The others are `Play`'s and `Gripper`'s.
    """

    rate: float = 20.0
    scale: float = 1.0
    deltas_in: str = ""
    execute_steps: int = 0
    align: str = "stamp"
    ensemble: float | None = None
    blend: float = 0.1
    stretch: float = 1.0
    catch_up: float = 0.0
    drift: tuple[float, float] = (0.05, 0.3)
    pose_jump: tuple[float, float] = (0.05, 0.3)
    gripper_hysteresis: float = 0.1
    needs_pose: bool = False
    limits: SafetyLimits = field(default_factory=SafetyLimits)
    human_timeout: float = 0.25
    watchdogs: Watchdogs = field(default_factory=Watchdogs)
    distribution: Distribution | None = None

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise VlaError(f"the command rate is {self.rate} Hz", "give one above 0")
        if 0 < self.watchdogs.late < 2 / self.rate:
            raise VlaError(
                f"commands at {self.rate:g} Hz are {1 / self.rate:g} s apart, and more than "
                f"{self.watchdogs.late:g} s counts as overload",
                "raise command_rate, or max_period to two periods at least",
            )
        if not 0 < self.scale <= 1:
            raise VlaError(f"scale is {self.scale}", "give a share, 0 < scale <= 1")
        if not 1 <= self.stretch <= 100:
            raise VlaError(f"stretch is {self.stretch}", "give 1 to 100; 1: as the model says")
        if not 0 <= self.catch_up <= 60:
            raise VlaError(f"catch_up is {self.catch_up}", "give 0 to 60 seconds; 0: off")
        if not 0 < self.human_timeout < math.inf:
            raise VlaError(
                f"human_timeout is {self.human_timeout} s",
                "give a time above 0: without one nothing would halt the robot of a silent person",
            )
        if self.align not in ("stamp", "arrival"):
            raise VlaError(f"unknown align {self.align!r}", "use stamp or arrival")
        if self.deltas_in not in ("", "base", "tool"):
            raise VlaError(f"unknown deltas_in {self.deltas_in!r}", "use base, tool or nothing")
        if self.limits.workspace and not self.needs_pose:
            raise VlaError("a workspace without a measured pose", "set needs_pose")

    @property
    def period(self) -> float:
        """Between two commands [s]."""
        return 1.0 / self.rate

    @property
    def play(self) -> Play:
        """How the model's chunks are played."""
        return Play(
            self.execute_steps, self.align, self.ensemble, self.blend, self.stretch, self.catch_up
        )

    def player(self, kind: type[P]) -> P:
        player = kind()
        player.play = self.play
        return player
