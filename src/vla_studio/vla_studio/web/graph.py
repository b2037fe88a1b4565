"""`Graph`: all that the page can do to the ROS graph."""

from __future__ import annotations

from typing import Any, Protocol

from vla_inference.teleop.wish import Wish


class Graph(Protocol):
    """The node, as the server's thread sees it."""

    async def call(self, name: str, **fields: Any) -> dict[str, Any]:
        """The answer of a service in the allow-list, as plain data.

        Raises VlaError if the service is not there, does not answer in time or refuses.
        """

    async def heartbeat_timeout(self) -> float:
        """The command node's, seconds; 0: its watchdog is off. Raises VlaError as `call`."""

    async def speed(self) -> dict[str, float | None]:
        """The command node's `speed` and `scale`; None: it has none. Raises VlaError as `call`."""

    async def set_speed(self, speed: float) -> None:
        """Sets the command node's `speed`, 0.01 to 1. Raises VlaError as `call`."""

    def heartbeat(self) -> None:
        """Tells the command node that somebody holds the button."""

    def drive(self, wish: Wish) -> None:
        """Publishes what a person wants; VlaError where the robot cannot be moved so."""

    def halt(self) -> None:
        """Publishes that a person wants no motion, if the last wish was of any."""

    def said(self, text: str) -> None:
        """Publishes what somebody has said."""

    def available(self) -> dict[str, bool]:
        """Which services of the allow-list are there, by name."""
