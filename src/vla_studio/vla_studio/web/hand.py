"""What the operator moves by hand: sent on while the button is held and a person commands."""

from __future__ import annotations

from collections.abc import Callable

from vla_inference.errors import VlaError
from vla_inference.teleop.wish import STILL, Shares, Wish
from vla_studio.web.graph import Graph

HUMAN = "human"  # CommandSource.HUMAN


class Hand:
    """timeout: seconds after the page's last word until what it says counts no more.

    happened: called with a line for the event log. Times by one monotonic clock.
    """

    def __init__(self, graph: Graph, timeout: float, happened: Callable[[str], None]):
        self._graph, self._timeout, self._happened = graph, timeout, happened
        self._shares, self._said = STILL, 0.0
        self._acts: tuple[str, ...] = ()
        self._by_hand = False
        self._problem = ""

    def commands(self, source: str) -> None:
        """Who commands the robot from now on."""
        self._by_hand = source == HUMAN
        self._shares, self._acts = STILL, ()
        if not self._by_hand:
            self.halt()

    def take(self, shares: Shares, acts: tuple[str, ...], now: float) -> None:
        """How the page wants it to move, and what its gripper is to do."""
        self._shares, self._said = shares, now
        self._acts = (*self._acts, *acts)[-8:]

    def send(self, now: float) -> None:
        """To be called again and again while the button is held: it is the switch."""
        if not self._by_hand:
            return
        if now - self._said > self._timeout:
            self._shares = STILL
        try:
            self._graph.drive(Wish(True, self._shares, acts=self._acts))
            self._problem = ""
        except VlaError as error:
            if str(error) != self._problem:
                self._happened(f"nothing moves: {error}")
            self._problem = str(error)
        self._acts = ()

    def halt(self) -> None:
        """No motion, at once."""
        self._shares, self._acts = STILL, ()
        self._graph.halt()
