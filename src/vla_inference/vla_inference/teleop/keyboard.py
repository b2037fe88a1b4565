"""Keys of a terminal: a held one repeats, and where it no longer does it was let go."""

from __future__ import annotations

from vla_inference.teleop.mapping import KeyMapping
from vla_inference.teleop.wish import CLOSE, OPEN, STILL, TOGGLE, Shares, Wish

NAMES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    " ": "space",
    "\r": "enter",
    "\n": "enter",
}
GRIPPER_ACTS = {OPEN, CLOSE, TOGGLE}
MOST = 4096  # characters of one read that are looked at: more is no hand's


def split_keys(text: str) -> list[str]:
    """Names of the keys whose characters a terminal gives; what is none of them is left out."""
    keys, at, text = [], 0, text[-MOST:]
    while at < len(text):
        length = 3 if text[at : at + 3] in NAMES else 1
        piece = text[at : at + length]
        if piece in NAMES or piece.isprintable():
            keys.append(NAMES.get(piece, piece.lower()))
        at += length
    return keys


class Keyboard:
    """A keyboard whose repeating keys are the dead man's switch.

    silence: seconds after the last repeat of a key until it counts as let go.
    """

    def __init__(self, mapping: KeyMapping, silence: float):
        self._mapping, self._silence = mapping, silence
        self._shares, self._moved = STILL, float("-inf")
        self._pressed = float("-inf")  # when a key that is held for nothing but itself was
        self._acts: list[str] = []

    def take(self, text: str, now: float) -> None:
        """What the terminal gave since the last time."""
        for key in split_keys(text):
            if key in self._mapping.motions:
                self._shares, self._moved = _along(*self._mapping.motions[key]), now
            elif key in self._mapping.holds:
                self._pressed = now
            elif key in self._mapping.acts:
                self._acts.append(self._mapping.acts[key])
            else:  # any other key ends the motion
                self._shares = STILL

    def wish(self, now: float) -> Wish:
        """A key of the gripper alone is held for a moment, so that it reaches the robot."""
        acts, self._acts = tuple(self._acts), []
        if not GRIPPER_ACTS.isdisjoint(acts):
            self._pressed = now
        moves = now - self._moved <= self._silence
        held = moves or now - self._pressed <= self._silence
        return Wish(held, self._shares if moves else STILL, acts=acts)


def _along(axis: int, sign: float) -> Shares:
    x, y, z, rx, ry, rz = (sign * (i == axis) for i in range(6))
    return x, y, z, rx, ry, rz
