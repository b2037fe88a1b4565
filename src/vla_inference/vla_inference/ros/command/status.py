"""The command node's state as a status message and as diagnostics."""

from __future__ import annotations

import math

from rclpy.time import Time

from vla_inference.control import DISABLED, ENABLED, STOPPED, RobotCommander, Takeover
from vla_inference.ros.diagnostics import ERROR, OK, WARN, Report
from vla_msgs.msg import CommandStatus

HINTS = {
    DISABLED: "dry run: call ~/enable to publish commands",
    STOPPED: "stopped; fix the reason, then call ~/enable",
}


def fill_status(
    status: CommandStatus,
    commander: RobotCommander,
    now: float,
    sent: int,
    rate: float,
    remark: str,
) -> None:
    """Fills all but the header for an active node. sent: commands; rate: their rate [Hz]."""
    safety = commander.safety
    status.state = safety.state
    status.source, status.silences = commander.takeover.source, commander.takeover.silences
    stop = safety.last_stop
    if stop is not None:
        status.stop_kind, status.stop_reason = stop.kind, stop.reason
        status.stop_time = Time(nanoseconds=max(0, int(1e9 * stop.now))).to_msg()
    status.warning = "" if safety.enabled else safety.warning
    status.command_rate, status.nominal_rate = rate, 1.0 / commander.period
    status.scale = commander.scale
    status.image_age_ms = math.nan
    if commander.image_stamp is not None:
        status.image_age_ms = 1e3 * (now - commander.image_stamp)
    status.commands, status.chunks = sent, commander.chunks
    status.refused = safety.refusals.total()
    status.stale_steps = commander.player.stale
    status.last_refusal = safety.last_refusal
    status.clip_kinds, status.clip_counts = list(safety.clips), list(safety.clips.values())
    status.stop_kinds, status.stop_counts = list(safety.stops), list(safety.stops.values())
    status.message = remark or HINTS.get(safety.state, "") or in_charge(commander.takeover)


def in_charge(takeover: Takeover) -> str:
    """What is to be said about who commands; empty: nothing."""
    if takeover.waits:
        return "given back; the robot holds still until the model answers to a newer image"
    if not takeover.by_hand:
        return ""
    if takeover.heard:
        return "a person commands the robot"
    return "a person is in charge and silent: the robot holds still; hold the dead-man's switch"


def diagnosis(commander: RobotCommander, sent: int, rate: float, remark: str) -> Report:
    """Level, message and values of an active node's diagnostics."""
    safety = commander.safety
    level, message = OK, safety.state
    if safety.state == STOPPED and safety.last_stop is not None:
        level, message = ERROR, f"stopped: {safety.last_stop.reason}"
    elif safety.state == ENABLED and remark:
        level, message = WARN, remark
    return (
        level,
        message,
        {
            "state": safety.state,
            "source": commander.takeover.source,
            "silences of a person in charge": commander.takeover.silences,
            "commands": sent,
            "command rate [Hz]": f"{rate:.1f}",
            "chunks": commander.chunks,
            "last stop": safety.last_stop.reason if safety.last_stop else "",
            "last refusal": safety.last_refusal,
            **{f"clips {k}": n for k, n in safety.clips.items()},
            **{f"stops {k}": n for k, n in safety.stops.items()},
            **{f"refusals {k}": n for k, n in safety.refusals.items()},
        },
    )
