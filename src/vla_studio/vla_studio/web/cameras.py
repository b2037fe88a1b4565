"""Cameras' images on their way to the pages: the newest one is encoded, once for all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import simplejpeg

from vla_inference.errors import ObservationError
from vla_inference.inputs.image_messages import image_to_rgb
from vla_inference.serving.rate_meter import RateMeter
from vla_studio.web.page import Frame

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picked:
    """A message that was received. received: seconds, monotonic. number: counts them."""

    message: Any
    received: float
    number: int


class Camera:
    """To be used in the server's thread. send: called with each encoded image.

    rate: images per second that are encoded at most; others are left out.
    """

    def __init__(self, name: str, quality: int, rate: float, send: Callable[[Frame], None]):
        self.name, self._quality, self._send = name, quality, send
        self._period, self._next = 1 / rate, 0.0
        self._count = 0
        self._newest: Picked | None = None
        self._meter = RateMeter()
        self._task: asyncio.Task[None] | None = None
        self._last: Picked | None = None  # shown to pages that are opened later
        self.refusal = ""  # why the last image cannot be shown

    def show(self, message: Any, wanted: bool) -> None:
        """A message came. wanted: whether anybody looks."""
        now = time.monotonic()
        self._meter.add(0.0, now)
        self._count += 1
        self._last = Picked(message, now, self._count)
        if wanted:
            self.again()

    def again(self) -> None:
        """Sends the last image, if there is one."""
        self._newest = self._last
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._encode())

    async def _encode(self) -> None:
        while self._newest is not None:
            await asyncio.sleep(self._next - time.monotonic())
            picked, self._newest = self._newest, None
            self._next = max(self._next, time.monotonic() - self._period) + self._period
            try:
                jpeg = await asyncio.to_thread(encode, picked.message, self._quality)
            except (ObservationError, ValueError) as error:
                if str(error) != self.refusal:
                    self.refusal = str(error)
                    log.warning("%s: %s", self.name, error)
                continue
            self.refusal = ""
            stamp = picked.message.header.stamp
            rate = self._meter.rate(time.monotonic())
            seconds = stamp.sec + 1e-9 * stamp.nanosec
            self._send(Frame(self.name, jpeg, seconds, picked.received, rate, picked.number))


def encode(message: Any, quality: int) -> bytes:
    """A JPEG of a sensor_msgs/Image, or the one that a CompressedImage holds."""
    if not hasattr(message, "encoding"):
        data = bytes(message.data)
        if not simplejpeg.is_jpeg(data):
            raise ObservationError("the image is no JPEG", "publish JPEG, or use raw images")
        return data
    return simplejpeg.encode_jpeg(image_to_rgb(message), quality, fastdct=True)
