"""Who commands the robot: the model, or a person who has taken over and may give back.

The commander asks; here is what it has to remember. A person holds a dead man's switch: their
device repeats what is wanted while it is held, and silence halts. Times as in `Safety`.
"""

from __future__ import annotations

from vla_inference.control.players.chunk_player import Play

MODEL, HUMAN = "model", "human"

# A person's chunk holds from when it arrives until the next one: it is no plan in time, and what
# makes up for a slow model would only make it lag.
BY_HAND = Play(align="arrival", blend=0.0, repeats=True)


class Takeover:
    """Who commands, since when, and whether a person in charge is heard.

    timeout: after so long without a chunk of a person in charge the robot halts [s].

    source: MODEL or HUMAN, since `since` (by `now`'s clock; None: from the beginning on).
    changes: how often `since` has changed. silences: how often a person in charge fell silent.
    """

    def __init__(self, timeout: float = 0.25):
        self.timeout = timeout
        self.source = MODEL
        self.since: float | None = None
        self.changes = self.silences = 0
        self._heard: float | None = None  # steady time of a person's last chunk; None: silent
        self._waits = False  # whether the model's first chunk since a hand-over is to come

    @property
    def by_hand(self) -> bool:
        return self.source == HUMAN

    @property
    def heard(self) -> bool:
        """Whether a person in charge moves the robot at present, or holds it still."""
        return self._heard is not None

    @property
    def waits(self) -> bool:
        """Whether the model has been given back the robot and has not moved it yet."""
        return self._waits

    @property
    def holds(self) -> bool:
        """Whether commands go on while the robot stands, so that nothing is left to chance."""
        return self.by_hand or self._waits

    @property
    def told(self) -> tuple[int, int, bool, bool]:
        """What people should hear of at once when it changes."""
        return self.changes, self.silences, self.heard, self._waits

    def hand_over(self, source: str, since: float) -> None:
        self.source, self._heard = source, None
        self._waits = source == MODEL
        self.since = since
        self.changes += 1

    def begins(self, time: float) -> None:
        """A command period begins: where the clock stands or went back the source is told anew."""
        if self.since is not None and time < self.since:
            self.since = time
            self.changes += 1

    def hear(self, steady: float) -> None:
        """A person's chunk is executed."""
        self._heard = steady

    def moves(self) -> None:
        """What is planned is the present source's."""
        self._waits = False

    def falls_silent(self, steady: float) -> bool:
        """Whether a person in charge has been silent for too long; says so once."""
        if self._heard is None or steady - self._heard <= self.timeout:
            return False
        self._heard = None
        self.silences += 1
        return True
