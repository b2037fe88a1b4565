"""The one thread in which a model lives: loaded, fed from a mailbox and let go there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from vla_inference.serving.latest_value import LatestValue

T = TypeVar("T")


class Worker(Generic[T]):
    """Runs `load` once and then `handle` on whatever comes into the mailbox, all in one thread.

    One thread for all of it, because PyTorch keeps thread pools and CUDA state per thread: what
    was warmed up elsewhere is cold here. `handle` must not raise.
    """

    def __init__(
        self, load: Callable[[], None], handle: Callable[[T], None], latest: LatestValue[T]
    ):
        self._load, self._handle, self._mailbox = load, handle, latest
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.busy_since: float | None = None  # monotonic, while `handle` is at an item
        # A daemon, so that a long computation does not outlive the process's will to end.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin, and wait until `load` is through; raises what it raised. Ctrl-C gets through."""
        self._thread.start()
        while not self._ready.wait(0.05):
            pass
        if self._error is not None:
            raise self._error

    def stop(self, timeout: float) -> bool:
        """Close the mailbox and wait for the thread; False where it is still busy."""
        self._mailbox.close()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as error:  # raised again by `start`, where somebody waits for it
            self._error = error
            return
        finally:
            self._ready.set()
        while not self._mailbox.closed:
            item = self._mailbox.take()
            if item is not None:
                self.busy_since = time.monotonic()
                self._handle(item)
                self.busy_since = None
