"""Notices a camera that goes on publishing one and the same picture."""

from __future__ import annotations

import zlib

from vla_inference.errors import ObservationError


class FrozenWatch:
    """A sensor's noise makes every picture another one: bytes that stay the same are a fault.

    Simulated pictures have no noise: there a still scene looks just like it.
    """

    def __init__(self):
        self._last: dict[str, tuple[int, float]] = {}  # camera -> checksum, stamp it began with

    def check(self, camera: str, data, stamp: float, most: float) -> None:
        """Raise where the bytes have been the same for longer than `most` seconds of stamps."""
        checksum = zlib.crc32(data)
        last = self._last.get(camera)
        if last is None or last[0] != checksum or stamp < last[1]:
            self._last[camera] = checksum, stamp
        elif stamp - last[1] > most:
            raise ObservationError(
                f"{camera} has shown the very same picture for {stamp - last[1]:.2f} s",
                "the camera is frozen: restart it; or raise max_same_picture",
            )
