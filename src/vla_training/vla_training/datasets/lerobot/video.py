"""Reads an episode's images from a video by time stamp."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import av
import numpy as np

from vla_inference.errors import DataError
from vla_training.datasets.lerobot.folder import readable

JUMP = 1.0  # s; what lies farther ahead is sought rather than decoded up to


class VideoColumn:
    """The images of one episode in a video: for each step the nearest in time.

    times: seconds in the film of each step [T]. tolerance: s, how far off the image may be.
    Steps are decoded in order; going back seeks, and gives the same images.
    """

    def __init__(self, file: Path, times: np.ndarray, tolerance: float, episode: int):
        self._file, self._times, self._tolerance = file, times, tolerance
        self._episode = episode
        self._frames: Generator[av.VideoFrame, None, None] | None = None
        self._nearest: av.VideoFrame | None = None
        self._ahead: av.VideoFrame | None = None
        self._wanted = 0.0
        self._last: tuple[int, np.ndarray] | None = None

    def read(self, step: int) -> np.ndarray:
        """uint8 [H, W, 3]; raises DataError if the video has no image at that time."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        with readable(self._file):
            frame = self._find(float(self._times[step]), step)
            self._last = (step, frame.to_ndarray(format="rgb24"))
        if step == len(self._times) - 1:
            self._close()
        return self._last[1]

    def _find(self, wanted: float, step: int) -> av.VideoFrame:
        nearest = self._nearest
        if nearest is None or wanted < self._wanted or wanted > nearest.time + JUMP:
            self._close()
            self._frames = self._decode(wanted)
            nearest, self._ahead = self._next(), self._next()
        while nearest is not None and self._ahead is not None:
            if _off(self._ahead, wanted) >= _off(nearest, wanted):
                break
            nearest, self._ahead = self._ahead, self._next()
        self._nearest, self._wanted = nearest, wanted
        if nearest is None or not _off(nearest, wanted) <= self._tolerance:
            found = "there is none" if nearest is None else f"the nearest is at {nearest.time:.4f}"
            raise DataError(
                f"{self._file} has no image at {wanted:.4f} s, step {step} of episode "
                f"{self._episode}: {found}",
                "the film lacks images, or is another's: copy it again or leave the episode out "
                "(--read tolerance=SECONDS allows more than a quarter of a step)",
            )
        return nearest

    def _decode(self, wanted: float) -> Generator[av.VideoFrame, None, None]:
        """Decodes from the key frame before a time on."""
        with av.open(str(self._file)) as container:
            stream = container.streams.video[0]
            before = max(0, int((wanted - self._tolerance) / stream.time_base))
            container.seek(before, stream=stream, backward=True)
            yield from (f for f in container.decode(stream) if f.time is not None)

    def _next(self) -> av.VideoFrame | None:
        return None if self._frames is None else next(self._frames, None)

    def _close(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = self._nearest = self._ahead = None

    def __reduce__(self) -> tuple:
        return VideoColumn, (self._file, self._times, self._tolerance, self._episode)


def _off(frame: av.VideoFrame, wanted: float) -> float:
    return abs(frame.time - wanted)
