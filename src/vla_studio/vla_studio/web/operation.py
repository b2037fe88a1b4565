"""What moves the robot: the seat, hold-to-enable, stop. All in the server's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.teleop.wish import Shares
from vla_studio.web.graph import Graph
from vla_studio.web.hand import Hand
from vla_studio.web.page import Page
from vla_studio.web.seat import Hold, Seat

log = logging.getLogger(__name__)
LOOK = 0.02  # s between looks at the hold
BEAT = 0.05  # s between heartbeats
PATIENCE = 2.0  # s for the command node to agree to enable
HEARTBEAT_TIMEOUT = 0.3  # s, the command node's at most: it stands behind this switch


class Operation:
    """happened: called with a line for the event log. changed: called after any change."""

    def __init__(
        self,
        graph: Graph,
        timeout: float,
        happened: Callable[[str], None],
        changed: Callable[[], None],
    ):
        self.graph, self.seat, self.hold = graph, Seat[Page](), Hold(timeout)
        self._happened, self._changed = happened, changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._beaten = 0.0
        self._hand = Hand(graph, timeout, happened)

    def state(self) -> dict[str, Any]:
        """For the pages: who operates, who asks, and whether the button is held."""
        names = {"operator": self.seat.holder, "asking": self.seat.asking}
        return {**{k: p.name if p else "" for k, p in names.items()}, "held": self.hold.held}

    # -- the seat -----------------------------------------------------------------------------

    def take(self, page: Page) -> None:
        if self.seat.take(page):
            self.hold.forget()
            self._happened(f"{page.name} has control")
        else:
            self._happened(f"{page.name} asks for control")
        self._changed()

    def leave(self, page: Page) -> None:
        """`page` goes, or gives control back: what it held ends."""
        holder = self.seat.holder
        if holder is page:
            self.end_hold(f"{page.name} has left")
        self.seat.leave(page)
        if holder is page:
            self._happened(f"{page.name} no longer has control")
        self._changed()

    def hand_over(self, page: Page, agreed: bool) -> None:
        if agreed:
            self.seat.hand_over(page)
            self.end_hold("control was handed over")
            self.hold.forget()
            self._happened(f"{self.state()['operator']} has control")
        else:
            self.seat.refuse(page)
        self._changed()

    # -- the button ---------------------------------------------------------------------------

    def held(self, page: Page, press: int) -> None:
        """The operator's page says that its button is down."""
        self.seat.check(page)
        if self.hold.sign(press, time.monotonic()):
            self.graph.heartbeat()
            self.start(self._enable())
            self._changed()

    def released(self, page: Page) -> None:
        if self.seat.holder is page:
            self.end_hold("released")

    def stop(self, page: Page) -> None:
        """Anybody may stop."""
        self.hold.end()
        self._hand.halt()
        self.start(self._disable())
        self._happened(f"{page.name} stopped the robot")
        self._changed()

    def end_hold(self, why: str) -> None:
        if self.hold.end():
            self._hand.halt()
            self.start(self._disable())
            self._happened(f"disabled: {why}")
            self._changed()

    # -- by hand ------------------------------------------------------------------------------

    def moved(self, page: Page, shares: Shares, acts: tuple[str, ...]) -> None:
        """The operator's page says how the robot is to move; nothing does but while it holds."""
        self.seat.check(page)
        if self.hold.held:
            self._hand.take(shares, acts, time.monotonic())

    def commands(self, source: str) -> None:
        """Who commands the robot, as the command node says it."""
        self._hand.commands(source)

    def command_state(self, state: str, episode_over: bool = False) -> None:
        """The command node's, each time it says it. episode_over: of the simulation's, if any."""
        if self.hold.seen(state == "enabled"):
            why = "the episode is over" if episode_over else f"the command node is {state}"
            self.end_hold(f"{why}; press again")

    async def watch(self) -> None:
        """The dead man's switch: beats while the button is held, ends the hold without signs."""
        try:
            while True:
                await asyncio.sleep(LOOK)
                now = time.monotonic()
                if self.hold.expired(now):
                    self.end_hold("the page went silent")
                elif self.hold.held and now - self._beaten >= BEAT:
                    self._beaten = now
                    self.graph.heartbeat()
                    self._hand.send(now)
        finally:
            self._hand.halt()
            self.hold.end()  # without heartbeats the command node stops by itself

    async def _enable(self) -> None:
        try:
            await self._agree()
        except VlaError as error:
            self.end_hold(str(error))
        if not self.hold.held:  # released meanwhile: the last word is to disable
            await self._disable()

    async def _agree(self) -> None:
        """Has the command node enable; raises VlaError if it does not while the button is held."""
        timeout = await self.graph.heartbeat_timeout()
        if not 0 < timeout <= HEARTBEAT_TIMEOUT:
            raise VlaError(
                f"the command node's heartbeat_timeout is {timeout:g} s",
                f"set it above 0, to at most {HEARTBEAT_TIMEOUT:g}: it stops the robot where "
                "this server cannot",
            )
        end = time.monotonic() + PATIENCE
        while self.hold.held:
            try:
                await self.graph.call("enable", data=True)
            except VlaError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(BEAT)  # it may not have heard a heartbeat yet
            else:
                self._happened("enabled")
                return

    async def _disable(self) -> None:
        try:
            await self.graph.call("enable", data=False)
        except VlaError as error:  # no heartbeat reaches it either: its watchdog stops the robot
            log.warning("disabling: %s", error)

    def start(self, work: Any) -> None:
        """Runs a coroutine beside the others."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
