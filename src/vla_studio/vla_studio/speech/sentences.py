"""Sentences as they are compared: what is spoken has neither capitals nor punctuation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

STOP = "stop"
CLOSE = 0.4  # similarity of letters, 0 to 1, below which a sentence is not even considered


def normal(text: str) -> str:
    """Lower case, words of letters and digits, single spaces."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def says_stop(text: str) -> bool:
    """Whether one of its words is "stop", which is obeyed in any sentence."""
    return STOP in normal(text).split()


def same(text: str, known: Sequence[str]) -> str:
    """The known sentence that was said word by word; empty: none. "in to" is "into"."""
    letters = normal(text).replace(" ", "")
    return next((each for each in known if normal(each).replace(" ", "") == letters), "")


def alike(texts: Iterable[str], known: Sequence[str], most: int) -> list[str]:
    """The known sentences whose letters are most like one of the texts', best first."""
    heard = [normal(text) for text in texts]

    def likeness(sentence: str) -> float:
        words = normal(sentence)
        return max((difflib.SequenceMatcher(None, words, h).ratio() for h in heard), default=0.0)

    rated = sorted(((likeness(each), each) for each in known), reverse=True)
    return [each for rate, each in rated[:most] if rate >= CLOSE]
