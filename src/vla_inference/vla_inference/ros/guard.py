"""Guards callbacks: an exception is logged and counted, and the node keeps running."""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from vla_inference.errors import VlaError
from vla_inference.system.workspace import unexpected

QUIET = 5.0  # seconds between two lines about the same callback


def _logger_of(node: Any) -> Any:
    """Of the node that `Guarded` is mixed into."""
    return node.get_logger()


class Guarded:
    """Mixin, named before rclpy's node class, that guards subscriptions, timers and services.

    faults: how often each callback raised what it should not have. refused: how often it was
    given what cannot be used (it raised VlaError).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.faults: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._fault_told: dict[str, float] = {}  # callback -> when (monotonic)
        super().__init__(*args, **kwargs)

    def create_subscription(self, msg_type, topic, callback, *args, **kwargs):
        guarded = self.guarded(topic, callback)
        return super().create_subscription(msg_type, topic, guarded, *args, **kwargs)

    def create_timer(self, timer_period_sec, callback, *args, **kwargs):
        guarded = self.guarded(f"timer {_name(callback)}", callback)
        return super().create_timer(timer_period_sec, guarded, *args, **kwargs)

    def create_service(self, srv_type, srv_name, callback, *args, **kwargs):
        guarded = self.guarded(srv_name, callback, answers=True)
        return super().create_service(srv_type, srv_name, guarded, *args, **kwargs)

    def guarded(self, where: str, callback: Callable, answers: bool = False) -> Callable:
        """`callback` with all exceptions caught.

        answers: it is a service's: a call that failed is answered with `success` False.
        """

        @functools.wraps(callback)  # rclpy counts its arguments
        def guarded(*args):
            try:
                return callback(*args)
            except VlaError as error:
                reason = " ".join(str(error).split())
                self.refused[where] += 1
                self.callback_refused(where, reason)
            except Exception as error:  # any error of a callback: the node keeps running
                reason = unexpected(error, f" in {where}")
                self._count(where, reason)
            return _failed(args[-1], reason) if answers else None

        return guarded

    # -- what subclasses may fill in ----------------------------------------------------------

    def callback_refused(self, where: str, reason: str) -> None:
        """A callback raised VlaError: its input is refused."""
        if self._due(where):
            _logger_of(self).warning(f"refused: {reason}")

    def fault_values(self) -> dict[str, int]:
        """Values for the diagnostics."""
        counts = {"faults in": self.faults, "refused on": self.refused}
        return {f"{what} {where}": n for what, c in counts.items() for where, n in c.items()}

    def callback_failed(self, where: str, reason: str) -> None:
        """A callback raised another exception, an internal error: it is logged and counted."""

    # -----------------------------------------------------------------------------------------

    def _count(self, where: str, reason: str) -> None:
        first, self.faults[where] = where not in self.faults, self.faults[where] + 1
        if first:
            _show()
        if self._due(f"fault in {where}"):
            _logger_of(self).error(" ".join(reason.split()))
        try:
            self.callback_failed(where, reason)
        except Exception:  # nothing is left that could be done about it
            _show()

    def _due(self, where: str) -> bool:
        now = time.monotonic()
        if now - self._fault_told.get(where, -QUIET) < QUIET:
            return False
        self._fault_told[where] = now
        return True


class GuardedNode(Guarded, Node):
    """A node that has no lifecycle."""


def _show() -> None:
    """Prints the traceback, even if stderr is closed."""
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exc()


def _name(callback: Callable) -> str:
    inner = getattr(callback, "func", callback)  # of a partial
    return getattr(inner, "__name__", type(inner).__name__).strip("_")


def _failed(response: Any, reason: str) -> Any:
    for field, value in (("success", False), ("message", reason)):
        if hasattr(response, field):
            setattr(response, field, value)
    return response
