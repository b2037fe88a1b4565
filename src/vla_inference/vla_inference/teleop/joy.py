"""A gamepad, a SpaceMouse or a pedal: what `sensor_msgs/Joy` says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vla_inference.errors import VlaError
from vla_inference.teleop.mapping import JoyAxis, JoyMapping
from vla_inference.teleop.wish import STILL, Shares, Wish

MOST = 1.5  # deflection that a driver may give: some are a little beyond 1


class Joy:
    """A gamepad or SpaceMouse, read from sensor_msgs/Joy.

    silence: seconds without a message until the switch counts as let go.

    After silence or an error, and at the beginning, the switch must be seen let go before it
    counts as held: what was held all the while, by a hand or by a cable, is nobody's wish.
    """

    def __init__(self, mapping: JoyMapping, silence: float):
        self._mapping, self._silence = mapping, silence
        self._heard = -math.inf
        self._armed = False
        self._wish = Wish()
        self._acts: list[str] = []
        self._down: set[int] = set()

    def take(self, axes: Sequence[float], buttons: Sequence[int], now: float) -> None:
        """A message. Raises VlaError where it is not what the mapping names."""
        try:
            shares = self._shares(axes, buttons)
            held = self._held(shares, buttons)
            self._press(buttons, now)
        except VlaError:
            self._disarm()
            raise
        if now - self._heard > self._silence:
            self._armed = False
        self._heard = now
        self._armed = self._armed or not held
        held = held and self._armed
        self._wish = Wish(held, shares if held else STILL)

    def wish(self, now: float) -> Wish:
        acts, self._acts = tuple(self._acts), []
        if now - self._heard > self._silence:
            self._disarm()
        return Wish(self._wish.held, self._wish.shares, acts=acts)

    def _disarm(self) -> None:
        self._armed, self._wish = False, Wish()

    def _held(self, shares: Shares, buttons: Sequence[int]) -> bool:
        if self._mapping.button is None:
            return any(abs(share) > self._mapping.motion for share in shares)
        return _button(buttons, self._mapping.button)

    def _press(self, buttons: Sequence[int], now: float) -> None:
        """Notes which buttons went down; those that were so at the beginning do not count."""
        down = {index for index in self._mapping.acts if _button(buttons, index)}
        if math.isfinite(self._heard):
            self._acts += [self._mapping.acts[i] for i in sorted(down - self._down)]
        self._down = down

    def _shares(self, axes: Sequence[float], buttons: Sequence[int]) -> Shares:
        found = list(STILL)
        for axis, about in self._mapping.axes.items():
            found[axis] = about.sign * self._deflection(about, axes, buttons)
        x, y, z, rx, ry, rz = found
        return x, y, z, rx, ry, rz

    def _deflection(self, about: JoyAxis, axes: Sequence[float], buttons: Sequence[int]) -> float:
        if about.axis < 0:
            return float(_button(buttons, about.plus)) - float(_button(buttons, about.minus))
        value = _at(axes, about.axis, "axis", "axes")
        if not abs(value) <= MOST:  # not a number either
            raise VlaError(f"joy: axis {about.axis} is {value:g}", "look at its driver")
        rest = self._mapping.deadzone
        beyond = max(0.0, min(abs(value), 1.0) - rest) / (1 - rest)
        return math.copysign(beyond, value)


def _button(buttons: Sequence[int], index: int) -> bool:
    return _at(buttons, index, "button", "buttons") > 0


def _at(values: Sequence[float], index: int, one: str, several: str) -> float:
    if index >= len(values):
        raise VlaError(
            f"joy: there is no {one} {index}, it has {len(values)} {several}",
            "give the mapping of this device",
        )
    return float(values[index])
