"""A pool of worker processes that are silent at Ctrl-C and never left behind."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from vla_inference.system.interrupts import held


class WorkerPool(ProcessPoolExecutor):
    """Spawned processes. Ctrl-C is handled by the parent, which calls `close`.

    They inherit a blocked SIGINT, so that one which comes while they import prints no traceback.
    """

    def __init__(self, count: int, start: Callable[..., None] | None = None, *arguments: Any):
        """start: called with the arguments in each process before its first work."""
        context = multiprocessing.get_context("spawn")
        super().__init__(count, context, _begin, (start, arguments))

    def submit(self, function, /, *arguments, **named) -> Future:
        with held():
            return super().submit(function, *arguments, **named)

    def close(self) -> None:
        """Ends the processes, even during work."""
        for process in list((self._processes or {}).values()):
            process.terminate()
        self.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[..., None] | None, arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """Ends a worker when its parent dies; otherwise it would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
