"""Detects a camera that keeps publishing the same image."""

from __future__ import annotations

import zlib

from vla_inference.errors import ObservationError


class FrozenWatch:
    """Detects a frozen camera: sensor noise makes every real image different, so identical
    bytes are a fault.

    Simulated images have no noise: there a still scene looks just like it.
    """

    def __init__(self):
        self._last: dict[str, tuple[int, float]] = {}  # camera -> checksum, since when

    def check(self, camera: str, data, arrived: float, most: float) -> None:
        """Raises if the bytes have been identical for more than `most` seconds.

        By the time of arrival, since the stamps of a fault may stand still as well.
        """
        checksum = zlib.crc32(data)
        last = self._last.get(camera)
        if last is None or last[0] != checksum:
            self._last[camera] = checksum, arrived
        elif arrived - last[1] > most:
            raise ObservationError(
                f"{camera} has shown exactly the same image for {arrived - last[1]:.2f} s",
                "the camera is frozen: restart it; for still images set max_same_image to 0",
            )
