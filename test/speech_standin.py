"""A recogniser that is told what it hears, and audio that it takes for speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_studio.speech.audio import RATE, Samples
from vla_studio.speech.recogniser import Heard

DATA = Path(__file__).resolve().parents[1] / "src/vla_studio/test/data"


class ToldRecogniser:
    """Loud is speech. heard: what the next utterances are, in turn; then nothing.

    utterances: their lengths, seconds. known: the sentences in use, as they were last given.
    """

    def __init__(self, *heard: Heard | None):
        self.heard, self.utterances, self.known = list(heard), [], []

    def speech(self, samples: Samples) -> np.ndarray:
        return (np.abs(samples.reshape(-1, 512)).max(1) > 0.1).astype(np.float32)

    def hear(self, utterance: Samples, known: Sequence[str]) -> Heard | None:
        self.utterances.append(len(utterance) / RATE)
        self.known = list(known)
        return self.heard.pop(0) if self.heard else None


def tone(seconds: float, level: float = 0.5) -> Samples:
    return (level * np.sin(np.arange(int(seconds * RATE)) * 0.3)).astype(np.float32)


def quiet(seconds: float) -> Samples:
    return np.zeros(int(seconds * RATE), np.float32)


def pcm(samples: Samples) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()
