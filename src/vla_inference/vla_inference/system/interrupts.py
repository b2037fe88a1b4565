"""Delays Ctrl-C while a process starts, until it can be handled without a traceback."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def held() -> Iterator[None]:
    """Hold SIGINT back in here; processes started in here are born with it held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Let SIGINT through from now on, one that came before included."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def node_process(module: str) -> Callable[[], NoReturn]:
    """What a node's executable calls: runs `main` of a module and ends the process.

    While it is imported a Ctrl-C ends the process at once: there is nothing to put away yet.
    Python's own teardown is left out: with PyTorch it takes seconds, too long for a launch.
    """

    def start() -> NoReturn:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        release()
        status = importlib.import_module(module).main()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    return start
