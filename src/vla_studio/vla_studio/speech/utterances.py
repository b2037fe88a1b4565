"""`Utterances`: cuts a stream of samples into what is said between two pauses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vla_studio.speech.audio import RATE, Samples

FRAME = 512  # samples that have one probability of speech
LOOK = 8  # frames, 0.26 s: between two looks
BEFORE = 48  # frames, 1.5 s: what a look hears of the time before it
SPEECH = 0.5  # probability from which a frame counts as speech
SILENCE = 0.35  # probability up to which it counts as a pause
PAUSE = 16  # frames, 0.5 s: of silence that end an utterance
SHORTEST = 3  # frames, 0.1 s: of speech in an utterance; a click has fewer
MARGIN = 10  # frames, 0.3 s: kept before and after
LONGEST = 12 * RATE // FRAME  # frames, 12 s: then it is cut, pause or not


class Utterances:
    """speech: probability of speech in each 512 samples, as `Recogniser.speech`."""

    def __init__(self, speech: Callable[[Samples], NDArray[np.float32]]):
        self._speech = speech
        self._samples = np.zeros(0, np.float32)
        self._probabilities: list[float] = []

    def add(self, samples: Samples, last: bool = False) -> list[Samples]:
        """The utterances that end in these samples. last: no more will come."""
        self._samples = np.concatenate([self._samples, samples])
        if last:
            self._samples = np.pad(self._samples, (0, -len(self._samples) % FRAME))
        found: list[Samples] = []
        while True:
            waiting = len(self._samples) // FRAME - len(self._probabilities)
            if waiting < (1 if last else LOOK):
                break
            self._look(min(waiting, LOOK))
            found += self._cut(last and waiting <= LOOK)
        return found

    def _look(self, frames: int) -> None:
        done = len(self._probabilities)
        start = max(0, done - BEFORE)
        heard = self._speech(self._samples[start * FRAME : (done + frames) * FRAME])
        self._probabilities += np.ravel(heard)[-frames:].tolist()

    def _cut(self, last: bool) -> list[Samples]:
        spoken = [i for i, p in enumerate(self._probabilities) if p >= SPEECH]
        count = len(self._probabilities)
        if not spoken:
            self._forget(0 if last else max(0, count - BEFORE))
            return []
        end = max(i for i, p in enumerate(self._probabilities) if p > SILENCE) + 1
        if not last and count - end < PAUSE and count - spoken[0] < LONGEST:
            return []
        first, after = max(0, spoken[0] - MARGIN), min(count, end + MARGIN)
        utterance = self._samples[first * FRAME : after * FRAME]
        self._forget(count if last else end)
        return [utterance] if len(spoken) >= SHORTEST else []

    def _forget(self, frames: int) -> None:
        self._samples = self._samples[frames * FRAME :]
        del self._probabilities[:frames]
