"""The command core: action chunks in, commands of all parts out, with one stop for all.

Call `accept` for every chunk and `tick` once per command period. What `tick` returns is to be
sent at once; a part without a command is to be sent nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vla_inference.control.commands import (
    Command,
    Gripper,
    Pose,
    Target,
    check_chunk,
    check_steps,
)
from vla_inference.control.measured import Measured
from vla_inference.control.parts.base import ZEROS, Part
from vla_inference.control.parts.eef import EefPart
from vla_inference.control.players.chunk_player import Player
from vla_inference.control.safety import STOPPED, Safety
from vla_inference.control.settings import Settings
from vla_inference.control.takeover import HUMAN, MODEL, Takeover
from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import in_si
from vla_inference.types import ActionChunk, ActionSpec

__all__ = ["Command", "Commander", "RobotCommander", "Settings"]


class _Parts:
    """The parts of a robot, of which a fault of one stops all. `now` and `steady`: see `Safety`.

    make: makes the parts, given the safety that they share.
    """

    def __init__(
        self,
        settings: Settings,
        make: Callable[[Safety], Sequence[Part[Any, Any]]],
        check: Callable[[ActionChunk], None] | None = None,
    ):
        self.settings = settings
        self.period = settings.period
        self.scale = settings.scale
        self.takeover = Takeover(settings.human_timeout)
        self.safety = Safety(
            settings.watchdogs, settings.distribution, check or self._check, self.takeover
        )
        self.parts = {part.name: part for part in make(self.safety)}
        self.image_stamp: float | None = None
        self.chunks = 0
        self._window: float | None = None  # where the next command period begins
        self._live = False  # whether the last commands may have moved the robot
        self._halts = 0  # how many more times to tell a halt after a stop
        self._last_now: float | None = None

    @property
    def player(self) -> Player[Any]:
        """That of the first part; all are given the same chunks."""
        return next(iter(self.parts.values())).player

    # -- by hand ------------------------------------------------------------------------------

    def enable(self, steady: float, others: str = "") -> str:
        """Allows motion from now on, with chunks still to come; returns the reason if refused."""
        if self.safety.enabled:
            return ""
        refused = next((why for p in self.parts.values() if (why := p.missing(steady))), "")
        refused = refused or self.safety.enable(steady, others)
        if not refused:
            for part in self.parts.values():
                part.enabled(steady)
            self._live, self._halts = True, 0
        return refused

    def disable(self) -> None:
        """Back to the dry run; the next two periods command a halt."""
        self.safety.disable()

    def take_over(self, by_hand: bool, now: float, steady: float) -> None:
        """From the next period on a person commands, or the model again, by chunks of after that.

        What was planned is dropped: the robot comes to a halt within its limits until the first of
        them, and its commands go on.
        """
        if by_hand == self.takeover.by_hand:
            return
        since = self._next_begin(now)
        if self._window is not None:  # what has been commanded is never another's
            since = max(since, self._window)
        self.takeover.hand_over(HUMAN if by_hand else MODEL, since)
        for part in self.parts.values():
            part.hand_over(by_hand, now if by_hand else since)
        if not by_hand:
            self.safety.given_back(steady)

    def rescale(self, scale: float) -> None:
        """Another share of the model's motion, 0 < scale <= 1; raises VlaError while enabled."""
        if self.safety.enabled:
            raise VlaError("the robot is enabled", "disable it, then change its speed")
        self.settings = replace(self.settings, scale=scale)
        self.scale = scale
        for part in self.parts.values():
            part.rescale(scale)

    # -- what comes in ------------------------------------------------------------------------

    def _check(self, chunk: ActionChunk) -> None:
        """Raises VlaError unless a chunk has these parts alone, of kinds that they execute."""
        found, wanted = {p.name: p for p in chunk.spec.parts}, self.parts
        if unknown := [f"{n} ({p.kind})" for n, p in found.items() if n not in wanted]:
            raise VlaError(
                f"the chunk's {', '.join(unknown)} cannot be executed",
                f"this node commands {', '.join(wanted)} (parameter parts)",
            )
        for name, part in found.items():
            if part.kind not in wanted[name].kinds:
                raise VlaError(
                    f"{name} is {part.kind} in the chunk",
                    f"its output takes {' or '.join(wanted[name].kinds)}",
                )
        check_steps(in_si(chunk))

    def accept(
        self, chunk: ActionChunk, stamp: float, now: float, steady: float, source: str = MODEL
    ) -> bool:
        """Takes a source's chunk; returns whether any of it will be executed.

        stamp: of the image behind it, or of when a person's input was read [s, by `now`'s clock].
        """
        if not self.safety.accepts(chunk, stamp, now, source):
            return False
        in_charge = source == self.takeover.source
        chunk = in_si(chunk)
        try:
            parts = self._commanded(chunk.spec, source)
            for part in parts if in_charge else ():
                part.check(chunk.spec)
        except VlaError as error:
            self.bad_chunk(str(error), now, source)
            return False
        if source == MODEL:
            self.chunks += 1
            self.image_stamp = stamp
        begin = self._next_begin(now)
        taken = in_charge and any([part.accept(chunk, stamp, begin, now) for part in parts])
        if source == HUMAN and taken:
            self._hear(parts, steady)
        elif source == MODEL and (taken or not in_charge):  # that one lives, and is not asked
            self.safety.fed(steady)
        return taken

    def _hear(self, parts: Sequence[Part[Any, Any]], steady: float) -> None:
        """A person commands these parts: the others come to a halt."""
        self.takeover.hear(steady)
        for part in self.parts.values():
            if part not in parts:
                part.drop()

    def _commanded(self, spec: ActionSpec, source: str) -> list[Part[Any, Any]]:
        """The parts that a chunk commands: a model's all; what a person leaves out stands still.

        Raises VlaError where some lack.
        """
        names = {part.name for part in spec.parts}
        lacking = [name for name in self.parts if name and name not in names]
        if lacking and source == MODEL:
            raise VlaError(
                f"the chunk has no {', '.join(lacking)}",
                "leave them out of the parameter parts, or use another model",
            )
        return [part for name, part in self.parts.items() if name not in lacking]

    def bad_chunk(self, reason: str, now: float, source: str = MODEL) -> None:
        """Reports an invalid chunk message."""
        self.safety.bad_chunk(reason, now, source)

    # -- what goes out ------------------------------------------------------------------------

    def _tick(self, now: float, steady: float, others: str) -> dict[str, Any]:
        parts = self.parts.values()
        back = self._last_now - now if self._last_now is not None else 0.0
        self._last_now = now
        begin = self._next_begin(now)
        if back > self.settings.watchdogs.clock_jump:
            # The clock may have restarted: then its stamps are new as well.
            for part in parts:
                part.restart()
        self.takeover.begins(begin)
        if self.takeover.falls_silent(steady):
            for part in parts:
                part.drop()
        end = self._window = begin + self.period
        stamps = [s for p in parts if (s := p.begins(now, steady, begin, end)) is not None]
        fault = next((wrong for p in parts if (wrong := p.fault(steady))), None)
        if stamps:
            self.takeover.moves()
        going = self.safety.tick(now, steady, others, min(stamps, default=None), fault)
        if self._live and not going:
            self._live, self._halts = False, ZEROS
            for part in parts:
                part.halts(steady)
        if self._halts:
            self._halts -= 1
            return _told({p.name: p.halted() for p in parts})
        if self.safety.state == STOPPED:
            return {}
        for part in parts:
            part.holds = self._live and self.takeover.holds
        return _told({p.name: p.move(self._live) for p in parts})

    def halt(self, steady: float) -> dict[str, Any]:
        """What halts all parts at once, outside the periods."""
        for part in self.parts.values():
            part.halts(steady)
        return _told({p.name: p.halted() for p in self.parts.values()})

    def _next_begin(self, now: float) -> float:
        """Start of the period; periods are contiguous while `tick` is called roughly on time."""
        begin = self._window
        return now if begin is None or abs(begin - now) > 1.5 * self.period else begin


def _told(commands: dict[str, Any]) -> dict[str, Any]:
    return {name: command for name, command in commands.items() if command is not None}


class RobotCommander(_Parts):
    """Turns chunks into one command per part and period."""

    def tick(self, now: float, steady: float, others: str = "") -> dict[str, Any]:
        """Starts a command period; returns the commands by part. others: see `Safety.tick`."""
        return self._tick(now, steady, others)


class Commander(_Parts):
    """Turns chunks of one arm and its gripper into one command per period."""

    def __init__(self, settings: Settings | None = None):
        s = settings or Settings()
        super().__init__(s, lambda safety: [EefPart("", s, safety)], check_chunk)

    @property
    def arm(self) -> EefPart:
        part = self.parts[""]
        assert isinstance(part, EefPart)
        return part

    @property
    def robot(self) -> Measured:
        return self.arm.robot

    @property
    def target(self) -> Target:
        return self.arm.target

    @property
    def gripper(self) -> Gripper:
        return self.arm.gripper

    @property
    def in_tool(self) -> bool:
        """Whether commands are in the axes of the tool rather than the base."""
        return self.arm.in_tool

    def measured(self, pose: Pose, stamp: float, now: float, steady: float) -> str:
        """See `EefPart.measured`."""
        return self.arm.measured(pose, stamp, now, steady)

    def tick(self, now: float, steady: float, others: str = "") -> Command | None:
        """Starts a command period; returns the command, or None to send nothing.

        others: see `Safety.tick`.
        """
        command: Command | None = self._tick(now, steady, others).get("")
        return command
