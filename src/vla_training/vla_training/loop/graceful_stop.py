"""Stops a run cleanly on Ctrl-D, Ctrl-C, SIGTERM or a cancelled job."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from vla_inference.system.interrupts import handled

PATIENCE = 3  # Ctrl-D or signals after which a run ends at once, without saving


class StopRequest:
    """A stop request: `asked` becomes true, and the trainer checks it after each step."""

    def __init__(self):
        self.asked, self.why = False, ""
        self._times = 0

    def ask(self, why: str) -> None:
        self._times += 1
        self.asked, self.why = True, self.why or why
        if self._times >= PATIENCE:
            os._exit(130)

    def _signal(self, number: int, _) -> None:
        self.ask(signal.Signals(number).name)

    def _watch(self) -> None:
        for _ in range(PATIENCE):
            try:
                while sys.stdin.read(1):
                    pass
                if not sys.stdin.isatty():  # it has gone, and the run is to go on (nohup)
                    return
            except (OSError, ValueError):
                return
            self.ask("Ctrl-D")

    @contextlib.contextmanager
    def watching(self) -> Iterator[StopRequest]:
        """Turns signals and, on a terminal, Ctrl-D into a stop request inside this block."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        if sys.stdin is not None and sys.stdin.isatty():
            threading.Thread(target=self._watch, daemon=True).start()
        with handled(self._signal):
            yield self
