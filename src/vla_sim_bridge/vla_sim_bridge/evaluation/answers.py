"""Detects from message stamps that a second model or simulation shares the topics.

Two simulations or two models on the same topics would each get some of the other's answers, and
what comes of it would be nobody's result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_inference.errors import VlaError

REMEDY = "end the others on these topics, or give each run a namespace of its own"


@dataclass
class Answers:
    """Checks stamps: integers in nanoseconds, unique for each frame and each copy of one."""

    first: int | None = None
    frames: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)

    def sent(self, stamp: int) -> None:
        """Records a published frame."""
        if self.first is None:
            self.first = stamp
        self.frames.add(stamp)

    def heard(self, stamp: int, topic: str) -> None:
        """Takes a chunk for the frame of `stamp`; VlaError if it reveals another model or
        simulation.

        A frame from before our first is no sign: a slow model may still be at an earlier run's.
        """
        if self.first is None or stamp < self.first:
            return
        if stamp not in self.frames:
            raise VlaError(f"a chunk on {topic} answers somebody else's frame", REMEDY)
        if stamp in self.answered:
            raise VlaError(f"more than one model answers on {topic}", REMEDY)
        self.answered.add(stamp)
