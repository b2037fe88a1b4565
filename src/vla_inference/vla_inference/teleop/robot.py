"""The robot as a person moves it: its parts, and chunks for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.teleop.settings import TeleopSettings
from vla_inference.teleop.wish import Wish
from vla_inference.types import (
    ActionChunk,
    ActionPart,
    ActionSpec,
    DimSpec,
    eef_part,
    gripper_part,
    joint_part,
)

EEF, BASE, GRIPPER, JOINTS = "eef_delta", "base_twist", "gripper", "joint_position"


@dataclass(frozen=True)
class Moved:
    """A part and its top speeds as the command node has them [m/s, rad/s]; 0: no limit.

    base, tool: names of the frames that twists may be in; a base has no tool.
    """

    part: ActionPart
    linear: float = 0.0
    angular: float = 0.0
    base: str = "base_link"
    tool: str = ""


@dataclass(frozen=True)
class Robot:
    """A robot as its command node describes it.

    parts: all that the command node drives, in its order.
    """

    parts: tuple[Moved, ...]

    def find(self, kinds: Sequence[str], name: str = "") -> Moved | None:
        """The part of this name, or the first one of these kinds; None: there is none."""
        fitting = [m for m in self.parts if m.part.kind in kinds]
        if not name:
            return fitting[0] if fitting else None
        for moved in fitting:
            if moved.part.name == name:
                return moved
        raise VlaError(
            f"the command node has no part {name!r} that is {' or '.join(kinds)}",
            f"it has {', '.join(f'{m.part.name} ({m.part.kind})' for m in self.parts)}",
        )

    @property
    def joints(self) -> tuple[ActionPart, ...]:
        return tuple(m.part for m in self.parts if m.part.kind == JOINTS)


def part_joints(part: ActionPart) -> list[str]:
    """Names of its numbers."""
    return [dim.name for dim in part.dims]


class Hands:
    """Makes chunks of wishes: one end effector or base is moved, one gripper, and named joints.

    All other parts stand still: joints that are not named are left out of the chunks.
    tool: whether the arm moves in the tool's axes, where a wish does not say.
    """

    def __init__(self, robot: Robot, settings: TeleopSettings, tool: bool = False):
        self.robot, self.settings = robot, settings
        self.moved = robot.find((EEF, BASE), settings.part)
        beside = self.moved.part.name.replace("arm", "gripper") if self.moved else ""
        grippers = [m.part.name for m in robot.parts if m.part.kind == GRIPPER]
        named = settings.gripper or (beside if beside in grippers else "")
        found = robot.find((GRIPPER,), named)
        self.gripper = found.part.name if found else ""
        self.dt = 1 / settings.rate
        self.tool = tool

    def chunk(self, wish: Wish, grips: Mapping[str, float]) -> ActionChunk:
        """Equal steps of what is wanted. grips: each gripper's value.

        Raises VlaError where the wish is none for this robot.
        """
        spec = self._spec(wish)
        row = np.concatenate([self._numbers(part, wish, grips) for part in spec.parts])
        if not np.isfinite(row).all():
            raise VlaError("the device gives numbers that are not finite", "look at its driver")
        return ActionChunk(np.tile(row, (self.settings.steps, 1)), spec)

    def _spec(self, wish: Wish) -> ActionSpec:
        frame = "tool" if (self.tool if wish.tool is None else wish.tool) else "base"
        joints = {name for part in self.robot.joints for name in part_joints(part)}
        if strange := [name for name in wish.joints if name not in joints]:
            raise VlaError(
                f"the command node has no joint {', '.join(strange)}",
                f"map the leader's to {', '.join(sorted(joints)) or 'those of a joint part'}",
            )
        parts = tuple(
            replace(part, frame=frame) if part.kind == EEF else part
            for part in (m.part for m in self.robot.parts)
            if part.kind != JOINTS or not wish.joints.keys().isdisjoint(part_joints(part))
        )
        if not parts:
            raise VlaError("nothing of this robot is moved so", "use a leader arm for its joints")
        return ActionSpec(parts, self.dt)

    def _numbers(self, part: ActionPart, wish: Wish, grips: Mapping[str, float]) -> np.ndarray:
        if part.kind == GRIPPER:
            return np.array([grips.get(part.name, 0.5)])
        if part.kind == JOINTS:
            return self._positions(part, wish.joints)
        if self.moved is None or part.name != self.moved.part.name:
            return np.zeros(len(part))
        linear, angular = self.speeds
        way = _within(wish.shares[:3], linear)
        turn = _within(wish.shares[3:], angular)
        if part.kind == EEF:
            return self.dt * np.array([*way, *turn])
        return np.array([*way[: len(part) - 1], turn[2]])

    @staticmethod
    def _positions(part: ActionPart, joints: Mapping[str, float]) -> np.ndarray:
        names = part_joints(part)
        if lacking := [name for name in names if name not in joints]:
            raise VlaError(
                f"nobody says where {part.name}'s {', '.join(lacking)} shall be",
                "map a joint of the leader to each of the part's",
            )
        return np.array([joints[name] for name in names])

    @property
    def speeds(self) -> tuple[float, float]:
        """At full deflection [m/s, rad/s]: the settings', and no more than the command node's."""
        if self.moved is None:
            return 0.0, 0.0
        s, moved = self.settings, self.moved
        base = moved.part.kind == BASE
        linear = s.base_linear_speed if base else s.linear_speed
        angular = s.base_angular_speed if base else s.angular_speed
        return min(linear, moved.linear or math.inf), min(angular, moved.angular or math.inf)


def _within(shares: Sequence[float], speed: float) -> tuple[float, ...]:
    """Velocities of at most `speed` together, in the shares' direction."""
    return tuple(speed / max(1.0, math.hypot(*shares)) * share for share in shares)


def read_robot(values: Mapping[str, Any], drives: Callable[[str, str], str]) -> Robot:
    """The robot that a command node's parameters describe.

    drives: what an output drives, given part and output: "eef", "gripper", "joints" or "base".
    """
    names = [name for name in values.get("parts", ()) if name]
    arm = Moved(
        eef_part(),
        values.get("max_linear_velocity", 0.0),
        values.get("max_angular_velocity", 0.0),
        values.get("base_frame", "base_link"),
        values.get("tool_frame", "tool0"),
    )
    if not names:
        return Robot((arm, Moved(gripper_part())))
    makers = {"eef": _eef, "gripper": _gripper, "joints": _joints, "base": _base}
    found = []
    for name in names:
        own = {
            key.removeprefix(f"{name}."): value
            for key, value in values.items()
            if key.startswith(f"{name}.")
        }
        found.append(makers[drives(name, own.get("output", ""))](name, own, arm))
    return Robot(tuple(found))


def _eef(name: str, own: Mapping[str, Any], arm: Moved) -> Moved:
    base, tool = own.get("base_frame", arm.base), own.get("tool_frame", arm.tool)
    return replace(arm, part=eef_part(name), base=base, tool=tool)


def _gripper(name: str, own: Mapping[str, Any], arm: Moved) -> Moved:
    return Moved(gripper_part(name))


def _joints(name: str, own: Mapping[str, Any], arm: Moved) -> Moved:
    return Moved(joint_part(name, list(own.get("joints", ()))))


def _base(name: str, own: Mapping[str, Any], arm: Moved) -> Moved:
    sideways = [DimSpec("y", "m/s")] if own.get("holonomic") else []
    dims = (DimSpec("x", "m/s"), *sideways, DimSpec("rz", "rad/s"))
    frame = own.get("frame", "base_link")
    speeds = own.get("max_linear_velocity", 0.0), own.get("max_angular_velocity", 0.0)
    return Moved(ActionPart(name, BASE, dims, frame), *speeds, base=frame)
