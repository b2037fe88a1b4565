"""The command node's parameters, and the control settings made from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vla_inference.control import SafetyLimits, Settings, Watchdogs
from vla_inference.control.safety import Distribution
from vla_inference.control.vectors import Vector
from vla_inference.errors import VlaError
from vla_inference.options import option
from vla_inference.policies.action_specs import statistics_spec
from vla_inference.policies.normalisation import find_statistics
from vla_inference.ros.command.outputs.base import MOTION
from vla_inference.ros.command.outputs.registry import chosen, output_configs
from vla_inference.ros.parameters import Value, read, seconds


def limit(default: float, what: str, unit: str, note: str = "") -> float:
    """An option that limits a motion."""
    return option(default, f"{what} [{unit}]; 0: no limit{note}", low=0, high=1e6)


@dataclass(frozen=True, kw_only=True)
class CommandConfig:
    """The node's own parameters, beside those of its outputs."""

    command_rate: float = option(20.0, "commands per second [Hz]", low=1, high=1000)
    lock_step: bool = option(
        False,
        "periods and watchdogs by simulated time, for a simulation that waits for each command",
    )
    base_frame: str = option(
        "base_link", "frame of target_pose and current_pose, and of twists in base axes"
    )
    tool_frame: str = option("tool0", "frame_id of delta_twist if deltas are in tool axes")
    deltas_in: str = option("", "axes of the deltas: base, tool; empty: as the chunk says")
    scale: float = option(
        1.0,
        "share of the model's motion that is executed; 0.1 to 0.3 on a first run",
        low=1e-3,
        high=1,
    )
    speed: float = option(
        1.0,
        "share of `scale` that is executed; may be changed while the robot is disabled",
        low=0.01,
        high=1,
        live=True,
    )
    gripper_hysteresis: float = option(
        0.1, "hysteresis of the model's gripper value around 0.5", low=0, high=0.49
    )

    execute_steps: int = option(0, "steps of each chunk to execute; 0: all", low=0, high=10000)
    align: str = option("stamp", "chunks begin at their image's stamp or on arrival")
    ensemble: float = option(
        -1.0,
        "temporal ensembling with weights exp(-ensemble * i); negative: off",
        low=-1,
        high=100,
    )
    blend: float = option(0.1, "time to blend from one chunk to the next [s]", low=0, high=10)
    stretch: float = option(
        1.0,
        "stretches each step in time, so that chunks of slow models last longer",
        low=1,
        high=100,
    )
    catch_up: float = option(
        0.0,
        "time in which a late chunk catches up on the motion planned before its arrival [s]; "
        "0: never; about the time of an answer. Longer is smoother but lags more",
        low=0,
        high=60,
    )
    max_drift: float = option(
        0.05,
        "maximum lead of the target over current_pose [m]; 0: every target starts from "
        "current_pose",
        low=0,
        high=10,
    )
    max_drift_angle: float = option(0.3, "the same as an angle [rad]", low=1e-3, high=3.2)

    max_translation_per_step: float = limit(0.05, "limit of a chunk's step", "m")
    max_rotation_per_step: float = limit(0.5, "limit of a chunk's step", "rad")
    max_linear_velocity: float = limit(
        0.25, "velocity limit", "m/s", ". 0.25 is the reduced speed of ISO 10218-1"
    )
    max_angular_velocity: float = limit(1.0, "angular velocity limit", "rad/s")
    max_linear_acceleration: float = limit(2.5, "acceleration limit", "m/s^2")
    max_angular_acceleration: float = limit(10.0, "angular acceleration limit", "rad/s^2")
    max_linear_jerk: float = limit(50.0, "jerk limit", "m/s^3")
    max_angular_jerk: float = limit(200.0, "angular jerk limit", "rad/s^3")
    workspace: tuple[float, ...] = option(
        (0.0,),
        "box in the base frame, x y z lowest then highest [m]; [0.0]: none. Needs current_pose",
    )

    max_image_age: float = seconds(1.0, "maximum age of the image behind the motion [s]; 0: any")
    stall_timeout: float = seconds(1.0, "maximum time without an acceptable chunk [s]; 0: forever")
    heartbeat_timeout: float = seconds(
        0.0, "maximum time without a std_msgs/Empty on topic heartbeat [s]; 0: none is needed"
    )
    human_timeout: float = option(
        0.25,
        "maximum time without input of a person in charge, after which the robot comes to a halt "
        "until the next [s]",
        low=0.1,
        high=2,
    )
    pose_timeout: float = seconds(
        0.5, "maximum time without a current_pose, if needed [s]; 0: forever"
    )
    max_pose_jump: float = option(
        0.05,
        "allowed jump of current_pose beyond what the velocity limit allows [m]; larger ones "
        "are refused",
        low=1e-3,
        high=10,
    )
    max_pose_jump_angle: float = option(0.3, "the same as an angle [rad]", low=1e-3, high=3.2)
    frozen_pose_timeout: float = seconds(
        0.5, "commanded motion during which current_pose may stay exactly the same [s]; 0: forever"
    )
    clock_timeout: float = seconds(
        0.5, "maximum time for which the clock may stand still [s]; 0: forever"
    )
    max_clock_jump: float = seconds(
        0.2, "maximum jump of the clock between two periods [s]; 0: any"
    )
    max_period: float = seconds(
        0.5, "maximum time between two commands before it counts as overload [s]"
    )

    statistics: str = option(
        "",
        "dataset_statistics.json of the model, to refuse chunks far outside; empty: no check",
    )
    unnorm_key: str = option("", "which of these statistics; empty: the only ones")
    distribution_margin: float = option(
        0.5, "tolerance beyond the bounds, as a share of their distance", low=0, high=1e6
    )
    distribution_bounds: str = option(
        "",
        "q01_q99 or min_max of these statistics; empty: as config.json beside them says",
    )


def command_configs() -> tuple[type, ...]:
    """All parameters: the node's own, and those of the outputs that are installed."""
    return (CommandConfig, *output_configs(MOTION))


class Frames(NamedTuple):
    """Names of the frames of commands."""

    base: str
    tool: str


def read_frames(value: Value) -> Frames:
    for name in ("base_frame", "tool_frame"):
        if not value(name):
            raise VlaError(f"parameter {name!r} is empty", "controllers drop what has no frame")
    return Frames(value("base_frame"), value("tool_frame"))


Box = tuple[Vector, Vector]


def read_box(box: tuple[float, ...], name: str = "workspace") -> Box | None:
    """The corners of a workspace; None: there is none."""
    if len(box) not in (1, 6):
        raise VlaError(f"parameter {name!r} has {len(box)} numbers", "give six, or [0.0]")
    return ((box[0], box[1], box[2]), (box[3], box[4], box[5])) if len(box) == 6 else None


def read_settings(value: Value, by_parts: bool = False) -> Settings:
    """Of the only arm and its gripper, or what the parts of a robot share."""
    config = read(CommandConfig, value)
    workspace = read_box(config.workspace)
    needs_pose = not by_parts and any(o.needs_pose for o in chosen(MOTION, value))
    names = [
        f"{kind}_{what}"
        for what in ("velocity", "acceleration", "jerk")
        for kind in ("linear", "angular")
    ] + ["translation_per_step", "rotation_per_step"]
    limits = SafetyLimits(**{n: getattr(config, f"max_{n}") for n in names}, workspace=workspace)
    watchdogs = Watchdogs(
        image_age=config.max_image_age,
        stall=config.stall_timeout,
        clock_jump=config.max_clock_jump,
        late=config.max_period,
        heartbeat=config.heartbeat_timeout,
        pose_age=config.pose_timeout,
        pose_frozen=config.frozen_pose_timeout,
        clock_stopped=config.clock_timeout,
    )
    return Settings(
        rate=config.command_rate,
        scale=config.scale * config.speed,
        deltas_in=config.deltas_in,
        execute_steps=config.execute_steps,
        align=config.align,
        ensemble=config.ensemble if config.ensemble >= 0 else None,
        blend=config.blend,
        stretch=config.stretch,
        catch_up=config.catch_up,
        drift=(config.max_drift, config.max_drift_angle),
        pose_jump=(config.max_pose_jump, config.max_pose_jump_angle),
        gripper_hysteresis=config.gripper_hysteresis,
        needs_pose=needs_pose or workspace is not None,
        human_timeout=config.human_timeout,
        limits=limits,
        watchdogs=watchdogs,
        distribution=_distribution(config),
    )


def limits_in_force(
    settings: Settings, frames: Frames, outputs: str, enable: str, parts: Sequence[str] = ()
) -> str:
    """The limits of the node in a few lines, for the log.

    outputs: what is sent where, in words. enable: the service's name. parts: a line of each, where
    the robot has parts.
    """
    limits, watchdogs = settings.limits, settings.watchdogs

    def three(kind: str, unit: str) -> str:
        values = [
            getattr(limits, f"{kind}_{what}") for what in ("velocity", "acceleration", "jerk")
        ]
        units = unit, f"{unit}^2", f"{unit}^3"
        return ", ".join(
            f"{x:g} {u}" if x else f"no limit ({u})" for x, u in zip(values, units, strict=True)
        )

    if limits.workspace is None:
        box = "none"
    else:
        low, high = ([f"{x:g}" for x in corner] for corner in limits.workspace)
        box = ", ".join(
            f"{axis} {a} to {b} m" for axis, a, b in zip("xyz", low, high, strict=True)
        )
    guards = ", ".join(
        f"{name.replace('_', ' ')} {bound:g} s" if bound else f"{name.replace('_', ' ')} off"
        for name, bound in vars(watchdogs).items()
    )
    arm = [
        f"  frames: base {frames.base}, tool {frames.tool}; deltas in "
        + (settings.deltas_in or "the axes that the chunk names"),
        f"  outputs: {outputs}",
        "  linear velocity, acceleration, jerk: " + three("linear", "m/s"),
        "  angular velocity, acceleration, jerk: " + three("angular", "rad/s"),
        f"  workspace: {box}",
    ]
    lines = [
        f"limits in force, at {settings.rate:g} Hz and {settings.scale:g} of the model's motion:",
        *([f"  {line}" for line in parts] or arm),
        f"  watchdogs: {guards}",
        f"  a person who has taken over halts it by a silence of {settings.human_timeout:g} s",
        f"disabled; call {enable} to move the robot",
    ]
    return "\n".join(lines)


BOUNDS = ("q01_q99", "min_max")


def _distribution(config: CommandConfig) -> Distribution | None:
    if not config.statistics:
        return None
    path = Path(config.statistics)
    spaces = _read_object(path, "statistics")
    bounds = config.distribution_bounds or _bounds_of_head(path.with_name("config.json"))
    if bounds not in BOUNDS:
        raise VlaError(f"unknown distribution_bounds {bounds!r}", f"use {' or '.join(BOUNDS)}")
    name, entry = find_statistics(spaces, config.unnorm_key or None)
    found = Distribution.from_statistics(entry, config.distribution_margin, bounds)
    return found.in_si(statistics_spec(spaces[name], len(found.low), name))


def _bounds_of_head(config: Path) -> str:
    """The kind of bounds in the model's config, if that is beside its statistics."""
    head = _read_object(config, "configuration").get("action_head") if config.is_file() else None
    return str(head.get("bounds", BOUNDS[0])) if isinstance(head, dict) else BOUNDS[0]


def _read_object(path: Path, what: str) -> dict:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VlaError(f"cannot read {what} {str(path)!r}: {error}", "give a JSON file") from None
    if not isinstance(read, dict):
        raise VlaError(f"{str(path)!r} has no {what}", "give the file beside the model's weights")
    return read
