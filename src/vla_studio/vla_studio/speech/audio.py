"""Audio as it is taken: 16 kHz, one channel, 16 bits; bounded in length and in rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_inference.errors import VlaError

Samples = NDArray[np.float32]  # [N], 16 kHz, -1 to 1

RATE = 16_000  # samples per second
LONGEST = 30.0  # s of one press
AHEAD = 2.0  # s of audio that may come sooner than it can have been spoken
LONGEST_FILE = 3600.0  # s
CONTAINERS = (b"RIFF", b"OggS", b"fLaC", b"ID3", b"\x1aE\xdf\xa3")
FORMAT = f"send 16-bit little-endian PCM, {RATE} Hz, one channel"


def check_rate(rate: int) -> None:
    """Raises VlaError if audio of this rate would be misheard."""
    if rate != RATE:
        raise VlaError(f"audio of {rate} Hz is not understood", FORMAT)


def from_pcm(frame: bytes) -> Samples:
    """Samples of a frame. Raises VlaError where it is no PCM."""
    if len(frame) % 2 or frame.startswith(CONTAINERS):
        raise VlaError("the audio is no PCM", FORMAT)
    return np.frombuffer(frame, "<i2").astype(np.float32) / 32768


class Intake:
    """What one press of the button may send. began: seconds, monotonic."""

    def __init__(self, began: float):
        self._began, self._seconds = began, 0.0

    def take(self, frame: bytes, now: float) -> Samples:
        """A frame's samples. Raises VlaError if it is no PCM, or more than was spoken."""
        samples = from_pcm(frame)
        self._seconds += len(samples) / RATE
        if self._seconds > LONGEST:
            raise VlaError(f"more than {LONGEST:g} s at once", "press again to go on")
        if self._seconds > now - self._began + AHEAD:
            raise VlaError("more audio came than time has passed", FORMAT)
        return samples


def read_audio(path: Path) -> Samples:
    """Samples of a WAV file, or of another that FFmpeg reads, resampled.

    Raises VlaError if there is none, or it is longer than an hour.
    """
    import av

    taken: list[Samples] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise VlaError(f"{path} has no sound", "give a WAV file")
            resampler = av.AudioResampler("s16", "mono", RATE)
            seconds = 0.0
            for frame in container.decode(audio=0):
                for part in resampler.resample(frame):
                    taken.append(from_pcm(part.to_ndarray().tobytes()))
                seconds += frame.samples / frame.sample_rate
                if seconds > LONGEST_FILE:
                    raise VlaError(f"{path} is longer than an hour", "cut it into pieces")
            for part in resampler.resample(None):
                taken.append(from_pcm(part.to_ndarray().tobytes()))
    except (av.FFmpegError, OSError) as error:
        raise VlaError(f"{path} cannot be read ({error.strerror})", "give a WAV file") from None
    return np.concatenate(taken) if taken else np.zeros(0, np.float32)
