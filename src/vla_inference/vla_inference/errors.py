"""`VlaError`, for everything a user can fix: a problem and its remedy."""

from __future__ import annotations

import re

NUMBER = re.compile(r"\[Errno -?\d+\] ")  # of the system's errors: says nothing to a reader


class VlaError(Exception):
    """A mistake in the input, the checkpoint or the set-up.

    `str(error)` names the thing at fault and, after "; ", the remedy. Command lines print it as
    one line and exit with status 2; nodes put it into their status and stay unconfigured.
    """

    def __init__(self, problem: str, remedy: str | None = None):
        self.problem = problem = NUMBER.sub("", problem)
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}" if remedy else problem)


class CheckpointError(VlaError):
    """A checkpoint folder that is incomplete, damaged or names parts we don't know."""


class ObservationError(VlaError):
    """An image, instruction or state that no action may be computed from."""


class DataError(VlaError):
    """A dataset or episode file that is missing, damaged or of another layout."""
