"""Who operates, and whether: the operator's seat, and hold-to-enable.

One page at a time has the seat, and everybody sees which. That page only says that its button is
still held; the server is the dead man's switch. A page that hangs, loses its network or is closed
stops saying so, and the hold ends; so it does when the command node is no longer enabled, whatever
the reason. Then it takes a release and another press.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from vla_inference.errors import VlaError

Page = TypeVar("Page")


class Seat(Generic[Page]):
    """holder: who operates. asking: who would like to, and waits for the holder to agree."""

    def __init__(self) -> None:
        self.holder: Page | None = None
        self.asking: Page | None = None

    def take(self, page: Page) -> bool:
        """Takes a free seat, or asks the holder for it; returns whether `page` has it now."""
        if self.holder is None:
            self.holder = page
        elif self.holder is not page:
            self.asking = page
        return self.holder is page

    def leave(self, page: Page) -> None:
        """`page` no longer has the seat, nor asks for it."""
        if self.asking is page:
            self.asking = None
        if self.holder is page:
            self.holder = None

    def hand_over(self, page: Page) -> None:
        """The holder lets the one who asked have the seat."""
        self.check(page)
        if self.asking is None:
            raise VlaError("nobody asks for control", "leave it instead")
        self.holder, self.asking = self.asking, None

    def refuse(self, page: Page) -> None:
        """The holder keeps the seat."""
        self.check(page)
        self.asking = None

    def check(self, page: Page) -> None:
        """Raises VlaError if `page` does not have the seat."""
        if self.holder is not page:
            raise VlaError("this page only watches", "take control first")


class Hold:
    """timeout: seconds without a sign until the hold ends. Times by one monotonic clock."""

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.held = False
        self._last = 0.0  # the last sign
        self._press = 0  # which press is held
        self._spent = 0  # the last press that has ended
        self._moved = False  # whether the command node was seen to be enabled in this hold

    def sign(self, press: int, now: float) -> bool:
        """The page says that its button is down; returns whether a hold begins.

        press: counts the presses of one page; signs of a press that has ended count no more.
        """
        if press <= self._spent:
            return False
        begins, self.held = not self.held, True
        self._press, self._last = press, now
        if begins:
            self._moved = False
        return begins

    def end(self) -> bool:
        """Ends the hold; returns whether there was one."""
        ended, self.held = self.held, False
        self._spent = max(self._spent, self._press)
        return ended

    def forget(self) -> None:
        """Another page holds from now on, and counts its own presses."""
        self.held, self._press, self._spent = False, 0, 0

    def expired(self, now: float) -> bool:
        return self.held and now - self._last > self.timeout

    def seen(self, enabled: bool) -> bool:
        """The command node's state; returns whether it has ended the hold."""
        if not self.held:
            return False
        self._moved = self._moved or enabled
        return self._moved and not enabled
