"""The parts of a robot that the command node drives: parameters, measurements, outputs of each.

Without the parameter `parts` a robot is one end-effector arm and its gripper, as the node's own
parameters describe them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vla_inference.control import Safety, Settings
from vla_inference.control.axis import AxisLimits
from vla_inference.control.parts.base import Part
from vla_inference.control.parts.clearance import ClearanceLimits
from vla_inference.control.parts.eef import EefPart
from vla_inference.control.parts.gripper import GripperPart
from vla_inference.control.parts.joints import JointPart, JointSettings
from vla_inference.control.parts.planned_joints import PlannedJointPart
from vla_inference.control.parts.twist import BaseLimits, BasePart
from vla_inference.control.robot_description import JointRange, joint_ranges
from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.ros.command.outputs.base import (
    BASE_PART,
    EEF,
    GRIPPER,
    JOINT_PART,
    NoConfig,
    Output,
)
from vla_inference.ros.command.parameters import limit, read_box
from vla_inference.ros.parameters import Value, read


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """Named when the node starts; each part has parameters of its own, below its name."""

    parts: tuple[str, ...] = option(
        (),
        "names of the chunk's parts that this node drives, each with parameters NAME.output and "
        'others; [""]: one end-effector arm and its gripper, by the parameters above',
    )


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    output: str = option("", "what the part is sent as: the name of an output")


@dataclass(frozen=True, kw_only=True)
class JointPartConfig:
    """Of a part whose output drives joints. One number stands for all joints."""

    joints: tuple[str, ...] = option((), "the robot's joints, in the order of the chunk's numbers")
    robot_description: str = option(
        "", "URDF that has the joints' limits: its text, or the path of its file"
    )
    lower_limits: tuple[float, ...] = option(
        (0.0,), "lowest positions [rad, m]; both [0.0]: those of robot_description"
    )
    upper_limits: tuple[float, ...] = option((0.0,), "highest positions [rad, m]")
    max_velocity: tuple[float, ...] = option(
        (1.0,), "velocity limits [rad/s, m/s]; those of robot_description if lower"
    )
    max_acceleration: tuple[float, ...] = option(
        (10.0,), "acceleration limits [rad/s^2, m/s^2]; 0: no limit"
    )
    max_jerk: tuple[float, ...] = option((200.0,), "jerk limits [rad/s^3, m/s^3]; 0: no limit")
    max_drift: tuple[float, ...] = option(
        (0.3,),
        "maximum lead of a commanded joint over the measured one [rad, m]; 0: every command "
        "starts from the measured joint",
    )
    max_joint_jump: float = option(
        0.1,
        "allowed jump of a measured joint beyond what its velocity allows [rad, m]; larger ones "
        "are refused",
        low=1e-3,
        high=10,
    )
    joint_publishers: int = option(
        1, "allowed publishers of PART/joint_states; more stop the robot", low=1, high=100
    )


@dataclass(frozen=True, kw_only=True)
class BasePartConfig:
    """Of a part whose output drives a mobile base."""

    frame: str = option("base_link", "frame of the base's twists")
    holonomic: bool = option(False, "whether the base can go sideways")
    max_linear_velocity: float = limit(0.5, "velocity limit", "m/s")
    max_angular_velocity: float = limit(1.0, "angular velocity limit", "rad/s")
    max_linear_acceleration: float = limit(1.0, "acceleration limit", "m/s^2")
    max_angular_acceleration: float = limit(2.0, "angular acceleration limit", "rad/s^2")
    max_linear_jerk: float = limit(10.0, "jerk limit", "m/s^3")
    max_angular_jerk: float = limit(20.0, "angular jerk limit", "rad/s^3")
    stop_distance: float = option(
        0.0,
        "stop when PART/scan (LaserScan) shows something ahead within this distance of the "
        "base's front [m]; 0: scans are not needed",
        low=0,
        high=100,
    )
    stop_width: float = option(
        0.5, "width of the strip ahead that has to be clear [m]", low=0.01, high=100
    )
    scan_to_front: float = option(
        0.2, "distance from the scanner to the base's front [m]", low=-10, high=10
    )
    scan_yaw: float = option(
        0.0, "where the scanner looks, from the base's x axis [rad]", low=-3.2, high=3.2
    )
    scan_timeout: float = option(0.5, "maximum age of a scan [s]", low=0.05, high=10)


@dataclass(frozen=True, kw_only=True)
class EefPartConfig:
    """Of a part whose output drives an end effector; its limits are the node's."""

    base_frame: str = option(
        "base_link", "frame of PART/target_pose and PART/current_pose, and of twists in base axes"
    )
    tool_frame: str = option("tool0", "frame_id of PART/delta_twist if deltas are in tool axes")
    workspace: tuple[float, ...] = option(
        (0.0,),
        "box in the base frame, x y z lowest then highest [m]; [0.0]: none. Needs "
        "PART/current_pose",
    )


PART_CONFIGS: Mapping[str, type] = {
    JOINT_PART: JointPartConfig,
    BASE_PART: BasePartConfig,
    EEF: EefPartConfig,
    GRIPPER: NoConfig,
}


@dataclass(frozen=True)
class PartSetup:
    """One part as its parameters describe it.

    make: its controller. told: its limits, in words. topic, message: of its measurements, with at
    most `publishers` publishers; empty: it needs none. frame: of measured poses.
    """

    name: str
    make: Callable[[Safety], Part[Any, Any]]
    told: str = ""
    topic: str = ""
    publishers: int = 1
    frame: str = ""


def value_of_part(value: Value, part: str) -> Value:
    """Gives the parameters of a part by their names within it."""
    return lambda name: value(f"{part}.{name}")


def set_up(part: str, kind: type[Output], settings: Settings, value: Value) -> PartSetup:
    """value: of the part's parameters. VlaError names the part where they contradict."""
    makers = {JOINT_PART: _joints, BASE_PART: _base, EEF: _eef, GRIPPER: _gripper}
    try:
        return makers[kind.drives](part, kind, settings, value)
    except VlaError as error:
        raise VlaError(f"part {part!r}: {error.problem}", error.remedy) from None


def _joints(part: str, kind: type[Output], settings: Settings, value: Value) -> PartSetup:
    config = read(JointPartConfig, value)
    joints = joint_settings(config, kind.by_velocity)
    told = ", ".join(
        f"{name} {a.lower:g} to {a.upper:g}, {settings.scale * a.velocity:g}/s"
        for name, a in zip(joints.names, joints.limits, strict=True)
    )

    def make(safety: Safety) -> JointPart:
        if kind.plans:
            return PlannedJointPart(part, settings, joints, safety, value("horizon"))
        return JointPart(part, settings, joints, safety)

    return PartSetup(
        part,
        make,
        told,
        f"{part}/joint_states",
        config.joint_publishers,
    )


def joint_settings(config: JointPartConfig, by_velocity: bool) -> JointSettings:
    """With the limits of the robot's description where the parameters say nothing."""
    names, ranges = config.joints, _ranges(config)
    count = len(names)
    low, high = config.lower_limits, config.upper_limits
    if low == high == (0.0,):
        low, high = tuple(r.lower for r in ranges), tuple(r.upper for r in ranges)
        if not config.robot_description:
            raise VlaError(
                "nothing says how far its joints may go",
                "set robot_description, or lower_limits and upper_limits",
            )
    tops = _each(config.max_velocity, count, "max_velocity")
    limits = tuple(
        AxisLimits(lower, upper, min(top, r.velocity), steepest or math.inf, jerk or math.inf)
        for r, lower, upper, top, steepest, jerk in zip(
            ranges,
            _each(low, count, "lower_limits"),
            _each(high, count, "upper_limits"),
            tops,
            _each(config.max_acceleration, count, "max_acceleration"),
            _each(config.max_jerk, count, "max_jerk"),
            strict=True,
        )
    )
    return JointSettings(
        names,
        limits,
        _each(config.max_drift, count, "max_drift"),
        config.max_joint_jump,
        tuple(r.velocity for r in ranges),
        by_velocity,
    )


def _ranges(config: JointPartConfig) -> list[JointRange]:
    if not config.joints:
        raise VlaError("its joints are not named", "set joints, in the order of the chunk")
    if not config.robot_description:
        return [JointRange()] * len(config.joints)
    known = joint_ranges(config.robot_description)
    if lacking := [name for name in config.joints if name not in known]:
        raise VlaError(
            f"robot_description has no moving joint {', '.join(lacking)}",
            f"it has {', '.join(known)}",
        )
    return [known[name] for name in config.joints]


def _each(numbers: tuple[float, ...], count: int, name: str) -> tuple[float, ...]:
    """One for each joint."""
    if len(numbers) not in (1, count):
        raise VlaError(
            f"{name} has {len(numbers)} numbers for {count} joints", "give one, or one for each"
        )
    return numbers * count if len(numbers) == 1 else numbers


def _base(part: str, kind: type[Output], settings: Settings, value: Value) -> PartSetup:
    c = read(BasePartConfig, value)
    if not c.frame:
        raise VlaError("parameter 'frame' is empty", "controllers drop what has no frame")
    limits = BaseLimits(
        (c.max_linear_velocity, c.max_linear_acceleration, c.max_linear_jerk),
        (c.max_angular_velocity, c.max_angular_acceleration, c.max_angular_jerk),
        c.frame,
        c.holonomic,
        ClearanceLimits(
            c.stop_distance, c.stop_width, c.scan_to_front, c.scan_yaw, c.scan_timeout
        ),
    )
    if c.stop_distance and c.holonomic:
        raise VlaError(
            f"{part} has a stop_distance and is holonomic",
            "scans watch the way ahead alone: leave one out",
        )
    told = f"up to {c.max_linear_velocity:g} m/s, {c.max_angular_velocity:g} rad/s"
    if c.stop_distance:
        told += f", stops {c.stop_distance:g} m ahead of what {part}/scan shows"
    topic = f"{part}/scan" if c.stop_distance else ""
    return PartSetup(part, lambda safety: BasePart(part, settings, limits, safety), told, topic)


def _eef(part: str, kind: type[Output], settings: Settings, value: Value) -> PartSetup:
    config = read(EefPartConfig, value)
    if not (config.base_frame and config.tool_frame):
        raise VlaError("base_frame or tool_frame is empty", "controllers drop what has no frame")
    box = read_box(config.workspace)
    own = replace(
        settings,
        needs_pose=kind.needs_pose or box is not None,
        limits=replace(settings.limits, workspace=box),
    )
    told = f"up to {own.limits.linear_velocity:g} m/s, {own.limits.angular_velocity:g} rad/s"
    return PartSetup(
        part,
        lambda safety: EefPart(part, own, safety),
        told + (f", workspace {config.workspace}" if box else ""),
        f"{part}/current_pose" if own.needs_pose else "",
        frame=config.base_frame,
    )


def _gripper(part: str, kind: type[Output], settings: Settings, value: Value) -> PartSetup:
    return PartSetup(part, lambda safety: GripperPart(part, settings, safety))
