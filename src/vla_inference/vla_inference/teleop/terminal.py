"""The terminal, key by key: read without waiting, and as it was when that has ended."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import sys
import termios
import tty
from typing import TextIO

from vla_inference.errors import VlaError


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether keys can be read from it: it is one, and this process is not in its background."""
    try:
        file = (sys.stdin if stream is None else stream).fileno()
        return os.isatty(file) and os.tcgetpgrp(file) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


class Terminal:
    """Gives keys one by one, unechoed, until `close`, which also the process's end calls.

    Ctrl-C still ends the process; keys that would suspend or abort it do nothing meanwhile, as a
    terminal left so could not be used any more.
    """

    def __init__(self, stream: TextIO | None = None):
        stream = sys.stdin if stream is None else stream
        if not is_terminal(stream):  # to change one from its background would suspend us
            raise VlaError(
                "there is no terminal whose keys could be read",
                "run `vla teleop` in one, in its foreground, or choose another device",
            )
        self._file = stream.fileno()
        self._before = termios.tcgetattr(self._file)
        self._open = True
        atexit.register(self.close)
        tty.setcbreak(self._file)
        quiet = termios.tcgetattr(self._file)
        for key in (termios.VQUIT, termios.VSUSP):
            quiet[6][key] = b"\0"
        termios.tcsetattr(self._file, termios.TCSADRAIN, quiet)

    def read(self) -> str:
        """What was typed since the last time. Raises VlaError where the terminal is gone."""
        text = b""
        try:
            while select.select([self._file], [], [], 0)[0]:
                more = os.read(self._file, 1024)
                if not more:
                    raise OSError("it is closed")
                text += more
                if len(text) > 1 << 16:
                    break
        except (OSError, ValueError) as error:
            raise VlaError(f"the terminal is gone ({error})", "start it in another one") from None
        return text.decode("utf-8", "replace")

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        with contextlib.suppress(termios.error, OSError):  # it has gone, and nobody sees it
            termios.tcsetattr(self._file, termios.TCSAFLUSH, self._before)
