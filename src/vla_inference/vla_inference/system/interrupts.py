"""Signals: held back while a process starts, handled while it runs, sent when its parent ends."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from vla_inference.system.workspace import stale_build

PR_SET_PDEATHSIG = 1  # of Linux's prctl


@contextmanager
def held() -> Iterator[None]:
    """Delays SIGINT in this block; processes started in it inherit this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Allows SIGINT again, including one that arrived meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], Any],
    numbers: Iterable[int] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """These signals call `handler` in here, and what they called before from then on."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class StopSignals:
    """Handles SIGINT and SIGTERM: they ask to stop, and raise only inside `interruptible`.

    Ctrl-C may come twice (from the terminal and from launch): the second must not disturb the
    shutting down that the first began. number: of the first signal; 0: none came.
    """

    def __init__(self) -> None:
        self.number = self._depth = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        first, self.number = not self.number, self.number or number
        if first and self._depth:
            # What is half built at this moment complains when it is let go of.
            sys.unraisablehook = lambda _: None
            raise KeyboardInterrupt

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal raise KeyboardInterrupt in here: for loading and other long work."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within `interruptible`: a signal raises at the end of this block, when what it made has
        an owner that puts it away."""
        depth, self._depth = self._depth, 0
        try:
            yield
        finally:
            self._depth = depth
        if self.number and depth:
            raise KeyboardInterrupt


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """In a child, before it becomes its program: this signal when the parent ends, however."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)


@contextmanager
def ended_within(seconds: float) -> Iterator[None]:
    """Ends the process, status 1, where this block hangs, even in code with Python's lock."""
    faulthandler.dump_traceback_later(seconds, exit=True)  # it tells on stderr where that was
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def exit_at_once(status: int) -> NoReturn:
    """Ends the process without Python's own teardown: with PyTorch that takes seconds."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def node_process(module: str) -> Callable[[], NoReturn]:
    """Runs a node module's `main` and exits; called by a node's executable.

    While it is imported a Ctrl-C ends the process at once: there is nothing to put away yet.
    """

    def start() -> NoReturn:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        release()
        try:
            main = importlib.import_module(module).main
        except ImportError as error:
            if not (told := stale_build(error)):
                raise
            print(f"error: {told}", file=sys.stderr)
            exit_at_once(2)
        exit_at_once(main())

    return start
