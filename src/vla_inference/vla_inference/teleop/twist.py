"""Any publisher of twists as a device: silence is its dead man's switch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla_inference.errors import VlaError
from vla_inference.teleop.wish import STILL, Wish


class Twist:
    """What the newest twist asks for, as shares of full speed.

    frames: names of the base's and the tool's; an empty name is none.

    speeds: of a full deflection [m/s, rad/s]; faster twists are slowed down to it.
    silence: seconds without a message until the switch counts as let go.
    """

    def __init__(self, frames: tuple[str, str], speeds: tuple[float, float], silence: float):
        self._frames, self._speeds, self._silence = frames, speeds, silence
        self._heard, self._shares, self._tool = -math.inf, STILL, False

    def take(self, values: Sequence[float], frame: str, now: float) -> None:
        """A twist: x y z [m/s], about x y z [rad/s]. VlaError where it cannot be used."""
        self._heard = -math.inf
        base, tool = self._frames
        known = [name for name in (base, tool) if name]
        if frame.lstrip("/") not in known:
            raise VlaError(
                f"the twist is in frame {frame!r}", f"publish it in {' or '.join(known)}"
            )
        if not all(map(math.isfinite, values)):
            raise VlaError("the twist has numbers that are not finite", "look at its publisher")
        linear, angular = self._speeds
        x, y, z, rx, ry, rz = values
        self._shares = (
            x / linear,
            y / linear,
            z / linear,
            rx / angular,
            ry / angular,
            rz / angular,
        )
        self._tool, self._heard = frame.lstrip("/") == tool, now

    def wish(self, now: float) -> Wish:
        if now - self._heard > self._silence:
            return Wish()
        return Wish(True, self._shares, tool=self._tool)
