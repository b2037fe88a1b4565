"""What a person wants at a moment, whichever device says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Shares = tuple[float, float, float, float, float, float]
AXES = ("x", "y", "z", "rx", "ry", "rz")
STILL: Shares = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
OPEN, CLOSE, TOGGLE = "open", "close", "gripper"  # what a key or button does to the gripper
TAKE_OVER, GIVE_BACK, HAND_OVER = "take_over", "give_back", "hand_over"
HANDING = (TAKE_OVER, GIVE_BACK, HAND_OVER)  # to who commands
ACTS = (OPEN, CLOSE, TOGGLE, *HANDING)


@dataclass(frozen=True)
class Wish:
    """What a person wants at one moment.

    held: whether the dead man's switch is. Where it is not, nothing is to move.

    shares: of the speeds along x y z and about x y z, each -1 to 1.
    joints: positions by the follower's joints [rad, m].
    gripper: 1 open, 0 closed; None: as it is. tool: whether shares are in the tool's axes, where
    the device says.
    acts: keys and buttons pressed since the last time, of ACTS, in their order.
    """

    held: bool = False
    shares: Shares = STILL
    joints: Mapping[str, float] = field(default_factory=dict)
    gripper: float | None = None
    tool: bool | None = None
    acts: tuple[str, ...] = ()


class Device(Protocol):
    """What a person has in hand. Times in seconds, monotonic."""

    def wish(self, now: float) -> Wish:
        """What is wanted now; acts are told once.

        Raises VlaError where the device says what cannot be used: nothing is to move then.
        """


@dataclass
class Grip:
    """The gripper between open and closed: 1 open, 0 closed; 0.5: nobody has said yet."""

    value: float = 0.5

    def seen(self, value: float) -> None:
        """The model's, while that is in charge."""
        self.value = float(value > 0.5)

    def follow(self, wish: Wish) -> float:
        """The value after a person's wish."""
        if wish.gripper is not None:
            self.value = min(max(wish.gripper, 0.0), 1.0)
        for act in wish.acts:
            if act in (OPEN, CLOSE):
                self.value = float(act == OPEN)
            elif act == TOGGLE:
                self.value = float(self.value <= 0.5)
        return self.value
