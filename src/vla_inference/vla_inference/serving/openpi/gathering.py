"""How long a batch waits for clients that are about to ask again."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

SHARE = 0.2  # of a batch's time: the longest wait


class Gathering:
    """Clients that ask again as soon as they are answered belong into one batch.

    After a batch the first of them to come back would have the model for itself, and all others
    would wait for it. So the model waits a moment for those that came back soon the last time.
    All times are in seconds, of one clock.
    """

    def __init__(self) -> None:
        self._answered: dict[Hashable, float] = {}  # when, of clients that may be back soon
        self._prompt: set[Hashable] = set()  # those that were, the last time
        self._longest = 0.0

    def asked(self, client: Hashable, now: float) -> None:
        answered = self._answered.pop(client, None)
        if answered is not None and now - answered < self._longest:
            self._prompt.add(client)
        else:
            self._prompt.discard(client)

    def answered(self, clients: Iterable[Hashable], now: float, took: float) -> None:
        """took: the time of their batch."""
        for client in [c for c, at in self._answered.items() if now - at >= self._longest]:
            self.gone(client)
        self._longest = SHARE * took
        self._answered |= dict.fromkeys(clients, now)

    def gone(self, client: Hashable) -> None:
        self._answered.pop(client, None)
        self._prompt.discard(client)

    def wait(self, now: float) -> float:
        """Until those that should be back soon had their time; 0: nobody is missing."""
        missing = [at for client, at in self._answered.items() if client in self._prompt]
        return max(0.0, max(missing, default=-math.inf) + self._longest - now)
