"""Hold-to-enable, as the server sees it: the page only says that it is still held.

The server is the dead man's switch. A page that hangs, loses its network or is closed stops saying
so, and the hold ends; so it does when the command node is no longer enabled, whatever the reason.
Then it takes a release and another press.
"""

from __future__ import annotations


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
