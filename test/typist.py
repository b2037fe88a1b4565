"""`vla teleop` in a terminal of its own, and who types there.

Test files import it by its plain name (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

from graphs import environment


class Typist:
    """number: of the ROS domain. words: more of the command's."""

    def __init__(self, number: int, *words: str):
        self.ours, self.theirs = pty.openpty()
        self.before = termios.tcgetattr(self.theirs)
        command = [sys.executable, "-m", "vla_inference.cli.main", "teleop", *words]
        self.process = subprocess.Popen(
            ["setsid", "-c", *command],
            stdin=self.theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(number),
            text=True,
        )

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was."""
        return termios.tcgetattr(self.theirs) == self.before

    def end(self) -> str:
        """By Ctrl-C; returns what was printed."""
        self.type("\x03")
        said, _ = self.process.communicate(timeout=30)
        return said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        os.close(self.ours)
        os.close(self.theirs)
