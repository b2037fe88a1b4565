"""A microphone of this machine, through PortAudio."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

from vla_inference.errors import VlaError
from vla_studio.speech.audio import LONGEST, RATE, Samples, from_pcm

BLOCK = 800  # samples, 50 ms


@contextlib.contextmanager
def microphone(device: str = "") -> Iterator[queue.Queue[Samples]]:
    """What it hears from now on, 50 ms at a time. device: part of a name; empty: the default.

    Raises VlaError where there is none, or no library for it. Half a minute is kept at most.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
        reason = " ".join(str(error).split())
        raise VlaError(
            f"microphones need sounddevice and PortAudio ({reason})",
            "pip install -r requirements/speech.txt, apt-get install libportaudio2; or --file",
        ) from None
    heard: queue.Queue[Samples] = queue.Queue(int(LONGEST * RATE / BLOCK))

    def keep(data: Any, *about: Any) -> None:
        with contextlib.suppress(queue.Full):
            heard.put_nowait(from_pcm(bytes(data)))

    try:
        stream = sounddevice.RawInputStream(
            samplerate=RATE,
            blocksize=BLOCK,
            channels=1,
            dtype="int16",
            device=device or None,
            callback=keep,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise VlaError(
            f"microphone {device or 'of the system'} cannot be opened ({error})",
            "name another with --device, or give --file",
        ) from None
    with stream:
        yield heard
