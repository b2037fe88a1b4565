"""`Listening`: what `vla listen` does with what it hears, in one thread and without ROS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from vla_studio.speech.audio import Samples
from vla_studio.speech.recogniser import Recogniser
from vla_studio.speech.utterances import Utterances


class Actions(Protocol):
    """What listening can do; there is nothing else."""

    def known(self) -> Sequence[str]:
        """Sentences in use."""

    def said(self, text: str) -> None:
        """Somebody has said this."""

    def stop(self) -> None:
        """Somebody has said to stop."""

    def count(self, sentence: str, seconds: int) -> None:
        """This takes effect in so many seconds; 0: it has been cancelled."""

    def instruct(self, sentence: str) -> None:
        """Nobody has said anything else since."""


class Listening:
    """seconds: of the countdown; 0: instructions are only told. now: seconds, monotonic."""

    def __init__(
        self, recogniser: Recogniser, actions: Actions, seconds: int, now: Callable[[], float]
    ):
        self._recogniser, self._actions = recogniser, actions
        self._seconds, self._now = seconds, now
        self._utterances = Utterances(recogniser.speech)
        self._sentence, self._until, self._told = "", 0.0, 0

    @property
    def counting(self) -> bool:
        return bool(self._sentence)

    def take(self, samples: Samples, last: bool = False) -> None:
        """Hears what the microphone gives. last: no more will come."""
        for utterance in self._utterances.add(samples, last):
            heard = self._recogniser.hear(utterance, self._actions.known())
            if heard is None:
                continue
            self.cancel()
            self._actions.said(heard.known or heard.text)
            if heard.stop:
                self._actions.stop()
            elif heard.known and self._seconds:
                self._sentence, self._told = heard.known, 0
                self._until = self._now() + self._seconds
        self.look()

    def look(self) -> None:
        """Goes on with the countdown."""
        if not self._sentence:
            return
        left = self._until - self._now()
        if left <= 0:
            sentence, self._sentence = self._sentence, ""
            self._actions.instruct(sentence)
        elif self._told != math.ceil(left):
            self._told = math.ceil(left)
            self._actions.count(self._sentence, self._told)

    def cancel(self) -> None:
        """What is counted down takes no effect."""
        if self._sentence:
            self._actions.count(self._sentence, 0)
            self._sentence = ""
