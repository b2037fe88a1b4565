"""Lock-step logic: which chunk answers a frame, when to resend it, when to give up.

No ROS and no clock in here: stamps are integers (nanoseconds), `now` is whatever steady time in
seconds the caller has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

FIRST_RESEND = 1.0  # s between copies of the first frame, until a model has answered at all
MISMATCH_RESEND = 0.02  # s until the copy after a wrong instruction; doubles each time
RESENDS = 3  # copies over the time-out, should the frame or its answer have been lost


class Verdict(Enum):
    """What to do next."""

    WAIT = "wait"
    EXECUTE = "execute"
    RESEND = "resend"
    TOO_LATE = "too late"


@dataclass
class LockStep:
    """Waits for the answer to one frame at a time.

    Copies of a frame show the same scene, so the answer to any of them counts, however slow the
    model. `start_timeout` holds until the first answer ever (a model takes its time to load),
    `action_timeout` from then on; both in seconds.
    """

    action_timeout: float
    start_timeout: float
    started: bool = False  # a model has answered
    ignored: int = 0  # chunks for another frame
    mismatched: int = 0  # chunks for another instruction
    other_instruction: str = ""  # of the last such chunk for the frame that is out
    round_trip: float = 0.0  # s, of the last accepted chunk
    _sent: dict[int, float] = field(default_factory=dict)
    _begun: float = 0.0
    _resend_at: float = 0.0
    _mismatches: int = 0

    @property
    def waiting(self) -> bool:
        return bool(self._sent)

    @property
    def timeout(self) -> float:
        return self.action_timeout if self.started else self.start_timeout

    def sent(self, stamp: int, now: float) -> None:
        """Records a published frame, or a copy of the current one, with this stamp."""
        if not self._sent:
            self._begun, self._mismatches, self.other_instruction = now, 0, ""
        self._sent[stamp] = now
        pause = self.timeout / (RESENDS + 1) if self.started else FIRST_RESEND
        self._resend_at = now + pause

    def withdraw(self) -> None:
        """The current frame needs no answer any more."""
        self._sent.clear()

    def resend_now(self, now: float) -> None:
        """Resends without waiting for the next copy's time (after a model has started)."""
        self._resend_at = min(self._resend_at, now)

    def judge(self, stamp: int, instruction: str, expected: str, now: float) -> Verdict:
        """Takes a chunk: EXECUTE it, or WAIT on."""
        if stamp not in self._sent:
            self.ignored += 1
            return Verdict.WAIT
        if instruction != expected:
            # Topics have no mutual order: the frame overtook its instruction. A copy will do.
            self.mismatched += 1
            self.other_instruction = instruction
            pause = MISMATCH_RESEND * 2 ** min(self._mismatches, 10)
            self._mismatches += 1
            self._resend_at = min(self._resend_at, now + pause)
            return Verdict.WAIT
        self.round_trip = now - self._sent[stamp]
        self.started = True
        self._sent.clear()
        return Verdict.EXECUTE

    def poll(self, now: float) -> Verdict:
        """Checks the time: WAIT on, RESEND the frame, or give up as TOO_LATE."""
        if not self._sent:
            return Verdict.WAIT
        if now - self._begun >= self.timeout:
            return Verdict.TOO_LATE
        return Verdict.RESEND if now >= self._resend_at else Verdict.WAIT

    def waited(self, now: float) -> float:
        """Seconds since the current frame was first sent."""
        return now - self._begun if self._sent else 0.0
