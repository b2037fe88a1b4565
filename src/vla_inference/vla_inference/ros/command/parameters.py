"""The command node's parameters, and the control settings made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from rcl_interfaces.msg import IntegerRange

from vla_inference.control import SafetyLimits, Settings, Watchdogs
from vla_inference.control.safety import Distribution
from vla_inference.errors import VlaError
from vla_inference.policies.normalisation import find_statistics
from vla_inference.ros.command.outputs.base import MOTION, Value
from vla_inference.ros.command.outputs.registry import chosen, with_outputs
from vla_inference.ros.parameters import SECONDS, Table, real

_LIMIT = real(0.0, 1e6)

# The node's own, beside those of its outputs. All are read when the node is configured.
OWN: Table = {
    "command_rate": (20.0, "commands per second [Hz]", real(1.0, 1000.0)),
    "lock_step": (
        False,
        "periods and watchdogs by simulated time, of a simulation that waits for each command",
        None,
    ),
    "base_frame": ("base_link", "frame of target_pose, current_pose and base deltas", None),
    "tool_frame": ("tool0", "frame_id of delta_twist where deltas are in tool axes", None),
    "deltas_in": ("", "axes of the deltas: base, tool; empty: what the chunk says", None),
    "scale": (1.0, "share of the model's motion carried out; small at first", real(1e-3, 1.0)),
    "execute_steps": (
        0,
        "steps of each chunk to execute; 0: all",
        IntegerRange(from_value=0, to_value=10000),
    ),
    "align": ("stamp", "chunks begin at their image's stamp or on arrival", None),
    "ensemble": (
        -1.0,
        "weight exp(-ensemble * i) of temporal ensembling; negative: off",
        real(-1.0, 100.0),
    ),
    "blend": (0.1, "time in which a chunk takes over from the last one [s]", real(0.0, 10.0)),
    "stretch": (1.0, "how many times as long, and slower, each step is", real(1.0, 100.0)),
    "catch_up": (
        0.0,
        "time in which a late chunk makes up for what it wanted done before it came [s]; 0: "
        "never, else about as long as an answer takes; longer is smoother and further behind",
        real(0.0, 60.0),
    ),
    "max_drift": (
        0.05,
        "of the target ahead of current_pose [m]; 0: every target starts there",
        real(0.0, 10.0),
    ),
    "max_drift_angle": (0.3, "the same [rad]", real(1e-3, 3.2)),
    "gripper_hysteresis": (0.1, "around 0.5, of the model's gripper", real(0.0, 0.49)),
    "max_translation_per_step": (0.05, "of a chunk's step [m]; 0: no limit", _LIMIT),
    "max_rotation_per_step": (0.5, "of a chunk's step [rad]; 0: no limit", _LIMIT),
    "max_linear_velocity": (0.25, "[m/s]; 0: no limit", _LIMIT),
    "max_angular_velocity": (1.0, "[rad/s]; 0: no limit", _LIMIT),
    "max_linear_acceleration": (2.5, "[m/s^2]; 0: no limit", _LIMIT),
    "max_angular_acceleration": (10.0, "[rad/s^2]; 0: no limit", _LIMIT),
    "max_linear_jerk": (50.0, "[m/s^3]; 0: no limit", _LIMIT),
    "max_angular_jerk": (200.0, "[rad/s^3]; 0: no limit", _LIMIT),
    "workspace": (
        [0.0],
        "box in the base frame, x y z lowest then highest [m]; [0.0]: none. Needs current_pose",
        None,
    ),
    "max_image_age": (1.0, "of the image behind the motion [s]; 0: any", SECONDS),
    "stall_timeout": (1.0, "without an acceptable chunk [s]; 0: forever", SECONDS),
    "heartbeat_timeout": (0.0, "without a heartbeat [s]; 0: none is needed", SECONDS),
    "pose_timeout": (0.5, "without a current_pose, where needed [s]; 0: forever", SECONDS),
    "max_pose_jump": (
        0.05,
        "of current_pose beyond what the velocity limit allows [m]",
        real(1e-3, 10.0),
    ),
    "max_pose_jump_angle": (0.3, "the same [rad]", real(1e-3, 3.2)),
    "frozen_pose_timeout": (
        0.5,
        "of commanded motion while current_pose stays exactly the same [s]; 0: forever",
        SECONDS,
    ),
    "clock_timeout": (0.5, "while the clock stands still [s]; 0: forever", SECONDS),
    "max_clock_jump": (0.2, "between two periods [s]; 0: any", SECONDS),
    "max_period": (0.5, "between two commands before it counts as overload [s]", SECONDS),
    "statistics": (
        "",
        "dataset_statistics.json of the model: refuse chunks far outside; empty: don't",
        None,
    ),
    "unnorm_key": ("", "which of these statistics; empty: the only ones there are", None),
    "distribution_margin": (0.5, "beyond the bounds, as a share of their distance", _LIMIT),
    "distribution_bounds": (
        "",
        "q01_q99 or min_max of these statistics; empty: what config.json beside them says",
        None,
    ),
}


def command_parameters() -> Table:
    """All of them: the node's own, and those of the outputs that are installed."""
    return with_outputs(OWN, MOTION)


class Frames(NamedTuple):
    """Names of the frames that commands are expressed in."""

    base: str
    tool: str


def read_frames(value: Value) -> Frames:
    for name in ("base_frame", "tool_frame"):
        if not value(name):
            raise VlaError(f"parameter {name!r} is empty", "controllers drop what has no frame")
    return Frames(value("base_frame"), value("tool_frame"))


def read_settings(value: Value) -> Settings:
    box = list(value("workspace"))
    if len(box) not in (1, 6):
        raise VlaError(f"parameter 'workspace' has {len(box)} numbers", "give six, or [0.0]")
    needs_pose = any(output.needs_pose for output in chosen(MOTION, value))
    workspace = (tuple(box[:3]), tuple(box[3:])) if len(box) == 6 else None
    names = [
        f"{kind}_{what}"
        for what in ("velocity", "acceleration", "jerk")
        for kind in ("linear", "angular")
    ] + ["translation_per_step", "rotation_per_step"]
    limits = SafetyLimits(**{n: value(f"max_{n}") for n in names}, workspace=workspace)
    watchdogs = Watchdogs(
        image_age=value("max_image_age"),
        stall=value("stall_timeout"),
        clock_jump=value("max_clock_jump"),
        late=value("max_period"),
        heartbeat=value("heartbeat_timeout"),
        pose_age=value("pose_timeout"),
        pose_frozen=value("frozen_pose_timeout"),
        clock_stopped=value("clock_timeout"),
    )
    return Settings(
        rate=value("command_rate"),
        scale=value("scale"),
        deltas_in=value("deltas_in"),
        execute_steps=value("execute_steps"),
        align=value("align"),
        ensemble=value("ensemble") if value("ensemble") >= 0 else None,
        blend=value("blend"),
        stretch=value("stretch"),
        catch_up=value("catch_up"),
        drift=(value("max_drift"), value("max_drift_angle")),
        pose_jump=(value("max_pose_jump"), value("max_pose_jump_angle")),
        gripper_hysteresis=value("gripper_hysteresis"),
        needs_pose=needs_pose or workspace is not None,
        limits=limits,
        watchdogs=watchdogs,
        distribution=_distribution(
            value("statistics"),
            value("unnorm_key"),
            value("distribution_margin"),
            value("distribution_bounds"),
        ),
    )


def limits_in_force(settings: Settings, frames: Frames, outputs: str, enable: str) -> str:
    """What the node may do to the robot, for whoever starts it, in a few lines.

    outputs: what is sent where, in words. enable: the service's name.
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
    lines = [
        f"limits in force, at {settings.rate:g} Hz and {settings.scale:g} of the model's motion:",
        f"  frames: base {frames.base}, tool {frames.tool}; deltas in "
        + (settings.deltas_in or "the axes that the chunk names"),
        f"  outputs: {outputs}",
        "  linear velocity, acceleration, jerk: " + three("linear", "m/s"),
        "  angular velocity, acceleration, jerk: " + three("angular", "rad/s"),
        f"  workspace: {box}",
        f"  watchdogs: {guards}",
        f"disabled; call {enable} to move the robot",
    ]
    return "\n".join(lines)


BOUNDS = ("q01_q99", "min_max")


def _distribution(path: str, key: str, margin: float, bounds: str) -> Distribution | None:
    if not path:
        return None
    spaces = _read_object(Path(path), "statistics")
    bounds = bounds or _bounds_of_head(Path(path).with_name("config.json"))
    if bounds not in BOUNDS:
        raise VlaError(f"unknown distribution_bounds {bounds!r}", f"use {' or '.join(BOUNDS)}")
    return Distribution.from_statistics(find_statistics(spaces, key or None)[1], margin, bounds)


def _bounds_of_head(config: Path) -> str:
    """What the model's own configuration says, where it lies beside its statistics."""
    head = _read_object(config, "configuration").get("action_head") if config.is_file() else None
    return str(head.get("bounds", BOUNDS[0])) if isinstance(head, dict) else BOUNDS[0]


def _read_object(path: Path, what: str) -> dict:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VlaError(f"cannot read {what} {str(path)!r}: {error}", "give a JSON file") from None
    if not isinstance(read, dict):
        raise VlaError(
            f"{str(path)!r} holds no {what}", "give the file beside the model's weights"
        )
    return read
