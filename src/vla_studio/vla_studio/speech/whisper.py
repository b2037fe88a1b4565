"""`Whisper`: OpenAI's model, as CTranslate2 runs it for faster-whisper.

Commands are short, so that the encoder reads 10 s instead of the 30 s that the model was trained
with: a third of the time. A sentence in use counts as said where the model finds it nearly as
likely as the best text of all, which the words alone do not tell: "open the bar" may have been
"open the door", and "the green cube" was never "the red cube".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2 import StorageView
from faster_whisper import WhisperModel
from faster_whisper.audio import pad_or_trim
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray

from vla_inference.errors import VlaError
from vla_studio.speech.audio import RATE, Samples
from vla_studio.speech.noise import without_noise
from vla_studio.speech.recogniser import Heard
from vla_studio.speech.sentences import alike, normal, same, says_stop

THREADS = 2
FRAME = 100  # of the spectrogram, per second
WINDOWS = (10 * FRAME, 20 * FRAME, 30 * FRAME)  # frames that the encoder reads
SILENCE = np.zeros(int(0.3 * RATE), np.float32)  # before and after: a word at the edge is lost
BEAMS = 5
TOKENS = 6  # per second at most: more are a model that repeats itself
NO_SPEECH = 0.6  # probability of no speech above which no text is told
LEAST = -1.0  # mean log-probability of a token below which no text is told
MOST = 4  # sentences in use that are weighed
# Nats that a sentence may be less likely than the best text: measured by bench/studio/speech.py.
LEAST_LOSS, MOST_LOSS, LOSS_PER_TOKEN = 3.0, 7.5, 0.9
DOUBT = 2.0  # nats of loss for each nat that the best text lacks
STOPS = ("stop", "stop now", "please stop", "stop the robot", "no stop", "no no stop")
STOP_LOSS = 6.5  # nats, in place of all these: a stop too many does no harm
SHORT = 2.0  # s: of an utterance that may be one of these
LONGEST_TEXT = 300  # characters


class Whisper:
    """`Recogniser`. folder: weights in CTranslate2's format."""

    def __init__(self, folder: Path):
        threads = min(THREADS, len(os.sched_getaffinity(0)))
        try:
            self._model = WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=threads
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise VlaError(f"{folder} cannot be loaded ({reason})", "fetch it again") from None
        multilingual = self._model.model.is_multilingual
        self._tokens = Tokenizer(
            self._model.hf_tokenizer, multilingual, task="transcribe", language="en"
        )
        self._prompt = [*self._tokens.sot_sequence, self._tokens.no_timestamps]
        self._vad = get_vad_model()

    def speech(self, samples: Samples) -> NDArray[np.float32]:
        return np.ravel(self._vad(samples))

    def hear(self, utterance: Samples, known: Sequence[str]) -> Heard | None:
        """Without its noise; and as it came, where no sentence in use was found in that."""
        heard = self._hear(self._encode(without_noise(utterance)), len(utterance), known)
        if heard is None or not (heard.stop or heard.known):
            again = self._hear(self._encode(utterance), len(utterance), known)
            if again is not None and (heard is None or again.stop or again.known):
                return again
        return heard

    def _hear(self, encoded: Any, length: int, known: Sequence[str]) -> Heard | None:
        found = self._model.model.generate(
            encoded,
            [self._prompt],
            beam_size=BEAMS,
            num_hypotheses=BEAMS,
            max_length=2 * (8 + int(TOKENS * length / RATE)),  # half is the prompt's
            return_scores=True,
            return_no_speech_prob=True,
        )[0]
        texts = [_one_line(self._tokens.decode(ids)) for ids in found.sequences_ids]
        if not normal(texts[0]):
            return None
        if says_stop(texts[0]):
            return Heard(texts[0], stop=True)
        if exact := same(texts[0], known):
            return Heard(texts[0], exact)
        scored = zip(found.scores, found.sequences_ids, strict=True)
        best = max(score * len(ids) for score, ids in scored)
        meant = self._meant(encoded, best, [*_stops(length), *alike(texts, known, MOST)])
        if meant in STOPS:
            return Heard(texts[0], stop=True)
        if meant:
            return Heard(texts[0], meant)
        sure = found.scores[0] >= LEAST and found.no_speech_prob <= NO_SPEECH
        return Heard(texts[0]) if sure else None

    def _meant(self, encoded: Any, best: float, sentences: Sequence[str]) -> str:
        """The most likely sentence, if it is nearly as likely as the best text; empty: none is.

        best: log-probability of that text, nats. The less sure the model is of its own text, the
        less it need be sure of the sentence.
        """
        most = min(max(DOUBT * -best, LEAST_LOSS), MOST_LOSS)
        fit = []
        found = self._likelihoods(encoded, sentences)
        for sentence, (likely, tokens) in zip(sentences, found, strict=True):
            loss = STOP_LOSS if sentence in STOPS else min(most, LOSS_PER_TOKEN * tokens)
            if best - likely < loss:
                fit.append((likely, sentence))
        return max(fit, default=(0.0, ""))[1]

    def _encode(self, utterance: Samples) -> Any:
        """What the encoder makes of it."""
        audio = np.concatenate([SILENCE, utterance, SILENCE])
        features = self._model.feature_extractor(audio)
        frames = min(features.shape[-1], WINDOWS[-1])
        window = next(each for each in WINDOWS if frames <= each)
        return self._model.encode(pad_or_trim(features, window))

    def _likelihoods(self, encoded: Any, sentences: Sequence[str]) -> list[tuple[float, int]]:
        """Of each sentence and its end: log-probability, nats, and number of tokens."""
        if not sentences:
            return []
        written = [f" {each[:1].upper()}{each[1:]}." for each in sentences]  # as Whisper writes
        ids = [self._tokens.encode(text) for text in written]
        repeated = np.repeat(np.array(encoded), len(ids), axis=0)
        forced = self._model.model.generate(
            StorageView.from_array(np.ascontiguousarray(repeated)),
            [[*self._prompt, *each] for each in ids],
            beam_size=1,
            max_length=2 * (max(map(len, ids)) + 1),  # half is the prompt's
            suppress_blank=False,
            suppress_tokens=[],
            return_logits_vocab=True,
        )
        return [
            (self._likelihood([*each, self._tokens.eot], result.logits[0]), len(each) + 1)
            for each, result in zip(ids, forced, strict=True)
        ]

    def _likelihood(self, ids: Sequence[int], steps: Sequence[Any]) -> float:
        total = 0.0
        for token, step in zip(ids, steps, strict=False):  # shorter ones go on after their end
            logits = np.array(step, np.float32).ravel()
            total += float(logits[token] - np.logaddexp.reduce(logits))
        return total


def _stops(length: int) -> Sequence[str]:
    """What may be meant by an utterance of so many samples."""
    return STOPS if length < SHORT * RATE else ()


def _one_line(text: str) -> str:
    return "".join(filter(str.isprintable, text)).strip()[:LONGEST_TEXT]
