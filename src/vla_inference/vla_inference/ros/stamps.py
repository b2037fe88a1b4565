"""Converts message stamps to numbers; handles invalid stamps, on which rclpy raises."""

from __future__ import annotations

from builtin_interfaces.msg import Time

from vla_inference.errors import VlaError

SECOND = 10**9  # ns


def stamp_ns(stamp: Time, what: str = "the message") -> int:
    """Nanoseconds since 1970; 0: no stamp. Raises VlaError, naming `what`, if it is invalid."""
    if stamp.sec < 0 or stamp.nanosec >= SECOND:
        raise VlaError(
            f"the stamp of {what} is not a valid time ({stamp.sec} s, {stamp.nanosec} ns)",
            "set header.stamp to the time of the measurement, by the graph's clock",
        )
    return stamp.sec * SECOND + stamp.nanosec


def stamp_seconds(stamp: Time, what: str = "the message") -> float:
    """The same in seconds."""
    return stamp_ns(stamp, what) / SECOND
