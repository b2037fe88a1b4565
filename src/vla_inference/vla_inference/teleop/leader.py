"""A second arm that a person leads: the follower's joints go where the leader's are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vla_inference.errors import VlaError
from vla_inference.teleop.mapping import LeaderJoint, LeaderMapping
from vla_inference.teleop.wish import Wish

NEAR = 0.02  # rad, m: the follower has come to the leader


class Leader:
    """A leader arm whose joints the follower takes.

    max_difference: of leader and follower at which following begins at once [rad, m].

    align_speed: at which the follower comes to a leader that is farther away [rad/s, m/s]; 0: it
    does not. silence: seconds without joint states until the switch counts as let go.
    """

    def __init__(
        self, mapping: LeaderMapping, max_difference: float, align_speed: float, silence: float
    ):
        self._mapping, self._silence = mapping, silence
        self._far, self._speed = max_difference, align_speed
        self._leader: dict[str, float] = {}  # by the follower's joints
        self._gripper: float | None = None
        self._heard = -math.inf
        self._at: dict[str, float] | None = None  # where the follower is sent; None: not held
        self._aligned, self._last = False, 0.0

    def take(self, names: Sequence[str], positions: Sequence[float], now: float) -> None:
        """The leader's joint states. VlaError where they are not what the mapping names."""
        self._heard = -math.inf
        if len(names) != len(positions):
            raise VlaError(
                f"the leader has {len(names)} names for {len(positions)} positions",
                "look at its driver",
            )
        found = dict(zip(names, positions, strict=True))
        mapping = self._mapping
        joints = {name: _scaled(about, found) for name, about in mapping.joints.items()}
        gripper = None if mapping.gripper is None else _scaled(mapping.gripper, found)
        self._leader, self._gripper, self._heard = joints, gripper, now

    def wish(self, held: bool, follower: Mapping[str, float], now: float) -> Wish:
        """held: whether its dead man's switch is. follower: its joints where they are known.

        Raises VlaError as long as following must not begin.
        """
        if not held:
            self._at = None
            return Wish()
        if now - self._heard > self._silence:
            self._at = None
            raise VlaError("the leader is silent", "have its joint states published")
        if self._at is None:
            self._begin(follower, now)
        self._follow(now)
        return Wish(True, joints=dict(self._at or {}), gripper=self._gripper)

    def _begin(self, follower: Mapping[str, float], now: float) -> None:
        if lacking := [name for name in self._leader if name not in follower]:
            raise VlaError(
                f"nobody says where the follower's {', '.join(lacking)} is",
                "have its joint states published",
            )
        away = {name: self._leader[name] - follower[name] for name in self._leader}
        joint = max(away, key=lambda name: abs(away[name]))
        self._aligned = abs(away[joint]) <= self._far
        if not self._aligned and not self._speed:
            raise VlaError(
                f"the leader is away from the follower by {away[joint]:+.2f} at {joint}",
                f"bring it within {self._far:g}, or set align_speed",
            )
        self._at = {name: follower[name] for name in self._leader}
        self._last = now

    def _follow(self, now: float) -> None:
        """Once aligned the command node's limits alone hold it."""
        assert self._at is not None
        step, self._last = self._speed * (now - self._last), now
        if not self._aligned:
            self._at = {
                name: at + min(max(self._leader[name] - at, -step), step)
                for name, at in self._at.items()
            }
            gaps = (abs(self._leader[name] - at) for name, at in self._at.items())
            self._aligned = max(gaps) <= NEAR
        if self._aligned:
            self._at = dict(self._leader)


def _scaled(about: LeaderJoint, found: Mapping[str, float]) -> float:
    if about.name not in found:
        raise VlaError(
            f"the leader has no joint {about.name}", f"it has {', '.join(found) or 'none'}"
        )
    value = found[about.name]
    if not math.isfinite(value):
        raise VlaError(f"the leader's {about.name} is {value:g}", "look at its driver")
    return about.scale * value + about.offset
