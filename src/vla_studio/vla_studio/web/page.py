"""One open page: what it is still to be sent, newest values only."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

IN_FLIGHT = 2  # images of a camera that a page has not drawn yet
EVENTS = 50  # messages that none replaces and that wait; the oldest are dropped
SEND_SECONDS = 5.0  # until a page that does not read is given up


@dataclass(frozen=True)
class Frame:
    """An image of a camera, encoded once for all pages.

    stamp: seconds of the ROS clock. received: seconds, monotonic. rate: images per second.
    """

    camera: str
    jpeg: bytes
    stamp: float
    received: float
    rate: float

    def pack(self, dropped: int) -> bytes:
        """JSON on one line, then the JPEG. dropped: images that this page was not sent."""
        about = {
            "camera": self.camera,
            "stamp": self.stamp,
            "age_ms": 1e3 * (time.monotonic() - self.received),
            "rate": self.rate,
            "dropped": dropped,
        }
        return json.dumps(about).encode() + b"\n" + self.jpeg


@dataclass(eq=False)
class Page:
    """name: what people call it. role: viewer or operator."""

    socket: web.WebSocketResponse
    name: str
    role: str
    _waiting: dict[str, str] = field(default_factory=dict)
    _frames: dict[str, Frame] = field(default_factory=dict)
    _undrawn: Counter[str] = field(default_factory=Counter)
    _dropped: Counter[str] = field(default_factory=Counter)
    _events: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, name: str, value: Any) -> None:
        """A value that replaces the one of the same name that still waits."""
        self._waiting[name] = json.dumps({"type": name, "data": value}, allow_nan=False)
        self._wake.set()

    def happened(self, name: str, value: Any) -> None:
        """A value that none replaces."""
        self._events += 1
        key = f"{name} {self._events}"
        self._waiting[key] = json.dumps({"type": name, "data": value}, allow_nan=False)
        self._waiting.pop(f"{name} {self._events - EVENTS}", None)
        self._wake.set()

    def show(self, frame: Frame) -> None:
        """A camera's newest image."""
        self._dropped[frame.camera] += frame.camera in self._frames
        self._frames[frame.camera] = frame
        self._wake.set()

    def drawn(self, camera: str) -> None:
        """The page has drawn an image of this camera."""
        self._undrawn[camera] = max(self._undrawn[camera] - 1, 0)
        self._wake.set()

    async def write(self) -> None:
        """Sends what waits, until the socket closes; raises TimeoutError if it does not read."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                text = self._waiting.pop(next(iter(self._waiting)))
                await asyncio.wait_for(self.socket.send_str(text), SEND_SECONDS)
            for camera in [c for c in self._frames if self._undrawn[c] < IN_FLIGHT]:
                frame = self._frames.pop(camera)
                self._undrawn[camera] += 1
                packed = frame.pack(self._dropped[camera])
                await asyncio.wait_for(self.socket.send_bytes(packed), SEND_SECONDS)
