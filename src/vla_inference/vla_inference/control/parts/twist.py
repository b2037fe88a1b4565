"""A mobile base: velocities in, limited ones out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_inference.control import vectors as v
from vla_inference.control.commands import Command
from vla_inference.control.limits import ANGULAR, LINEAR, Ramp
from vla_inference.control.parts.base import Part
from vla_inference.control.parts.clearance import Clearance, ClearanceLimits
from vla_inference.control.players.chunk_player import ChunkPlayer, Motion
from vla_inference.control.safety import Safety
from vla_inference.control.settings import Settings
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionPart, ActionSpec


@dataclass(frozen=True)
class BaseLimits:
    """Velocity, acceleration and jerk, linear [m] and angular [rad]; 0: no limit.

    frame: whose axes the base takes twists in. holonomic: whether it can go sideways.
    clearance: how near it may come to what its lidar sees ahead.
    """

    linear: tuple[float, float, float] = (0.5, 1.0, 10.0)
    angular: tuple[float, float, float] = (1.0, 2.0, 20.0)
    frame: str = "base_link"
    holonomic: bool = False
    clearance: ClearanceLimits = field(default_factory=ClearanceLimits)


class BasePart(Part[ChunkPlayer, Command]):
    """Commands are `linear` (x, y) and `angular` (z) in the base's axes."""

    kinds = ("base_twist",)

    def __init__(self, name: str, settings: Settings, limits: BaseLimits, safety: Safety):
        super().__init__(name, safety, settings.player(ChunkPlayer))
        self.settings, self.limits = settings, limits
        self._linear = Ramp(settings.period, limits.linear, LINEAR)
        self._angular = Ramp(settings.period, limits.angular, ANGULAR)
        self._motion: Motion | None = None
        self._steady = 0.0  # beginning of this period
        watched = limits.clearance.distance > 0
        self.clearance = Clearance(name, limits.clearance) if watched else None

    def check(self, spec: ActionSpec) -> None:
        part = spec.part(self.name)
        frames = ("base", self.limits.frame)
        if part.frame.lstrip("/") not in frames:
            raise VlaError(
                f"{part.name} is in frame {part.frame!r}",
                f"its twists are taken in {' or '.join(frames)}",
            )
        _axes(part, self.limits.holonomic)

    def accept(self, chunk: ActionChunk, stamp: float, begin: float, now: float) -> bool:
        axes = _axes(chunk.spec.part(self.name), self.limits.holonomic)
        stretch = self.player.play.stretch
        rows = np.zeros((len(chunk), 6))
        rows[:, axes] = self.settings.scale / stretch * self._rows(chunk)
        steps = [((x, y, z), (rx, ry, rz), None) for x, y, z, rx, ry, rz in rows.tolist()]
        return self.player.accept(stamp, stretch * chunk.spec.dt, steps, begin)

    def missing(self, steady: float) -> str:
        return self.clearance.lost(steady) if self.clearance else ""

    def fault(self, steady: float) -> tuple[str, str] | None:
        if self.clearance is None:
            return None
        wanted = self._motion.linear[0] if self._motion else 0.0
        now, period = self._linear.velocity[0], self.settings.period
        coming = now + period * self._linear.acceleration[0]  # jerk limits let it swing through 0
        return self.clearance.fault(max(wanted, now, coming), steady, period)

    def enabled(self, steady: float) -> None:
        if self.clearance is not None:
            self.clearance.enabled()
        self._standstill()
        self._zeros = 0

    def begins(self, now: float, steady: float, begin: float, end: float) -> float | None:
        self._motion, self._steady = self.player.motion(begin, end), steady
        return self._motion.stamp if self._motion else None

    def halts(self, steady: float) -> None:
        self._standstill()

    def halted(self) -> Command:
        return Command()

    def _standstill(self) -> None:
        self.player.clear()
        self._linear.reset()
        self._angular.reset()

    def move(self, live: bool) -> Command | None:
        motion = self._motion
        linear, clips = self._linear.follow(motion.linear if motion else v.ZERO)
        angular, more = self._angular.follow(motion.angular if motion else v.ZERO)
        if self._silent(motion is not None or any(linear) or any(angular)):
            return None
        self._clip(clips | more)
        if live and self.clearance is not None:
            self.clearance.told(linear[0], self._steady, self.settings.period)
        return Command(linear, angular, live=live, clips=frozenset(clips | more))


def _axes(part: ActionPart, holonomic: bool) -> Sequence[int]:
    """Where its numbers stand in x y z (m/s), rx ry rz (rad/s): x, y and rz in this order."""
    linear = [i for i, d in enumerate(part.dims) if d.unit.endswith("m/s")]
    most = 2 if holonomic else 1
    if len(linear) > most or len(part) - len(linear) > 1:
        raise VlaError(
            f"{part.name} has {len(linear)} linear and {len(part) - len(linear)} angular numbers",
            f"at most {most} linear (m/s; x, y of a holonomic base) and one angular (rad/s) can "
            "be executed",
        )
    return [linear.index(i) if i in linear else 5 for i in range(len(part))]
