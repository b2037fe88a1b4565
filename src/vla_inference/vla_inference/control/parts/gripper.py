"""A gripper of its own: opened and closed on change."""

from __future__ import annotations

from vla_inference.control import vectors as v
from vla_inference.control.commands import Command, Gripper
from vla_inference.control.parts.base import Part
from vla_inference.control.players.chunk_player import ChunkPlayer, Motion
from vla_inference.control.safety import Safety
from vla_inference.control.settings import Settings
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec


class GripperPart(Part[ChunkPlayer, Command]):
    """Commands have `gripper` alone."""

    kinds = ("gripper",)

    def __init__(self, name: str, settings: Settings, safety: Safety):
        super().__init__(name, safety, settings.player(ChunkPlayer))
        self.settings, self.gripper = settings, Gripper(settings.gripper_hysteresis)
        self._motion: Motion | None = None

    def check(self, spec: ActionSpec) -> None:
        numbers = len(spec.part(self.name))
        if numbers != 1:
            raise VlaError(f"{self.name} has {numbers} numbers", "a gripper has one")

    def accept(self, chunk: ActionChunk, stamp: float, begin: float, now: float) -> bool:
        steps = [(v.ZERO, v.ZERO, value) for value in self._rows(chunk)[:, 0].tolist()]
        return self.player.accept(stamp, self.player.play.stretch * chunk.spec.dt, steps, begin)

    def enabled(self, steady: float) -> None:
        self.player.clear()
        self.gripper.state = None

    def begins(self, now: float, steady: float, begin: float, end: float) -> float | None:
        self._motion = self.player.motion(begin, end)
        return self._motion.stamp if self._motion else None

    def halts(self, steady: float) -> None:
        self.player.clear()

    def halted(self) -> None:
        """An output ends what is under way by itself."""

    def move(self, live: bool) -> Command | None:
        value = self._motion.gripper if self._motion else None
        wanted = self.gripper.follow(value) if value is not None else None
        return Command(gripper=wanted, live=live) if wanted is not None else None
